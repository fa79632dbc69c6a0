//! `kybernate-nri`: registers with the container runtime and prepares class pods' containers.
#![forbid(unsafe_code)]

use std::{env, error::Error, io, path::PathBuf, process::ExitCode};

use clap::Parser;
use kybernate_config::Settings;
use kybernate_nri::{
    nri::{
        connect::{self, INDEX_VARIABLE, Identity, NAME_VARIABLE, SOCKET_VARIABLE},
        stub::Stub,
    },
    plugin::{Plugin, policy::Policy},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Prepares the containers of chosen pods for checkpoint and restore.
#[derive(Debug, Parser)]
#[command(name = "kybernate-nri", version)]
struct Args {
    /// The runtime's NRI socket; not used when the runtime has launched the plugin.
    #[arg(long)]
    socket: Option<PathBuf>,
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
    let settings = Settings::load()?;
    let plugin = Plugin::new(Policy::new(&settings)?);
    let settings = settings.nri;
    let stop = CancellationToken::new();
    kybernate_nri::cancel_on_signal(&stop)?;
    if let Ok(descriptor) = env::var(SOCKET_VARIABLE) {
        let name = env::var(NAME_VARIABLE).unwrap_or(settings.name);
        let index = env::var(INDEX_VARIABLE).unwrap_or(settings.index);
        let stub = Stub::new(Identity::new(&name, &index)?, plugin);
        let session = stub.serve(connect::inherit(&descriptor)?);
        return Ok(stop
            .run_until_cancelled(session)
            .await
            .transpose()
            .map(drop)?);
    }
    let stub = Stub::new(Identity::new(&settings.name, &settings.index)?, plugin);
    stub.run(&args.socket.unwrap_or(settings.socket), &stop)
        .await;
    Ok(())
}
