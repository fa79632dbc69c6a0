//! `kybernate-nri`: registers with the container runtime and prepares class pods' containers.
#![forbid(unsafe_code)]

use std::{env, error::Error, io, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Parser;
use kybernate_config::{Settings, settings::NriSettings};
use kybernate_nri::{
    nri::{
        connect::{self, ConnectError, INDEX_VARIABLE, Identity, NAME_VARIABLE, SOCKET_VARIABLE},
        stub::Stub,
    },
    plugin::{
        Plugin,
        launched::{File, Launched, Node},
        policy::Policy,
    },
    standby::{self, Standby},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// Prepares the containers of chosen pods for checkpoint and restore.
#[derive(Debug, Parser)]
#[command(name = "kybernate-nri", version)]
struct Args {
    /// The runtime's NRI socket; not used when the runtime has launched the plugin.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Stands by for a plugin that this runtime has launched, by its pid.
    #[arg(long, hide = true)]
    standby_of: Option<i32>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("KYBERNATE_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(io::stderr).with_ansi(false).init();
    let Err(error) = serve(Args::parse()).await else {
        return ExitCode::SUCCESS;
    };
    tracing::error!("{error}");
    ExitCode::FAILURE
}

async fn serve(args: Args) -> Result<(), Box<dyn Error>> {
    let stop = CancellationToken::new();
    kybernate_nri::cancel_on_signal(&stop)?;
    if let Ok(descriptor) = env::var(SOCKET_VARIABLE) {
        let node = Node::new(Settings::load());
        return match args.standby_of {
            None => launched(&descriptor, node, &stop).await,
            Some(runtime) => stand_by(runtime, &descriptor, node, &stop).await,
        };
    }
    let settings = Settings::load()?;
    let plugin = Plugin::new(Policy::new(&settings)?);
    let settings = settings.nri;
    let stub = Stub::new(Identity::new(&settings.name, &settings.index)?, plugin);
    stub.run(&args.socket.unwrap_or(settings.socket), &stop)
        .await;
    Ok(())
}

/// As the runtime names a plugin that it launches. It goes by its own names and not by what the
/// plugin registers as.
fn given_identity() -> Result<Identity, ConnectError> {
    let NriSettings { name, index, .. } = NriSettings::default();
    let given = |variable, or: &str| env::var(variable).unwrap_or_else(|_| or.to_owned());
    Identity::new(&given(NAME_VARIABLE, &name), &given(INDEX_VARIABLE, &index))
        .inspect_err(|error| warn!("{error}; registering as {index}-{name}"))
        .or_else(|_| Identity::new(&name, &index))
}

/// Serves the runtime that has launched this process, until it hangs up.
async fn launched(
    descriptor: &str,
    node: Node,
    stop: &CancellationToken,
) -> Result<(), Box<dyn Error>> {
    let trunk = connect::inherit(descriptor)?;
    let standby = Standby::start(descriptor.parse()?)
        .inspect_err(|error| warn!("nobody stands by: {error}"))
        .ok()
        .map(Arc::new);
    let file = File::Handed(standby.clone());
    let stub = Stub::new(given_identity()?, Launched::new(node, file));
    if let Some(ended) = stop.run_until_cancelled(stub.serve(trunk)).await {
        return Ok(ended?);
    }
    if let Some(standby) = standby {
        standby.dismiss()?;
    }
    Ok(())
}

/// Waits until the plugin has ended that the runtime has launched, and goes on over the socket
/// until the runtime ends.
async fn stand_by(
    runtime: i32,
    descriptor: &str,
    node: Node,
    stop: &CancellationToken,
) -> Result<(), Box<dyn Error>> {
    standby::cancel_with(runtime, stop.clone())?;
    let told = standby::told(connect::inherit(descriptor)?);
    let Some(file) = stop.run_until_cancelled(told).await.transpose()?.flatten() else {
        return Ok(());
    };
    info!("the runtime is there and the plugin that it launched is not; connecting to it");
    let socket = node.nri.socket.clone();
    let stub = Stub::new(given_identity()?, Launched::new(node, File::Known(file)));
    stub.run(&socket, stop).await;
    Ok(())
}
