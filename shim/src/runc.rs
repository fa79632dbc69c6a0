//! The one module that runs runc.
//!
//! Every run has a log file of its own (`--log FILE --log-format json`), so that a failure
//! carries the message of the run that failed and never that of another one that runs at the
//! same time. The file is removed when the run has ended.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Deserialize;
use tokio::{io::AsyncReadExt, net::unix::pipe};

mod child;

pub use child::RuncChild;

use crate::{options::Options, reaper::Reaper, spec::SpecFacts};

/// runc's state directory unless the options name another; the namespace is appended.
pub const DEFAULT_ROOT: &str = "/run/containerd/runc";
/// The program unless the options name another.
pub const DEFAULT_BINARY: &str = "runc";
/// Names of programs that take specs as they are.
const RUNTIMES: [&str; 3] = [DEFAULT_BINARY, "crun", "youki"];

/// Characters of its stderr that are worth telling.
const LONGEST_STDERR: usize = 500;

/// Why runc did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum RuncError {
    /// It could not be started.
    #[error("cannot run {binary}: {source}; is it installed, and in the PATH of containerd?")]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("runc {operation} failed: {message}")]
    Failed {
        /// The subcommand.
        operation: String,
        /// The last error in its log, or what it wrote to stderr, or its exit status.
        message: String,
        /// Its exit status.
        status: u32,
    },
    /// What it printed is not what its version prints.
    #[error("runc {operation} printed what can't be understood: {source}")]
    Output {
        /// The subcommand.
        operation: String,
        /// The parser's message.
        source: serde_json::Error,
    },
}

impl RuncError {
    /// Whether a freeze came to no end. With cgroup v1 that happens while processes are being made
    /// in the cgroup, as an exec does; runc thaws them then (opencontainers/cgroups
    /// fs/freezer.go).
    #[must_use]
    pub fn could_not_freeze(&self) -> bool {
        matches!(self, Self::Failed { message, .. } if message.contains("unable to freeze"))
    }

    /// Whether runc knows no such container (any more).
    #[must_use]
    pub fn is_unknown_container(&self) -> bool {
        matches!(self, Self::Failed { message, .. } if message.contains("does not exist"))
    }
}

/// How to run runc for one container.
#[derive(Debug, Clone)]
pub struct Runc {
    binary: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
    systemd_cgroup: bool,
    reaper: Reaper,
    runs: Arc<AtomicU64>,
}

impl Runc {
    /// runc as the options of a container and its spec want it.
    #[must_use]
    pub fn new(
        options: &Options,
        facts: &SpecFacts,
        namespace: &str,
        bundle: &Path,
        reaper: Reaper,
    ) -> Self {
        Self {
            binary: options.binary().into(),
            root: options.runc_root(namespace),
            bundle: bundle.into(),
            systemd_cgroup: facts.has_systemd_cgroup(),
            reaper,
            runs: Arc::default(),
        }
    }

    /// runc's state directory of this namespace; `<root>/<id>/state.json` is a container.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the program is another than a runtime itself, as `nvidia-container-runtime` is: one
    /// that may change the spec when it makes a container.
    #[must_use]
    pub fn is_wrapped(&self) -> bool {
        let name = self.binary.file_name().and_then(OsStr::to_str);
        !name.is_some_and(|name| RUNTIMES.contains(&name))
    }

    /// Who reaps what is run.
    #[must_use]
    pub fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// A command with the global flags and the subcommand. It inherits the shim's stdio,
    /// which is `/dev/null`.
    #[must_use]
    pub fn command(&self, subcommand: &str) -> Command {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new(&self.binary);
        command
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(self.bundle.join(format!("runc-{run}.json")))
            .args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        for name in crate::daemon::PRIVATE_ENVIRONMENT {
            command.env_remove(name);
        }
        command.arg(subcommand);
        command
    }

    /// Starts a command made by [`Runc::command`].
    pub fn spawn(&self, mut command: Command) -> Result<RuncChild, RuncError> {
        let log = log_of(&command);
        tracing::debug!(operation = operation_of(&command), "runs runc");
        let (child, claim) =
            self.reaper
                .spawn(&mut command)
                .map_err(|source| RuncError::Spawn {
                    binary: self.binary.clone(),
                    source,
                })?;
        Ok(RuncChild {
            claim,
            operation: operation_of(&command),
            log,
            exit: None,
            stdout: child.stdout.map(Into::into),
            stderr: child.stderr.map(Into::into),
            reaper: self.reaper.clone(),
        })
    }

    /// Runs a command to its end, with the stdio that it has.
    pub async fn run_attached(&self, command: Command) -> Result<(), RuncError> {
        self.spawn(command)?.wait().await
    }

    /// Runs a command to its end and returns what it printed.
    pub async fn run(&self, mut command: Command) -> Result<Vec<u8>, RuncError> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (out, err) = tokio::join!(read_all(out), read_all(err));
        child
            .wait()
            .await
            .map_err(|error| error.with_stderr(&err))?;
        Ok(out)
    }

    async fn simple(&self, operation: &str, args: &[&OsStr]) -> Result<(), RuncError> {
        let mut command = self.command(operation);
        command.args(args);
        self.run(command).await.map(drop)
    }

    /// The first line of `runc --version`, as `runc version 1.3.6`.
    pub async fn version(&self) -> Result<String, RuncError> {
        let mut command = Command::new(&self.binary);
        command.arg("--version");
        let printed = self.run(command).await?;
        Ok(String::from_utf8_lossy(&printed)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned())
    }

    /// `runc start`.
    pub async fn start(&self, id: &str) -> Result<(), RuncError> {
        self.simple("start", &[id.as_ref()]).await
    }

    /// `runc pause`.
    pub async fn pause(&self, id: &str) -> Result<(), RuncError> {
        self.simple("pause", &[id.as_ref()]).await
    }

    /// `runc resume`.
    pub async fn resume(&self, id: &str) -> Result<(), RuncError> {
        self.simple("resume", &[id.as_ref()]).await
    }

    /// `runc delete`, with `--force` when `force` is set.
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), RuncError> {
        let args: &[&OsStr] = if force {
            &["--force".as_ref(), id.as_ref()]
        } else {
            &[id.as_ref()]
        };
        self.simple("delete", args).await
    }

    /// `runc update` with the resources in a file.
    pub async fn update(&self, id: &str, resources: &Path) -> Result<(), RuncError> {
        self.simple(
            "update",
            &["--resources".as_ref(), resources.as_ref(), id.as_ref()],
        )
        .await
    }

    /// `runc checkpoint` with the given arguments, the container's id after them.
    pub async fn checkpoint(&self, id: &str, args: &[OsString]) -> Result<(), RuncError> {
        let mut command = self.command("checkpoint");
        command.args(args).arg(id);
        self.run(command).await.map(drop)
    }

    /// `runc state`: the status that runc sees, as `running` or `paused`.
    pub async fn status(&self, id: &str) -> Result<String, RuncError> {
        #[derive(Deserialize)]
        struct State {
            status: String,
        }
        let mut command = self.command("state");
        command.arg(id);
        let state: State = serde_json::from_slice(&self.run(command).await?).map_err(|source| {
            RuncError::Output {
                operation: "state".into(),
                source,
            }
        })?;
        Ok(state.status)
    }

    /// The cgroup directories of a container from runc's own state, by controller; the
    /// unified hierarchy has an empty name. Empty when runc's state can't be read.
    #[must_use]
    pub fn cgroup_paths(&self, id: &str) -> Vec<(String, PathBuf)> {
        #[derive(Deserialize)]
        struct State {
            #[serde(default)]
            cgroup_paths: std::collections::BTreeMap<String, PathBuf>,
        }
        fs::read(self.root.join(id).join("state.json"))
            .ok()
            .and_then(|text| serde_json::from_slice::<State>(&text).ok())
            .map_or_else(Vec::new, |state| state.cgroup_paths.into_iter().collect())
    }
}

impl RuncError {
    fn with_stderr(self, stderr: &[u8]) -> Self {
        let text = String::from_utf8_lossy(stderr);
        match self {
            Self::Failed {
                operation,
                message,
                status,
            } if message == or_status(String::new(), status) && !text.trim().is_empty() => {
                // A Go program that panics tells of all its threads.
                let message = text.trim().chars().take(LONGEST_STDERR).collect();
                Self::Failed {
                    operation,
                    message,
                    status,
                }
            }
            other => other,
        }
    }
}

fn or_status(message: String, status: u32) -> String {
    if message.is_empty() {
        format!("exit status {status}")
    } else {
        message
    }
}

fn log_of(command: &Command) -> Option<PathBuf> {
    let mut args = command.get_args();
    args.find(|arg| *arg == "--log")?;
    args.next().map(Into::into)
}

fn operation_of(command: &Command) -> String {
    // Global flags with a value come in pairs, and --systemd-cgroup has none.
    let mut args = command.get_args();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--root" | "--log" | "--log-format") => drop(args.next()),
            Some("--systemd-cgroup") => {}
            _ => return arg.to_string_lossy().into_owned(),
        }
    }
    String::new()
}

async fn read_all(fd: Option<OwnedFd>) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(mut pipe) = fd.and_then(|fd| pipe::Receiver::from_owned_fd(fd).ok()) {
        // A read error ends the text; the exit status tells whether it matters.
        let _ = pipe.read_to_end(&mut text).await;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runc(systemd: bool) -> Runc {
        let spec = if systemd {
            r#"{"linux":{"cgroupsPath":"a.slice:b:c"}}"#
        } else {
            "{}"
        };
        Runc::new(
            &Options::default(),
            &SpecFacts::parse(spec).unwrap(),
            "k8s.io",
            Path::new("/b"),
            Reaper::new(),
        )
    }

    #[test]
    fn global_flags_come_before_the_subcommand() {
        let command = runc(true).command("start");
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(
            args,
            [
                "--root",
                "/run/containerd/runc/k8s.io",
                "--log",
                "/b/runc-0.json",
                "--log-format",
                "json",
                "--systemd-cgroup",
                "start"
            ]
        );
        assert_eq!(operation_of(&command), "start");
    }

    #[test]
    fn a_freeze_without_end_is_told_from_other_failures() {
        let failed = |message: &str| RuncError::Failed {
            operation: "pause".into(),
            message: message.into(),
            status: 1,
        };
        assert!(failed("unable to freeze").could_not_freeze());
        assert!(!failed("container not running").could_not_freeze());
        assert!(!failed("unable to freeze").is_unknown_container());
    }

    #[test]
    fn every_run_has_its_own_log() {
        let runc = runc(false);
        let log = |command: &Command| log_of(command).unwrap();
        assert_ne!(
            log(&runc.command("start")),
            log(&runc.clone().command("start"))
        );
    }

    #[test]
    fn stderr_speaks_when_the_log_is_silent() {
        let failed = |message: &str| RuncError::Failed {
            operation: "start".into(),
            message: message.into(),
            status: 1,
        };
        let silent = failed("exit status 1").with_stderr(b"boom\n").to_string();
        assert_eq!(silent, "runc start failed: boom");
        let long = failed("exit status 1").with_stderr(&[b'x'; 5000]);
        assert!(long.to_string().len() < 600);
        assert!(
            failed("logged")
                .with_stderr(b"boom")
                .to_string()
                .ends_with("logged")
        );
    }
}
