//! Processes that containerd adds to a running container.

use std::{fs, os::unix::fs::OpenOptionsExt, path::PathBuf, sync::Arc, time::SystemTime};

use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted};

use super::{Container, ContainerError, lock, read_pid};
use crate::{
    io::Endpoints,
    process::{Process, ProcessState},
    reaper::{Claim, Exit},
};

impl Container {
    /// `Exec`: notes a process; [`Container::start_exec`] starts it. `spec` is the JSON of an
    /// OCI process.
    pub fn add_exec(
        &self,
        exec_id: &str,
        spec: &[u8],
        endpoints: Endpoints,
    ) -> Result<(), ContainerError> {
        let state = self.state();
        if matches!(
            state,
            ProcessState::Stopped | ProcessState::Paused | ProcessState::Pausing
        ) {
            return Err(self.wrong_state("exec in", state));
        }
        let json = |source| ContainerError::Json {
            what: "the process to exec",
            id: self.id.clone(),
            source,
        };
        let mut spec: serde_json::Value = serde_json::from_slice(spec).map_err(json)?;
        spec["terminal"] = endpoints.terminal.into();
        let mut execs = lock(&self.execs);
        if execs.known.contains_key(exec_id) {
            return Err(ContainerError::ExecExists {
                id: self.id.clone(),
                exec_id: exec_id.into(),
            });
        }
        let path = self.exec_file(exec_id, "json");
        let write = || {
            // It may hold secrets in its environment.
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            serde_json::to_writer(&mut file, &spec).map_err(std::io::Error::from)
        };
        write().map_err(self.host_error("write", &path))?;
        execs
            .known
            .insert(exec_id.into(), Arc::new(Process::new(exec_id, endpoints)));
        drop(execs);
        self.events().send(&TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            ..TaskExecAdded::default()
        });
        Ok(())
    }

    /// `Start` of an exec.
    pub async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<u32, ContainerError> {
        let process = self.process(exec_id)?;
        let _operation = self.operation.read().await;
        if process.state() != ProcessState::Created {
            return Err(self.wrong_state("start a started process in", process.state()));
        }
        {
            let mut execs = lock(&self.execs);
            if execs.closed {
                return Err(self.wrong_state("exec in", ProcessState::Stopped));
            }
            execs.running += 1;
        }
        match self.runc_exec(&process).await {
            Ok(claim) => {
                let pid = claim.pid;
                process.enter(ProcessState::Running);
                self.events().send(&TaskExecStarted {
                    container_id: self.id.clone(),
                    exec_id: exec_id.into(),
                    pid,
                    ..TaskExecStarted::default()
                });
                self.follow_exec(process, claim);
                Ok(pid)
            }
            Err(error) => {
                // Whoever waits for it waits in vain; there was no start, so no exit is published.
                process.set_exited(Exit {
                    pid: 0,
                    status: 255,
                    at: SystemTime::now(),
                });
                self.exec_is_over();
                Err(error)
            }
        }
    }

    async fn runc_exec(&self, process: &Process) -> Result<Claim, ContainerError> {
        let spec = self.exec_file(&process.exec_id, "json");
        let pid_file = self.exec_file(&process.exec_id, "pid");
        let mut stdio = self.stdio(process).await?;
        let mut command = self.runc.command("exec");
        command
            .arg("--detach")
            .arg("--process")
            .arg(&spec)
            .arg("--pid-file")
            .arg(&pid_file);
        stdio.attach(&mut command);
        command.arg(&self.id);
        let operation = self.shared.reaper.begin();
        let ran = self.runc.run_attached(command).await;
        let _ = fs::remove_file(&spec);
        ran?;
        let pid = read_pid(&pid_file);
        let _ = fs::remove_file(&pid_file);
        let pid = pid.map_err(self.host_error("read", &pid_file))?;
        let claim = operation.claim(pid);
        process.set_pid(pid);
        process.keep_streams(self.start_stdio(stdio, pid).await?);
        Ok(claim)
    }

    /// `Delete` of an exec.
    pub async fn delete_exec(&self, exec_id: &str) -> Result<Arc<Process>, ContainerError> {
        let process = self.process(exec_id)?;
        let state = process.state();
        if state == ProcessState::Running {
            return Err(self.wrong_state("delete a process of", state));
        }
        if let Some(streams) = process.take_streams() {
            streams.drain().await;
        }
        let _ = fs::remove_file(self.exec_file(exec_id, "json"));
        lock(&self.execs).known.remove(exec_id);
        Ok(process)
    }

    /// containerd's exec ids are hex digits or what a user typed; neither may leave the bundle.
    fn exec_file(&self, exec_id: &str, kind: &str) -> PathBuf {
        self.bundle
            .join(format!("exec-{}.{kind}", exec_id.replace('/', "_")))
    }
}
