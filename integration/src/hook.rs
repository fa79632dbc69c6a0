//! The process between the CRI's clients and containerd, in a lab.

use std::{
    fs::{self, File},
    os::unix::net::UnixListener,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use crate::{Container, Lab, eventually, lab, skip};
use anyhow::{Context, Result};
use command_fds::{CommandFdExt as _, FdMapping};
use kybernate_hooks::cri::v1::{
    CheckpointContainerRequest, VersionRequest, image_service_client::ImageServiceClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tonic::{Request, Status, transport::Channel};

const PROGRAM: &str = "kybernate-cri-hooks";
/// Where it listens in the lab.
pub const SOCKET: &str = "/run/kybernate-cri/cri.sock";
const METRICS: &str = "/run/kybernate-cri/metrics.sock";
/// Where kubelet wants archives.
pub const CHECKPOINTS: &str = "/var/lib/kubelet/checkpoints";
const LOG: &str = "/var/log/kybernate-cri-hooks.log";
const LIMIT: Duration = Duration::from_secs(10);

/// A running hook. The CRI of the lab goes through it for as long as it lives.
#[derive(Debug)]
pub struct Hook {
    lab: Arc<Lab>,
    child: Child,
    /// Its pid in the lab.
    pub pid: u32,
}

impl Hook {
    /// Starts it and waits until it passes calls on.
    pub async fn start(lab: &Arc<Lab>) -> Result<Self> {
        Self::start_with(lab, &[]).await
    }

    /// Starts it with more environment.
    pub async fn start_with(lab: &Arc<Lab>, variables: &[(&str, &str)]) -> Result<Self> {
        if !lab::binaries().join(PROGRAM).is_file() {
            return skip(format!("{PROGRAM} is not built: run `make build`"));
        }
        // Of an earlier case that has failed.
        let _ = fs::remove_dir_all(lab.path(CHECKPOINTS));
        fs::create_dir_all(lab.path(CHECKPOINTS))?;
        let hook = Self::spawn(lab, variables, None).await?;
        lab.route_cri(Some(SOCKET));
        hook.answers().await?;
        Ok(hook)
    }

    /// Starts it, with a listening socket as systemd would pass it if there is one.
    pub async fn spawn(
        lab: &Arc<Lab>,
        variables: &[(&str, &str)],
        passed: Option<&UnixListener>,
    ) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(lab.path(LOG))?;
        let pid_file = "/run/kybernate-cri-hooks.pid";
        let _ = fs::remove_file(lab.path(pid_file));
        let listen = passed.map_or("", |_| "export LISTEN_FDS=1 LISTEN_PID=$$;");
        let script = format!("echo $$ >{pid_file}; {listen} exec {PROGRAM} --log-format json");
        let mut command = lab.command("sh");
        command
            .args(["-c", &script])
            .env("KYBERNATE_HOOKS_SOCKET", SOCKET)
            .env("KYBERNATE_HOOKS_METRICS", format!("unix:{METRICS}"))
            .env("KYBERNATE_HOOKS_HANDLERS", "kybernate,kybernate-typed")
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(passed) = passed {
            command.fd_mappings(vec![FdMapping {
                parent_fd: passed.try_clone()?.into(),
                child_fd: 3,
            }])?;
        }
        let child = command.spawn().context("cannot run nsenter")?;
        let pid = eventually("pid of the hook", LIMIT, || async {
            let text = fs::read_to_string(lab.path(pid_file))?;
            Ok(text.trim().parse().ok())
        })
        .await?;
        Ok(Self {
            lab: lab.clone(),
            child,
            pid,
        })
    }

    /// Waits until it passes calls on.
    pub async fn answers(&self) -> Result<()> {
        eventually("the hook passes calls on", LIMIT, || async {
            self.lab.cri().version(VersionRequest::default()).await?;
            Ok(Some(()))
        })
        .await
        .with_context(|| self.log().unwrap_or_default())
    }

    /// What it and its predecessors in the lab have written.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.lab.path(LOG))?)
    }

    /// Sends a signal to it.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.lab.kill(name, self.pid)
    }

    /// Waits until it is gone.
    pub async fn gone(&mut self, limit: Duration) -> Result<Option<i32>> {
        let status = eventually("end of the hook", limit, || {
            let ended = self.child.try_wait();
            async move { Ok(ended?) }
        })
        .await?;
        Ok(status.code())
    }

    /// Its resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(self.lab.path(format!("/proc/{}/status", self.pid)))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.context("no VmRSS")
    }

    /// What its endpoint answers to a GET: head and body.
    pub async fn get(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.lab.path(METRICS)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.lab.route_cri(None);
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal("KILL");
            let _ = self.child.wait();
        }
    }
}

/// The image service, through the hook.
pub fn images(lab: &Lab) -> ImageServiceClient<Channel> {
    ImageServiceClient::new(lab.cri_channel())
}

/// `CheckpointContainer` as kubelet calls it: with a deadline, and the same in the request.
pub async fn checkpoint(
    container: &Container,
    location: &str,
    timeout: Duration,
) -> Result<(), Status> {
    let mut request = Request::new(CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: location.into(),
        timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
    });
    request.set_timeout(timeout);
    container.lab.cri().checkpoint_container(request).await?;
    Ok(())
}

/// Names in kubelet's checkpoint directory, sorted.
pub fn left(lab: &Lab) -> Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(lab.path(CHECKPOINTS))?
        .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?;
    names.sort();
    Ok(names)
}
