//! Stdio of container processes.
//!
//! ```text
//!  containerd          shim                                     process
//!  FIFO stdin   ---->  copy  ----> pipe ----------------------> 0
//!  FIFO stdout  <----  copy  <---- pipe <---------------------- 1
//!  FIFO stderr  <----  copy  <---- pipe <---------------------- 2
//!
//!  with a terminal:    copy  <---> pty master (console socket)  0 1 2
//!  file:///PATH        copy  <---- pipe <---------------------- 1 2
//!  binary:///LOGGER    (spawned) <- pipe <--------------------- 1 2
//! ```
//!
//! The process gets pipes and never containerd's FIFOs: they are what CRIU can dump, and a
//! containerd that restarts must not end a container with SIGPIPE. For the same reason the
//! shim holds both ends of every output FIFO. Bytes between pipes are spliced, so no stream
//! has a buffer in this process. The shim also holds the write end of the stdin FIFO until
//! `CloseIO`, so that a client that detaches is no end of file.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::{
    fs::{Gid, OFlags, Uid, fchown},
    pipe::{PipeFlags, pipe_with},
};

pub mod console;
pub mod copy;
pub mod logger;
mod streams;
pub mod uri;

pub use streams::{DRAIN, Streams};

use console::ConsoleSocket;
use copy::Sink;
use logger::Logger;
use uri::Output;

/// How long runc may take to hand over a terminal.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where containerd wants a process's stdio; an empty name means none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// FIFO that the process reads.
    pub stdin: String,
    /// FIFO, or URI, for what it writes.
    pub stdout: String,
    /// FIFO for its error output.
    pub stderr: String,
    /// Whether it gets a terminal. Then there is no stderr.
    pub terminal: bool,
}

/// Who owns the process, as loggers and pipes need to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// containerd namespace.
    pub namespace: String,
    /// Container or exec id.
    pub id: String,
    /// Owner of the pipes, so that the process may reopen `/dev/stdout`.
    pub uid: u32,
    /// Group of the pipes.
    pub gid: u32,
}

/// Why stdio could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A FIFO or file of containerd's.
    #[error("cannot open {stream} {path}: {source}")]
    Open {
        /// Which stream.
        stream: &'static str,
        /// The FIFO or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The output is a URI that is not understood.
    #[error("stdout {uri:?} is no FIFO path and no file:// or binary:// URI")]
    Uri {
        /// What containerd sent.
        uri: String,
    },
    /// The logging program.
    #[error("cannot start the logging program {program}: {source}")]
    Logger {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// runc sent no terminal.
    #[error("runc handed over no terminal: {source}")]
    Console {
        /// What happened.
        source: io::Error,
    },
    /// The kernel.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn system(action: &'static str) -> impl Fn(io::Error) -> StdioError {
    move |source| StdioError::System { action, source }
}

/// Stdio that is ready for a process which does not run yet.
#[derive(Debug)]
pub struct Stdio {
    endpoints: Endpoints,
    owner: Owner,
    output: Output,
    plumbing: Plumbing,
}

#[derive(Debug)]
enum Plumbing {
    Pipes {
        ours: [Option<OwnedFd>; 3],
        theirs: [Option<OwnedFd>; 3],
    },
    Console(ConsoleSocket),
    Logger {
        logger: Logger,
        stdin: Option<OwnedFd>,
        theirs: [Option<OwnedFd>; 3],
    },
}

impl Stdio {
    /// Makes pipes, a console socket or a logger, as the endpoints want it. Opens nothing of
    /// containerd's yet.
    pub async fn open(
        endpoints: &Endpoints,
        owner: &Owner,
        reaper: &crate::reaper::Reaper,
    ) -> Result<Self, StdioError> {
        let output = Output::parse(&endpoints.stdout)?;
        let plumbing = if endpoints.terminal {
            Plumbing::Console(ConsoleSocket::bind().map_err(system("make a console socket"))?)
        } else {
            let (stdin, their_stdin) = pipe(!endpoints.stdin.is_empty(), owner)?.split();
            let (their_stdout, stdout) = pipe(!endpoints.stdout.is_empty(), owner)?.split();
            let stderr_wanted = match &output {
                Output::Fifo(_) | Output::None => !endpoints.stderr.is_empty(),
                Output::File(_) | Output::Program { .. } => true,
            };
            let (their_stderr, stderr) = pipe(stderr_wanted, owner)?.split();
            let theirs = [their_stdin, their_stdout, their_stderr];
            match &output {
                Output::Program { program, args } => Plumbing::Logger {
                    logger: Logger::start(program, args, owner, [stdout, stderr], reaper).await?,
                    stdin,
                    theirs,
                },
                _ => Plumbing::Pipes {
                    ours: [stdin, stdout, stderr],
                    theirs,
                },
            }
        };
        Ok(Self {
            endpoints: endpoints.clone(),
            owner: owner.clone(),
            output,
            plumbing,
        })
    }

    /// Gives a command of runc the process's ends, or `--console-socket`. Call it after the
    /// subcommand and before the container's id. The command must be dropped once it is
    /// spawned: it holds the process's ends, without whose closing there is no end of file.
    pub fn attach(&mut self, command: &mut Command) {
        use std::process::Stdio as To;
        let theirs = match &mut self.plumbing {
            Plumbing::Console(socket) => {
                command.arg("--console-socket").arg(socket.path());
                &mut [None, None, None]
            }
            Plumbing::Pipes { theirs, .. } | Plumbing::Logger { theirs, .. } => theirs,
        };
        let mut end = |n: usize| theirs[n].take().map_or_else(To::null, To::from);
        command.stdin(end(0)).stdout(end(1)).stderr(end(2));
    }

    /// Opens containerd's FIFOs and starts the copies. The process has been started.
    pub async fn start(self, reaper: &crate::reaper::Reaper) -> Result<Streams, StdioError> {
        let mut streams = Streams::default();
        match self.plumbing {
            Plumbing::Pipes {
                ours: [stdin, stdout, stderr],
                theirs,
            } => {
                drop(theirs);
                if let Some(pipe) = stdin {
                    streams.feed(&self.endpoints.stdin, Sink::pipe(pipe))?;
                }
                let file = match &self.output {
                    Output::File(path) => Some(open_file(path)?),
                    _ => None,
                };
                for (name, path, pipe) in [
                    ("stdout", &self.endpoints.stdout, stdout),
                    ("stderr", &self.endpoints.stderr, stderr),
                ] {
                    let Some(pipe) = pipe else { continue };
                    let sink = match &file {
                        Some(file) => {
                            Sink::File(file.try_clone().map_err(system("share the log file"))?)
                        }
                        None => open_output(name, path)?,
                    };
                    streams.outputs.push(copy::spawn(name, pipe, sink));
                }
            }
            Plumbing::Logger {
                logger,
                stdin,
                theirs,
            } => {
                drop(theirs);
                if let Some(pipe) = stdin {
                    streams.feed(&self.endpoints.stdin, Sink::pipe(pipe))?;
                }
                streams.logger = Mutex::new(Some(logger));
            }
            Plumbing::Console(socket) => {
                let master = tokio::time::timeout(CONSOLE_TIMEOUT, socket.receive())
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(|source| StdioError::Console { source })?;
                let master = Arc::new(master);
                if !self.endpoints.stdin.is_empty() {
                    streams.feed(&self.endpoints.stdin, Sink::Terminal(Arc::clone(&master)))?;
                }
                let sink = match &self.output {
                    Output::None => None,
                    Output::Fifo(path) => Some(open_output("stdout", path)?),
                    Output::File(path) => Some(Sink::File(open_file(path)?)),
                    Output::Program { program, args } => {
                        let (ours, theirs) = pipe(true, &Owner::default())?.split();
                        let ends = [theirs, None];
                        let logger =
                            Logger::start(program, args, &self.owner, ends, reaper).await?;
                        streams.logger = Mutex::new(Some(logger));
                        ours.map(Sink::pipe)
                    }
                };
                // A terminal whose output nobody reads would block its process.
                let sink = sink.unwrap_or(Sink::Discard);
                streams
                    .outputs
                    .push(copy::spawn_terminal(Arc::clone(&master), sink));
                streams.console = Some(master);
            }
        }
        Ok(streams)
    }
}

struct Ends {
    write: Option<OwnedFd>,
    read: Option<OwnedFd>,
}

impl Ends {
    /// Write end, read end.
    fn split(self) -> (Option<OwnedFd>, Option<OwnedFd>) {
        (self.write, self.read)
    }
}

fn pipe(wanted: bool, owner: &Owner) -> Result<Ends, StdioError> {
    if !wanted {
        return Ok(Ends {
            write: None,
            read: None,
        });
    }
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| system("make a pipe")(e.into()))?;
    if owner.uid != 0 || owner.gid != 0 {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(&read, Some(uid), Some(gid))
            .map_err(|e| system("give a pipe to the container's user")(e.into()))?;
    }
    Ok(Ends {
        write: Some(write),
        read: Some(read),
    })
}

/// Both ends of a FIFO, so that there is always a reader; or a plain file.
fn open_output(stream: &'static str, path: impl AsRef<Path>) -> Result<Sink, StdioError> {
    let path = path.as_ref();
    let failed = |source| StdioError::Open {
        stream,
        path: path.into(),
        source,
    };
    let is_fifo = fs::metadata(path).map_err(failed)?.file_type().is_fifo();
    if !is_fifo {
        return OpenOptions::new()
            .append(true)
            .open(path)
            .map(Sink::File)
            .map_err(failed);
    }
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let fifo = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path);
    Ok(Sink::pipe(fifo.map_err(failed)?.into()))
}

fn open_file(path: &Path) -> Result<File, StdioError> {
    let open = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            .open(path)
    };
    open().map_err(|source| StdioError::Open {
        stream: "stdout",
        path: path.into(),
        source,
    })
}
