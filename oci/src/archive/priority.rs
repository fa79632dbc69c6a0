//! The writer's threads as the scheduler sees them.

use std::sync::{Mutex, PoisonError};

use rustix::process::setpriority_process;
use rustix::thread::{CapabilitySet, Pid, capabilities, gettid};

/// Nice value in the background: about a seventieth of the weight of an ordinary thread.
const BACKGROUND: i32 = 19;

/// Threads that change their priority together.
#[derive(Debug, Default)]
pub(super) struct Crew {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Pid>,
    background: bool,
}

impl Crew {
    /// Takes the calling thread in until the guard is dropped.
    pub(super) fn join(&self) -> Member<'_> {
        let thread = gettid();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.members.push(thread);
        if state.background {
            renice(thread, BACKGROUND);
        }
        Member { crew: self, thread }
    }

    /// Lets all members yield to ordinary threads, or ends that.
    pub(super) fn set_background(&self, background: bool) {
        // Who could not raise the priority again must not lower it.
        if background && !may_raise() {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.background != background {
            state.background = background;
            for thread in &state.members {
                renice(*thread, if background { BACKGROUND } else { 0 });
            }
        }
    }
}

/// A thread's membership.
#[derive(Debug)]
pub(super) struct Member<'a> {
    crew: &'a Crew,
    thread: Pid,
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut state = self
            .crew
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.members.retain(|thread| *thread != self.thread);
    }
}

fn may_raise() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_NICE))
}

fn renice(thread: Pid, nice: i32) {
    // Linux keeps nice values per thread and takes a thread id here.
    if let Err(error) = setpriority_process(Some(thread), nice) {
        tracing::warn!(%error, nice, "cannot change the priority of an archive thread");
    }
}
