//! `kybernate`: checkpoint, restore, inspect and verify containers.
//!
//! ```text
//! args ──> commands/* ──┬─> kybernate_hooks: containerd, CRI      checkpoint restore doctor
//!                       └─> kybernate_oci: archives               inspect verify extract cat ls
//!                      └─> install: node profiles, containerd's configuration    install uninstall status
//!          output: stdout, for programs too    display, progress: for people
//! ```
#![forbid(unsafe_code)]

mod args;
mod commands;
mod display;
mod doctor;
mod install;
mod interrupt;
mod output;
mod progress;
mod recreate;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = args::Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("KYBERNATE_LOG").unwrap_or_else(|_| EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match commands::run(args) {
        Ok(code) => code,
        // `kybernate cat … | head` is no failure.
        Err(error) if output::reader_is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kybernate: {}", display::chain(&error));
            commands::exit_code(&error)
        }
    }
}
