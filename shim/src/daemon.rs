//! The daemon: this program once more, detached, with the listening socket as its stdin.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    args::Args, bootstrap::Bootstrap, cgroup, log, options::Options, server, socket::Address,
    start::StartError,
};

/// Environment of the daemon that is nobody else's: it keeps glibc's heap small. Many small
/// shims run on a node, and none needs a heap per thread.
pub const PRIVATE_ENVIRONMENT: [&str; 3] = [
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
];
const PRIVATE_VALUES: [&str; 3] = ["2", "131072", "131072"];

/// Highest `oom_score_adj`.
const MAX_OOM_SCORE: i32 = 1000;

/// Starts the daemon and returns its pid.
pub fn spawn(
    args: &Args,
    bootstrap: &Bootstrap,
    address: &Address,
    listener: UnixListener,
) -> Result<u32, StartError> {
    let program = std::env::current_exe().map_err(StartError::Spawn)?;
    let mut command = Command::new(program);
    command
        .args([
            "-namespace",
            &args.namespace,
            "-id",
            &args.id,
            "-address",
            &args.address,
        ])
        .arg("-socket")
        .arg(address.path())
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if args.debug || bootstrap.params.as_ref().is_some_and(|params| params.debug) {
        command.arg("-debug");
    }
    if let Some(params) = &bootstrap.params {
        command.env("TTRPC_ADDRESS", &params.ttrpc_address);
    }
    command.envs(PRIVATE_ENVIRONMENT.into_iter().zip(PRIVATE_VALUES));
    let child = command.spawn().map_err(StartError::Spawn)?;
    Ok(child.id())
}

/// Puts the daemon where the options want it, and makes it a little more likely to be killed
/// for memory than containerd is.
pub fn place(pid: u32, options: &Options) -> Result<(), StartError> {
    if !options.shim_cgroup.is_empty() {
        join_cgroup(pid, &options.shim_cgroup).map_err(|source| StartError::Cgroup {
            cgroup: options.shim_cgroup.clone(),
            source,
        })?;
    }
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let score = fs::read_to_string(format!("/proc/{parent}/oom_score_adj"))
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok())
        .map(|score| (score + 1).min(MAX_OOM_SCORE));
    if let Some(score) = score {
        // Lowering it takes a capability, which a containerd in a container may lack.
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
    }
    Ok(())
}

/// Moves a process to a cgroup that is there: on v1 in every hierarchy that has it.
fn join_cgroup(pid: u32, group: &str) -> io::Result<()> {
    let group = group.trim_start_matches('/');
    let root = Path::new(cgroup::CGROUP_ROOT);
    let directories: Vec<PathBuf> = if cgroup::is_unified() {
        vec![root.join(group)]
    } else {
        let hierarchies = fs::read_dir(root)?.flatten();
        hierarchies
            .map(|entry| entry.path().join(group))
            .filter(|path| path.is_dir())
            .collect()
    };
    if directories.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let join = |path: &PathBuf| fs::write(path.join("cgroup.procs"), pid.to_string());
    directories.iter().try_for_each(join)
}

/// Runs as the daemon until the shim is shut down.
pub fn serve(args: &Args) -> io::Result<()> {
    // `start` may end now: this process belongs to no session, group or terminal of its.
    // It fails only for the leader of a group, which is as good.
    let _ = rustix::process::setsid();
    let listener = take_listener()?;
    log::init(&std::env::current_dir()?, args.debug);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(32)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .build()?;
    let served = runtime.block_on(server::run(args, listener));
    runtime.shutdown_background();
    served
}

/// Takes the socket from fd 0 and leaves `/dev/null` there.
fn take_listener() -> io::Result<UnixListener> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(fs::File::open("/dev/null")?)?;
    // Whatever else stdin was, a socket that listens has an address.
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
