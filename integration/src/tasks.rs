//! Tasks through containerd's own API: what the CRI does not show.
//!
//! An exec with streams of its own uses FIFOs as containerd's clients do: made in the lab,
//! opened here for reading and writing so that neither side waits for the other.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use kybernate_hooks::containerd::{
    task::Process,
    tasks::{
        CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest,
        ListPidsRequest, ResizePtyRequest, StartRequest, WaitRequest,
    },
};
use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
use prost_types::Any;
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    lab::Lab,
    time::{eventually, within},
};

/// What containerd knows about a task.
pub async fn get(lab: &Lab, id: &str) -> Result<Process> {
    let request = GetRequest {
        container_id: id.into(),
        exec_id: String::new(),
    };
    let response = lab.tasks().get(request).await.context("Tasks.Get")?;
    response
        .into_inner()
        .process
        .context("Tasks.Get without a process")
}

/// Pid of a task's first process in the lab's PID namespace.
pub async fn pid(lab: &Lab, id: &str) -> Result<u32> {
    Ok(get(lab, id).await?.pid)
}

/// Pids of all processes of a task in the lab's PID namespace.
pub async fn pids(lab: &Lab, id: &str) -> Result<Vec<u32>> {
    let request = ListPidsRequest {
        container_id: id.into(),
    };
    let response = lab
        .tasks()
        .list_pids(request)
        .await
        .context("Tasks.ListPids")?;
    Ok(response
        .into_inner()
        .processes
        .iter()
        .map(|process| process.pid)
        .collect())
}

/// Sends a signal by number to a task, or to all processes of it.
pub async fn kill(lab: &Lab, id: &str, signal: u32, all: bool) -> Result<()> {
    let request = KillRequest {
        container_id: id.into(),
        exec_id: String::new(),
        signal,
        all,
    };
    lab.tasks().kill(request).await.context("Tasks.Kill")?;
    Ok(())
}

/// How an exec is run.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// With a terminal: one output stream, and sizes.
    pub terminal: bool,
    /// With standard input.
    pub stdin: bool,
}

/// A running exec and its streams.
#[derive(Debug)]
pub struct Exec {
    /// Its pid in the lab's PID namespace.
    pub pid: u32,
    lab: Arc<Lab>,
    container: String,
    id: String,
    directory: PathBuf,
    stdin: Option<File>,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Exec {
    /// Adds and starts an exec in a running task.
    pub async fn start(
        lab: &Arc<Lab>,
        container: &str,
        id: &str,
        argv: &[&str],
        options: ExecOptions,
    ) -> Result<Self> {
        let inside = format!("/run/lab-exec/{container}-{id}");
        let directory = lab.path(&inside);
        std::fs::create_dir_all(&directory)?;
        let pipe = |name: &str, wanted: bool| -> Result<(String, Option<File>)> {
            if !wanted {
                return Ok((String::new(), None));
            }
            let path = directory.join(name);
            mkfifo(&path, Mode::from_bits_truncate(0o600))?;
            Ok((
                format!("{inside}/{name}"),
                Some(open(&path, name == "stdin")?),
            ))
        };
        let (stdin_path, stdin) = pipe("stdin", options.stdin)?;
        let (stdout_path, stdout) = pipe("stdout", true)?;
        let (stderr_path, stderr) = pipe("stderr", !options.terminal)?;
        let spec = json!({
            "terminal": options.terminal,
            "cwd": "/",
            "args": argv,
            "user": { "uid": 0, "gid": 0 },
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        });
        let mut tasks = lab.tasks();
        tasks
            .exec(ExecProcessRequest {
                container_id: container.into(),
                stdin: stdin_path,
                stdout: stdout_path,
                stderr: stderr_path,
                terminal: options.terminal,
                spec: Some(Any {
                    type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                    value: serde_json::to_vec(&spec)?,
                }),
                exec_id: id.into(),
            })
            .await
            .context("Tasks.Exec")?;
        let pid = tasks
            .start(StartRequest {
                container_id: container.into(),
                exec_id: id.into(),
            })
            .await
            .context("Tasks.Start of an exec")?
            .into_inner()
            .pid;
        Ok(Self {
            pid,
            lab: lab.clone(),
            container: container.into(),
            id: id.into(),
            directory,
            stdin,
            stdout: drain(stdout),
            stderr: drain(stderr),
        })
    }

    /// Writes to its standard input.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("the exec has no standard input")?;
        stdin.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Ends its standard input: our end of the FIFO and, by CloseIO, the shim's.
    pub async fn close_stdin(&mut self) -> Result<()> {
        self.stdin = None;
        let request = CloseIoRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            stdin: true,
        };
        self.lab
            .tasks()
            .close_io(request)
            .await
            .context("Tasks.CloseIO")?;
        Ok(())
    }

    /// Sets the size of its terminal.
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        let request = ResizePtyRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            width,
            height,
        };
        self.lab
            .tasks()
            .resize_pty(request)
            .await
            .context("Tasks.ResizePty")?;
        Ok(())
    }

    /// Sends it a signal by number.
    pub async fn kill(&self, signal: u32) -> Result<()> {
        let request = KillRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            signal,
            all: false,
        };
        self.lab
            .tasks()
            .kill(request)
            .await
            .context("Tasks.Kill of an exec")?;
        Ok(())
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// What it has printed to standard error so far.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Waits up to 10 s until its output contains the text; returns all of it.
    pub async fn wait_stdout(&self, wanted: &str) -> Result<String> {
        let what = format!("{wanted:?} from exec");
        let found = eventually(&what, Duration::from_secs(10), || async {
            let output = self.stdout();
            Ok(output.contains(wanted).then_some(output))
        });
        found
            .await
            .with_context(|| format!("output so far: {:?}", self.stdout()))
    }

    /// Waits up to 20 s for its end; what `Tasks/Wait` answers.
    async fn wait(&self) -> Result<Result<u32, Status>> {
        let mut tasks = self.lab.tasks();
        let request = WaitRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
        };
        within("wait for exec", Duration::from_secs(20), async {
            let answer = tasks.wait(request).await;
            Ok(answer.map(|answer| answer.into_inner().exit_status))
        })
        .await
    }

    /// Waits up to 20 s for its end; `None` if its task was deleted before its status was told.
    pub async fn status_or_gone(self) -> Result<Option<u32>> {
        let _ = std::fs::remove_dir_all(&self.directory);
        match self.wait().await? {
            Ok(status) => Ok(Some(status)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            // The stock shim leaves while it is asked.
            Err(status) if status.message().contains("ttrpc: closed") => Ok(None),
            Err(status) => Err(status).context("Tasks.Wait"),
        }
    }

    /// Waits up to 20 s for its end and deletes it; returns its exit status.
    pub async fn finish(self) -> Result<u32> {
        let waited = self.wait().await?.context("Tasks.Wait")?;
        let request = DeleteProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
        };
        let deleted = self
            .lab
            .tasks()
            .delete_process(request)
            .await
            .context("DeleteProcess")?;
        anyhow::ensure!(
            deleted.into_inner().exit_status == waited,
            "Wait and DeleteProcess tell different exit statuses"
        );
        let _ = std::fs::remove_dir_all(&self.directory);
        Ok(waited)
    }
}

/// Opens a FIFO so that it never blocks and never ends while we hold it.
fn open(path: &PathBuf, for_writing: bool) -> Result<File> {
    // Writers get SIGPIPE from a FIFO without readers, so for input we are a reader too, until
    // `close_stdin` drops both.
    OpenOptions::new()
        .read(true)
        .write(for_writing)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

fn drain(file: Option<File>) -> Arc<Mutex<Vec<u8>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    if let Some(mut file) = file {
        let weak = Arc::downgrade(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            // The reader ends when nobody asks any more.
            while let Some(into) = weak.upgrade() {
                match file.read(&mut buffer) {
                    Ok(n) if n > 0 => {
                        into.lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .extend(&buffer[..n]);
                    }
                    _ => {
                        drop(into);
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
        });
    }
    seen
}

fn text(bytes: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&bytes.lock().unwrap_or_else(|e| e.into_inner())).into_owned()
}
