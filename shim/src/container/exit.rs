//! Exits, and the order in which containerd hears of them.
//!
//! - A process's start is published before its exit.
//! - The exits of all exec'd processes are published before init's.

use std::{sync::Arc, time::Duration};

use containerd_shim_protos::events::task::TaskExit;
use protobuf::{MessageField, well_known_types::timestamp::Timestamp};

use super::{Container, create::blocking, lock};
use crate::{
    process::{Process, ProcessState},
    reaper::{Claim, Exit},
};

/// How often what survives init is killed again.
const KILL_AGAIN: Duration = Duration::from_millis(200);

impl Container {
    /// Publishes init's exit when it comes.
    pub(super) fn follow_init(self: &Arc<Self>, claim: Claim) {
        let container = Arc::clone(self);
        tokio::spawn(async move {
            let exit = claim.exit().await;
            container.init_exited(exit).await;
        });
    }

    /// Publishes the exit of an exec'd process when it comes. Its start has been published.
    pub(super) fn follow_exec(self: &Arc<Self>, process: Arc<Process>, claim: Claim) {
        let container = Arc::clone(self);
        tokio::spawn(async move {
            let exit = claim.exit().await;
            container.publish_exit(&process, exit);
            container.exec_is_over();
        });
    }

    pub(super) fn exec_is_over(&self) {
        lock(&self.execs).running -= 1;
        self.exec_ended.notify_waiters();
    }

    async fn init_exited(&self, exit: Exit) {
        lock(&self.execs).closed = true;
        // A frozen process can't end, not even killed, on cgroup v1.
        if matches!(self.state(), ProcessState::Paused | ProcessState::Pausing) {
            self.thaw();
        }
        if !self.spec.owns_pid_namespace {
            self.kill_rest().await;
        }
        self.execs_over().await;
        let _starting = self.starting.lock().await;
        if let Some(oom) = &*lock(&self.oom) {
            oom.check();
        }
        self.publish_exit(&self.init, exit);
    }

    /// Ends what init leaves behind when no PID namespace ends it.
    async fn kill_rest(&self) {
        let Some(cgroup) = self.cgroup() else { return };
        let id = self.id.clone();
        let kill = move || {
            if let Err(error) = cgroup.kill() {
                tracing::error!(id, %error, "cannot end the processes that init left behind");
            }
        };
        blocking(kill).await;
    }

    /// Waits until no exec'd process runs.
    async fn execs_over(&self) {
        loop {
            let ended = self.exec_ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if lock(&self.execs).running == 0 {
                return;
            }
            // One that was about to join may have come after the kill.
            if tokio::time::timeout(KILL_AGAIN, ended).await.is_err() {
                self.kill_rest().await;
            }
        }
    }

    fn publish_exit(&self, process: &Process, exit: Exit) {
        let id = if process.exec_id.is_empty() {
            &self.id
        } else {
            &process.exec_id
        };
        self.events().send(&TaskExit {
            container_id: self.id.clone(),
            id: id.clone(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..TaskExit::default()
        });
        process.set_exited(exit);
    }
}
