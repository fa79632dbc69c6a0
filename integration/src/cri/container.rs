//! Containers of a pod.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use kybernate_hooks::cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStats, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest, ImageSpec, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    RemoveContainerRequest, ReopenContainerLogRequest, StartContainerRequest, StopContainerRequest,
    UpdateContainerResourcesRequest,
};

use tonic::Request;

use super::{LogLine, Pod, logs, pod};
use crate::{image::catalog, lab::Lab, time::eventually};

/// Paths that kubelet asks to be hidden from containers.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths that kubelet asks to be read-only in containers.
const READONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// A container in the making.
#[derive(Debug, Clone)]
pub struct ContainerBuilder {
    /// What the CRI will be asked for.
    pub config: ContainerConfig,
    pod: Pod,
}

impl ContainerBuilder {
    pub(super) fn new(pod: &Pod, name: &str) -> Self {
        let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        Self {
            config: ContainerConfig {
                metadata: Some(ContainerMetadata {
                    name: name.into(),
                    attempt: 0,
                }),
                image: Some(ImageSpec {
                    image: catalog::TOOLS.into(),
                    ..Default::default()
                }),
                log_path: format!("{name}/0.log"),
                linux: Some(LinuxContainerConfig {
                    resources: None,
                    security_context: Some(LinuxContainerSecurityContext {
                        namespace_options: Some(pod.namespaces()),
                        masked_paths: owned(MASKED),
                        readonly_paths: owned(READONLY),
                        ..Default::default()
                    }),
                }),
                ..Default::default()
            },
            pod: pod.clone(),
        }
    }

    /// Changes the CRI's message.
    pub fn edit(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the security part of the CRI's message.
    pub fn security(self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        self.edit(|config| {
            let linux = config.linux.get_or_insert_default();
            change(linux.security_context.get_or_insert_default());
        })
    }

    /// Changes the resources of the CRI's message.
    pub fn resources(self, change: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        self.edit(|config| {
            let linux = config.linux.get_or_insert_default();
            change(linux.resources.get_or_insert_default());
        })
    }

    /// Another image of the catalog, imported into the lab before.
    pub fn image(self, image: &str) -> Self {
        self.edit(|config| config.image.get_or_insert_default().image = image.into())
    }

    /// The program and its arguments.
    pub fn command<S: Into<String>>(self, argv: impl IntoIterator<Item = S>) -> Self {
        self.edit(|config| config.command = argv.into_iter().map(Into::into).collect())
    }

    /// A shell script as the program.
    pub fn shell(self, script: &str) -> Self {
        self.command(["/bin/sh", "-c", script])
    }

    /// Adds an environment variable.
    pub fn env(self, key: &str, value: &str) -> Self {
        self.edit(|config| {
            config.envs.push(KeyValue {
                key: key.into(),
                value: value.into(),
            });
        })
    }

    /// Adds an annotation.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.edit(|config| {
            config.annotations.insert(key.into(), value.into());
        })
    }

    /// Mounts a directory of the lab into the container, writable.
    pub fn mount(self, host_path: &str, container_path: &str) -> Self {
        self.edit(|config| {
            config.mounts.push(Mount {
                host_path: host_path.into(),
                container_path: container_path.into(),
                ..Default::default()
            });
        })
    }

    /// Counts the attempt, as kubelet does when it restarts a container.
    pub fn attempt(self, attempt: u32) -> Self {
        self.edit(|config| {
            let metadata = config.metadata.get_or_insert_default();
            metadata.attempt = attempt;
            config.log_path = format!("{}/{attempt}.log", metadata.name);
        })
    }

    /// Creates the container.
    pub async fn create(self) -> Result<Container> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(self.config.clone()),
            sandbox_config: Some(self.pod.config.clone()),
        };
        let created = self.pod.lab.cri().create_container(request).await;
        let response = created.context("CreateContainer")?;
        Ok(Container {
            id: response.into_inner().container_id,
            log: Path::new(&self.pod.config.log_directory).join(&self.config.log_path),
            config: self.config,
            lab: self.pod.lab,
        })
    }

    /// Creates and starts the container.
    pub async fn start(self) -> Result<Container> {
        let container = self.create().await?;
        container.start().await?;
        Ok(container)
    }
}

/// A container that has been created.
#[derive(Debug, Clone)]
pub struct Container {
    /// containerd's id of it.
    pub id: String,
    /// What it was made from.
    pub config: ContainerConfig,
    /// Where it runs.
    pub lab: Arc<Lab>,
    log: PathBuf,
}

/// What an exec has printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub exit_code: i32,
}

impl Container {
    /// Starts the created container.
    pub async fn start(&self) -> Result<()> {
        self.start_within(None).await
    }

    /// Starts the created container, with a deadline for the call if there is one.
    pub async fn start_within(&self, deadline: Option<Duration>) -> Result<()> {
        let mut request = Request::new(StartContainerRequest {
            container_id: self.id.clone(),
        });
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        self.lab
            .cri()
            .start_container(request)
            .await
            .context("StartContainer")?;
        Ok(())
    }

    /// What the CRI says about the container.
    pub async fn status(&self) -> Result<ContainerStatus> {
        let response = self
            .lab
            .cri()
            .container_status(ContainerStatusRequest {
                container_id: self.id.clone(),
                verbose: false,
            })
            .await
            .context("ContainerStatus")?;
        response
            .into_inner()
            .status
            .context("ContainerStatus without a status")
    }

    /// Whether the CRI says that it runs.
    pub async fn is_running(&self) -> Result<bool> {
        Ok(self.status().await?.state() == ContainerState::ContainerRunning)
    }

    /// Waits up to 30 s for the container's end.
    pub async fn wait_exit(&self) -> Result<ContainerStatus> {
        let what = format!("exit of {:?}", self.config.command);
        eventually(&what, Duration::from_secs(30), || async {
            let status = self.status().await?;
            Ok((status.state() == ContainerState::ContainerExited).then_some(status))
        })
        .await
    }

    /// Sends the stop signal, and SIGKILL after `grace` seconds.
    pub async fn stop(&self, grace: i64) -> Result<()> {
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout: grace,
        };
        self.lab
            .cri()
            .stop_container(request)
            .await
            .context("StopContainer")?;
        Ok(())
    }

    /// Removes the container, running or not.
    pub async fn remove(&self) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: self.id.clone(),
        };
        self.lab
            .cri()
            .remove_container(request)
            .await
            .context("RemoveContainer")?;
        Ok(())
    }

    /// Runs a command in the container, for at most 30 s.
    pub async fn exec(&self, argv: &[&str]) -> Result<ExecOutput> {
        self.exec_within(argv, 30).await
    }

    /// Runs a command in the container for at most `timeout` seconds.
    pub async fn exec_within(&self, argv: &[&str], timeout: i64) -> Result<ExecOutput> {
        let response = self
            .lab
            .cri()
            .exec_sync(ExecSyncRequest {
                container_id: self.id.clone(),
                cmd: argv.iter().map(|arg| (*arg).to_owned()).collect(),
                timeout,
            })
            .await
            .with_context(|| format!("ExecSync {argv:?}"))?
            .into_inner();
        Ok(ExecOutput {
            stdout: String::from_utf8(response.stdout).context("stdout is not text")?,
            stderr: String::from_utf8(response.stderr).context("stderr is not text")?,
            exit_code: response.exit_code,
        })
    }

    /// Runs a shell script in the container; it must succeed. Returns what it prints, trimmed.
    pub async fn shell(&self, script: &str) -> Result<String> {
        let output = self.exec(&["/bin/sh", "-c", script]).await?;
        anyhow::ensure!(output.exit_code == 0, "{script:?} in container: {output:?}");
        Ok(output.stdout.trim().to_owned())
    }

    /// Pid of the container's first process, in the lab's PID namespace.
    pub async fn pid(&self) -> Result<u32> {
        crate::tasks::pid(&self.lab, &self.id).await
    }

    /// Statistics as kubelet reads them.
    pub async fn stats(&self) -> Result<ContainerStats> {
        let response = self
            .lab
            .cri()
            .container_stats(Pod::stats_request(&self.id))
            .await
            .context("ContainerStats")?;
        response
            .into_inner()
            .stats
            .context("ContainerStats without statistics")
    }

    /// Changes the limits of the running container.
    pub async fn update(&self, resources: LinuxContainerResources) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        self.lab
            .cri()
            .update_container_resources(request)
            .await
            .context("UpdateContainerResources")?;
        Ok(())
    }

    /// Asks containerd to open the log file anew, as kubelet does after rotating it.
    pub async fn reopen_log(&self) -> Result<()> {
        let request = ReopenContainerLogRequest {
            container_id: self.id.clone(),
        };
        self.lab
            .cri()
            .reopen_container_log(request)
            .await
            .context("ReopenContainerLog")?;
        Ok(())
    }

    /// The log file, reachable from here.
    pub fn log_file(&self) -> PathBuf {
        self.lab.path(&self.log)
    }

    /// The log so far.
    pub fn log(&self) -> Result<Vec<LogLine>> {
        logs::read(&self.log_file())
    }

    /// Everything that the log has of standard output.
    pub fn stdout(&self) -> Result<String> {
        Ok(logs::text(&self.log()?, "stdout"))
    }

    /// Everything that the log has of standard error.
    pub fn stderr(&self) -> Result<String> {
        Ok(logs::text(&self.log()?, "stderr"))
    }

    /// Waits up to 20 s until standard output in the log contains `text`; returns all of it.
    pub async fn wait_stdout(&self, text: &str) -> Result<String> {
        eventually(
            &format!("{text:?} in the log"),
            Duration::from_secs(20),
            || async {
                let log = self.stdout()?;
                Ok(log.contains(text).then_some(log))
            },
        )
        .await
    }

    /// Where containerd keeps the container's bundle in the lab.
    pub fn bundle(&self) -> PathBuf {
        pod::bundle(&self.lab, &self.id)
    }
}
