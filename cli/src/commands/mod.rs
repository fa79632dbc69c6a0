//! One module per command.

mod cat;
mod checkpoint;
mod completions;
mod config;
mod convert;
mod doctor;
mod extract;
mod inspect;
mod install;
mod ls;
mod man;
mod restore;
mod sign;
mod verify;

use std::{path::Path, process::ExitCode};

use anyhow::Context;
use kybernate_age::{Identity, read_identities};
use kybernate_config::Settings;
use kybernate_hooks::client::CheckpointError;
use kybernate_oci::archive::{Archive, ConvertError, ReadError};

use crate::{
    args::{Args, Command, ConfigCommand, Keys},
    interrupt::Interrupted,
};

/// What a shell reports of a command that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Runs the command that `args` name.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = || -> anyhow::Result<Settings> {
        let mut settings = Settings::load()?;
        if let Some(socket) = args.socket.clone() {
            settings.containerd.socket = socket;
        }
        Ok(settings)
    };
    match &args.command {
        Command::Checkpoint(args) => checkpoint::run(args, &settings()?)?,
        Command::Restore(args) => restore::run(args, &settings()?)?,
        Command::Inspect(args) => inspect::run(args)?,
        Command::Verify(args) => verify::run(args)?,
        Command::Sign(args) => sign::run(args)?,
        Command::Encrypt(args) => convert::encrypt(args)?,
        Command::Decrypt(args) => convert::decrypt(args)?,
        Command::Extract(args) => extract::run(args)?,
        Command::Cat(args) => cat::run(args)?,
        Command::Ls(args) => ls::run(args)?,
        Command::Doctor(args) => return doctor::run(args, &settings()?),
        Command::Install(args) => install::install(args, false)?,
        Command::Upgrade(args) => install::install(args, true)?,
        Command::Uninstall(args) => install::uninstall(args)?,
        Command::Status(args) => return install::status(args),
        Command::Config {
            command: ConfigCommand::Show(show),
        } => config::show(show, args.socket.as_ref())?,
        Command::Completions { shell } => completions::run(*shell)?,
        Command::Man { directory } => man::run(directory.as_deref())?,
        Command::EnterNode { line } => crate::install::enter(line)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The exit code of a failed command.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if interrupted(error) {
        ExitCode::from(INTERRUPTED)
    } else {
        ExitCode::FAILURE
    }
}

/// Whether a signal has ended a command.
fn interrupted(error: &anyhow::Error) -> bool {
    let checkpoint = matches!(
        error.downcast_ref(),
        Some(CheckpointError::Interrupted { .. })
    );
    let read = matches!(error.downcast_ref(), Some(ReadError::Cancelled));
    let convert = matches!(
        error.downcast_ref(),
        Some(ConvertError::Read(ReadError::Cancelled))
    );
    checkpoint || read || convert || error.is::<Interrupted>()
}

/// Opens an archive; errors of the library do not all name the file.
fn open(file: &Path, keys: &Keys) -> anyhow::Result<Archive> {
    let opened = match Archive::open(file) {
        // Without identities this says the same again.
        Err(ReadError::Encrypted { .. }) => Archive::open_with(file, &identities(keys)?),
        other => other,
    };
    opened.with_context(|| format!("cannot use {} as an archive", file.display()))
}

/// The identities that were named, else those of the settings.
fn identities(keys: &Keys) -> anyhow::Result<Vec<Identity>> {
    let files = match keys.identity.as_slice() {
        [] => Settings::load()?.restore.identities,
        named => named.to_vec(),
    };
    let mut identities = Vec::new();
    for file in files {
        identities.extend(read_identities(&file)?);
    }
    Ok(identities)
}

/// The directory of a file.
fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A runtime for commands that talk to containerd.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_signal_ends_says_so() {
        let wrapped = |error: anyhow::Error| error.context("a was not decrypted");
        for error in [
            ReadError::Cancelled.into(),
            ConvertError::Read(ReadError::Cancelled).into(),
            Interrupted("the new container is removed").into(),
        ] {
            assert!(interrupted(&wrapped(error)));
        }
        for error in [
            ConvertError::Plain.into(),
            ReadError::Manifest { fault: "damaged" }.into(),
        ] {
            assert!(!interrupted(&wrapped(error)));
        }
    }
}
