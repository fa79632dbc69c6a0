//! Taking checkpoints in a lab: with the command, as users do, and by containerd's Tasks API
//! with a staging directory, as the command does underneath.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kybernate_config::request::{CheckpointRequest, CheckpointResult, REQUEST_FILE, RESULT_FILE};
use kybernate_hooks::containerd::{pack, runc::CheckpointOptions, tasks::CheckpointTaskRequest};
use kybernate_oci::manifest::Manifest;
use tokio::process::Command;
use tonic::{Request, Status};

use crate::{Container, Distro, Handler, Lab};

/// Where archives of the suites lie in a lab: on disk.
pub const ARCHIVES: &str = "/var/lib/kybernate/archives";

static COUNT: AtomicU32 = AtomicU32::new(1);

/// Whether checkpoints reach a handler at all: containerd 1.7 hands their options to the stock
/// runtime type alone.
pub fn can_checkpoint(distro: Distro, handler: Handler) -> bool {
    distro != Distro::Trixie || handler != Handler::KybernateTyped
}

/// How a program in a lab has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit code, or -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// Fails unless the program has succeeded; returns its output.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.code == 0,
            "exit code {}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// Fails unless the program has failed; returns what it said to standard error.
    pub fn refused(self) -> Result<String> {
        ensure!(
            self.code != 0,
            "expected a failure, got: {}{}",
            self.stdout,
            self.stderr
        );
        Ok(self.stderr)
    }
}

/// Runs a program in a lab, while other things may go on here.
pub async fn run(lab: &Lab, argv: &[&str]) -> Result<Finished> {
    let (program, args) = argv.split_first().context("an empty command")?;
    let started = Instant::now();
    let output = Command::from(lab.command(program))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .await
        .context("cannot run nsenter")?;
    Ok(Finished {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: started.elapsed(),
    })
}

/// An archive in a lab.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Its path in the lab.
    pub path: String,
    lab: Arc<Lab>,
}

impl Archive {
    /// A name for an archive of the lab that nothing else uses. Its directory exists.
    pub fn new(lab: &Arc<Lab>) -> Result<Self> {
        fs::create_dir_all(lab.path(ARCHIVES))?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            path: format!("{ARCHIVES}/{count}.tar.zst"),
            lab: lab.clone(),
        })
    }

    /// The archive at a path of the lab, there or not.
    pub fn at(lab: &Arc<Lab>, path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            lab: lab.clone(),
        }
    }

    /// The file, reachable from here.
    pub fn file(&self) -> PathBuf {
        self.lab.path(&self.path)
    }

    /// Its size in bytes.
    pub fn size(&self) -> Result<u64> {
        Ok(fs::metadata(self.file())?.len())
    }

    /// Its permission bits.
    pub fn mode(&self) -> Result<u32> {
        Ok(fs::metadata(self.file())?.mode() & 0o7777)
    }

    /// Its manifest.
    pub fn manifest(&self) -> Result<Manifest> {
        let archive = kybernate_oci::archive::Archive::open(self.file())?;
        Ok(archive.manifest().clone())
    }

    /// `kybernate checkpoint` of the container into this archive; `arguments` are added.
    pub async fn try_take(&self, container: &str, arguments: &[&str]) -> Result<Finished> {
        let mut argv = vec!["kybernate", "checkpoint", container, "-o", &self.path];
        argv.extend(arguments);
        run(&self.lab, &argv).await
    }
}

/// Takes a checkpoint with the command, which must work; `arguments` are added.
pub async fn take(container: &Container, arguments: &[&str]) -> Result<Archive> {
    let archive = Archive::new(&container.lab)?;
    archive
        .try_take(&container.id, arguments)
        .await?
        .ok()
        .with_context(|| {
            format!(
                "kybernate checkpoint {}",
                container.config.command.join(" ")
            )
        })?;
    Ok(archive)
}

/// A staging directory with a request in it, held like a client holds it.
#[derive(Debug)]
pub struct Staging {
    /// Its path in the lab.
    pub path: String,
    lab: Arc<Lab>,
    lock: Option<File>,
}

impl Staging {
    /// Makes one in the directory `parent` of the lab.
    pub fn new(lab: &Arc<Lab>, parent: &str, request: &CheckpointRequest) -> Result<Self> {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("{parent}/staging-{count}");
        let directory = lab.path(&path);
        fs::create_dir_all(lab.path(parent))?;
        DirBuilder::new().mode(0o700).create(&directory)?;
        let file = directory.join(REQUEST_FILE);
        fs::write(&file, serde_json::to_vec(request)?)?;
        let lock = File::open(&file)?;
        lock.lock()?;
        Ok(Self {
            path,
            lab: lab.clone(),
            lock: Some(lock),
        })
    }

    /// Lets go of the request, as a client that is killed does.
    pub fn abandon(&mut self) {
        self.lock = None;
    }

    /// Names of what lies in the directory, sorted.
    pub fn entries(&self) -> Result<Vec<String>> {
        let mut names: Vec<_> = fs::read_dir(self.lab.path(&self.path))?
            .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()?;
        names.sort();
        Ok(names)
    }

    /// `Tasks/Checkpoint` of the container, with a deadline for the call.
    pub async fn checkpoint(
        &self,
        container: &str,
        deadline: Duration,
    ) -> Result<CheckpointResult, Status> {
        into_directory(&self.lab, container, &self.path, Some(deadline)).await?;
        let text = fs::read(self.lab.path(&self.path).join(RESULT_FILE))
            .map_err(|e| Status::data_loss(format!("no {RESULT_FILE}: {e}")))?;
        serde_json::from_slice(&text).map_err(|e| Status::data_loss(e.to_string()))
    }
}

/// `Tasks/Checkpoint` of the container into a directory, with a deadline for the call if there is
/// one. The directory gets plain CRIU images if it holds no request.
pub async fn into_directory(
    lab: &Lab,
    container: &str,
    path: &str,
    deadline: Option<Duration>,
) -> Result<(), Status> {
    let options = CheckpointOptions {
        image_path: path.into(),
        work_path: path.into(),
        ..Default::default()
    };
    let mut request = Request::new(CheckpointTaskRequest {
        container_id: container.into(),
        options: Some(pack(&options)),
        ..Default::default()
    });
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    lab.tasks().checkpoint(request).await.map(drop)
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.lab.path(&self.path));
    }
}
