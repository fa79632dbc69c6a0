//! `start`: finds or starts the shim of the container's group and prints its address.
//!
//! containerd reads stdout and stderr as one, so a success prints nothing but the reply.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use crate::{
    args::Args,
    bootstrap::{Bootstrap, BootstrapError},
    daemon,
    options::{Options, OptionsError},
    socket::{Address, Bound, DEFAULT_DIRECTORY},
    spec::{SpecError, SpecFacts},
};

/// Longest message on stdin.
const MAX_INPUT: u64 = 10 << 20;

/// Why no shim was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// stdin.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The runtime's options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The bundle's spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The socket.
    #[error("cannot listen on {address}: {source}")]
    Socket {
        /// The address.
        address: Address,
        /// Why not.
        source: io::Error,
    },
    /// The daemon's process.
    #[error("cannot start the shim's daemon: {0}")]
    Spawn(io::Error),
    /// The cgroup that the options name.
    #[error("cannot move the shim to the cgroup {cgroup:?}: {source}")]
    Cgroup {
        /// The cgroup.
        cgroup: String,
        /// Why not.
        source: io::Error,
    },
    /// The kernel.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Reads all of stdin, up to a limit.
pub fn read_stdin() -> io::Result<Vec<u8>> {
    let mut input = Vec::new();
    io::stdin().lock().take(MAX_INPUT).read_to_end(&mut input)?;
    Ok(input)
}

/// Runs the action in the working directory, which is the bundle.
pub fn run(args: &Args) -> Result<(), StartError> {
    let host = |action| move |source| StartError::Host { action, source };
    let input = read_stdin().map_err(host("read stdin"))?;
    let bootstrap = Bootstrap::parse(&input, &args.id, &args.namespace)?;
    let bundle = std::env::current_dir().map_err(host("find the bundle"))?;
    let address = find_or_spawn(args, &bootstrap, &bundle)?;
    fs::write(bundle.join("address"), address.to_string()).map_err(host("write the address"))?;
    let mut stdout = io::stdout().lock();
    let reply = bootstrap.reply(&address);
    stdout
        .write_all(&reply)
        .and_then(|()| stdout.flush())
        .map_err(host("reply"))
}

fn find_or_spawn(args: &Args, bootstrap: &Bootstrap, bundle: &Path) -> Result<Address, StartError> {
    let facts = SpecFacts::read(bundle)?;
    let address = address(args, bootstrap, facts.group(&args.id));
    let failed = |source| StartError::Socket {
        address: address.clone(),
        source,
    };
    let listener = match address.bind().map_err(failed)? {
        Bound::Alive => return Ok(address),
        Bound::Ours(listener) => listener,
    };
    let spawned = daemon::spawn(args, bootstrap, &address, listener).and_then(|pid| {
        let options = Options::from_any(bootstrap.options.as_ref())?;
        daemon::place(pid, &options)
    });
    match spawned {
        Ok(()) => Ok(address),
        Err(error) => {
            let _ = address.remove();
            Err(error)
        }
    }
}

fn address(args: &Args, bootstrap: &Bootstrap, group: &str) -> Address {
    let params = bootstrap.params.as_ref();
    let directory = params
        .and_then(|params| params.socket_directory.as_ref())
        .map_or_else(|| PathBuf::from(DEFAULT_DIRECTORY), PathBuf::from);
    let containerd = params
        .map(|params| params.grpc_address.as_str())
        .filter(|address| !address.is_empty())
        .unwrap_or(&args.address);
    Address::new(&directory, containerd, &args.namespace, group)
}
