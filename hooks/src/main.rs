//! `kybernate-cri-hooks`: stands between kubelet and containerd.
#![forbid(unsafe_code)]

use std::{error::Error, io, process::ExitCode};

use clap::{Parser, ValueEnum};
use kybernate_config::Settings;
use kybernate_hooks::daemon;
use tracing_subscriber::EnvFilter;

/// Passes kubelet's calls on to containerd, and takes the checkpoints of class containers.
#[derive(Debug, Parser)]
#[command(name = "kybernate-cri-hooks", version)]
struct Args {
    /// How the log is written to standard error.
    #[arg(long, value_enum, default_value_t = Format::Text, env = "KYBERNATE_LOG_FORMAT")]
    log_format: Format,
}

/// A form of the log.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

// One thread: passing is copying, and a thread more would only move bytes between caches. Each
// checkpoint brings its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_env("KYBERNATE_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    let log = log.with_writer(io::stderr).with_ansi(false);
    match args.log_format {
        Format::Text => log.init(),
        Format::Json => log.json().init(),
    }
    let Err(error) = serve().await else {
        return ExitCode::SUCCESS;
    };
    tracing::error!("{error}");
    ExitCode::FAILURE
}

async fn serve() -> Result<(), Box<dyn Error>> {
    daemon::run(Settings::load()?).await
}
