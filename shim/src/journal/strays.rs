//! Programs that work on a container and are to end: runc, CRIU, what they have started.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use kybernate_cuda::process::{self, Process};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{cgroup, checkpoint::descendants};

/// How long killed programs may take to be gone.
const GONE: Duration = Duration::from_secs(3);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(10);

/// Variable in the environment of runc, and of the CRIU that it starts, while a container is
/// restored: [`mark`]. Once runc is dead nothing else tells whose CRIU it was.
pub const MARK: &str = "KYBERNATE_RESTORE";

/// The value of [`MARK`] for a container.
#[must_use]
pub fn mark(namespace: &str, id: &str) -> String {
    format!("{namespace}/{id}")
}

/// Programs that are to end.
#[derive(Debug, Clone, Default)]
pub struct Strays {
    /// By pid and start time.
    pub programs: Vec<Process>,
    /// A CRIU with this [`mark`] is a stray, too.
    pub mark: Option<String>,
    /// The container's cgroup: a CRIU that traces one of its processes is a stray, too.
    pub cgroup: Option<PathBuf>,
}

impl Strays {
    /// Waits until all have ended, which CRIU does by itself when it has lost its page server: it
    /// then leaves the processes as they were. What has not ended after `grace` is killed. Blocks.
    pub fn end(mut self, grace: Duration) -> Result<(), String> {
        let mut kill_at = Instant::now() + grace;
        let give_up = kill_at + GONE;
        loop {
            let living = self.living();
            if living.is_empty() {
                return Ok(());
            }
            let now = Instant::now();
            if now >= give_up {
                let pids: Vec<_> = living.iter().map(|process| process.pid).collect();
                return Err(format!(
                    "processes {pids:?} (runc, CRIU) do not end although they were killed; \
                     they wait for the kernel, see /proc/PID/stack"
                ));
            }
            if now >= kill_at {
                for process in &living {
                    tracing::warn!(pid = process.pid, "killing a program that does not end");
                    kill(*process);
                }
                kill_at = now + POLL * 10;
            }
            thread::sleep(POLL);
        }
    }

    /// Those that live now. What they have started counts from then on, also when they are gone.
    fn living(&mut self) -> Vec<Process> {
        self.programs.retain(|program| program.lives());
        let below = self.programs.iter().flat_map(|p| descendants(p.pid));
        let tracers = self.cgroup.iter().flat_map(|path| cgroup::pids_below(path));
        let tracers = tracers
            .filter_map(process::tracer)
            .filter(|pid| is_criu(*pid));
        let marked = self.mark.iter().flat_map(|mark| marked(mark));
        let found: Vec<u32> = below.chain(tracers).chain(marked).collect();
        for program in found.into_iter().filter_map(Process::now) {
            if !self.programs.contains(&program) && !is_zombie(program.pid) {
                self.programs.push(program);
            }
        }
        self.programs.retain(|program| !is_zombie(program.pid));
        self.programs.clone()
    }
}

/// Whether somebody else's debugger must be left alone.
fn is_criu(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "criu")
}

/// Every CRIU whose environment has the mark.
fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}");
    let has_mark = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        variables.any(|variable| variable == wanted.as_bytes())
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter(|pid| is_criu(*pid) && has_mark(*pid))
        .collect()
}

/// Ended, and not taken note of by its parent.
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Kills a process, and no other that has got its pid meanwhile.
pub(super) fn kill(process: Process) {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let held = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(held) = held.filter(|_| process.lives()) {
        // One that is gone meanwhile is what is wanted.
        let _ = pidfd_send_signal(&held, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn start(script: &str) -> (Child, Process) {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let process = Process::now(child.id()).unwrap();
        (child, process)
    }

    fn strays(process: Process) -> Strays {
        Strays {
            programs: vec![process],
            ..Strays::default()
        }
    }

    #[test]
    fn a_criu_whose_runc_is_dead_is_known_by_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let criu = dir.path().join("criu");
        fs::copy("/bin/sleep", &criu).unwrap();
        let start = |program: &std::path::Path, mark: &str| {
            let mut command = Command::new(program);
            command.arg("100").env(MARK, mark).spawn().unwrap()
        };
        let mut ours = start(&criu, &mark("ns", "a"));
        let others = [
            start(&criu, &mark("ns", "ab")),
            start(std::path::Path::new("/bin/sleep"), &mark("ns", "a")),
        ];
        while !is_criu(ours.id()) {
            thread::sleep(POLL);
        }
        let strays = Strays {
            mark: Some(mark("ns", "a")),
            ..Strays::default()
        };
        strays.end(Duration::ZERO).unwrap();
        assert!(!ours.wait().unwrap().success());
        for mut other in others {
            assert!(other.try_wait().unwrap().is_none());
            other.kill().unwrap();
            other.wait().unwrap();
        }
    }

    #[test]
    fn a_program_gets_its_time_and_is_killed_with_its_children_then() {
        let (mut child, program) = start("sleep 100 & wait");
        let begun = Instant::now();
        let grace = Duration::from_millis(200);
        strays(program).end(grace).unwrap();
        assert!(begun.elapsed() >= grace);
        assert!(descendants(child.id()).len() <= 1);
        child.wait().unwrap();
    }

    #[test]
    fn another_process_with_the_same_pid_is_left_alone() {
        let (mut child, program) = start("sleep 100");
        let other = Process {
            start: program.start + 1,
            ..program
        };
        strays(other).end(Duration::ZERO).unwrap();
        assert!(program.lives() && !is_zombie(program.pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
