//! Asking containerd itself what a configuration means, before it is put in place.
//!
//! `containerd --config FILE config dump` prints a configuration with imports merged and defaults
//! filled in, and fails where containerd would not start. It is asked twice, for the old and for
//! the new one: they may differ in our runtime and in NRI's switch, and in nothing else.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    containerd::Config,
    edit::{Text, string},
    host::Host,
    locate::Loaded,
    receipt::STATE_DIR,
};

/// What a containerd said to a configuration.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The present configuration is broken.
    #[error("containerd does not accept its present configuration: {0}")]
    Before(String),
    /// The new one would be.
    #[error("containerd would not accept the new configuration: {0}")]
    After(String),
    /// The new one means something else than was wanted.
    #[error("the new configuration would change more than it should: {0}")]
    Foreign(String),
    /// Our runtime is not in it.
    #[error("containerd reads the new configuration and does not find the runtime in it")]
    Lost,
    /// The files for it could not be written.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What containerd makes of its present files; nothing where it can't be asked.
pub fn present(
    host: &Host,
    containerd: &Path,
    files: &[Loaded],
) -> Result<Option<Config>, CheckError> {
    dump(host, containerd, files).map_err(|error| match error {
        CheckError::After(why) => CheckError::Before(why),
        other => other,
    })
}

/// What containerd makes of files; nothing where it can't be asked.
fn dump(host: &Host, containerd: &Path, files: &[Loaded]) -> Result<Option<Config>, CheckError> {
    let directory = Path::new(STATE_DIR).join("check");
    let outside = host
        .root
        .target(&directory)
        .map_err(|source| io_error(&directory, source))?;
    let written = write(&outside, &directory, files);
    let said = written
        .map_err(|source| io_error(&directory, source))
        .map(|main| {
            let main = main.display().to_string();
            host.ask(containerd, &["--config", &main, "config", "dump"])
        });
    let _ = fs::remove_dir_all(&outside);
    match said? {
        None => Ok(None),
        Some(said) if said.success => Config::parse(&said.stdout)
            .map(Some)
            .map_err(|why| CheckError::After(format!("what it prints does not parse: {why}"))),
        Some(said) => Err(CheckError::After(last_line(&said.stderr))),
    }
}

/// Compares what containerd makes of two configurations.
pub fn compare(
    host: &Host,
    containerd: &Path,
    before: &[Loaded],
    after: &[Loaded],
    has_ours: impl Fn(&Config) -> bool,
) -> Result<bool, CheckError> {
    let old = present(host, containerd, before)?;
    let (Some(old), Some(new)) = (old, dump(host, containerd, after)?) else {
        return Ok(false);
    };
    if !has_ours(&new) {
        return Err(CheckError::Lost);
    }
    match new.foreign_change(&old) {
        Some(change) => Err(CheckError::Foreign(change)),
        None => Ok(true),
    }
}

/// Writes files under other names, the first importing the others in their order.
fn write(outside: &Path, inside: &Path, files: &[Loaded]) -> io::Result<PathBuf> {
    fs::create_dir_all(outside)?;
    let name = |index: usize| format!("{index}.toml");
    let imported: Vec<String> = (1..files.len())
        .map(|index| string(&inside.join(name(index)).display().to_string()))
        .collect();
    for (index, file) in files.iter().enumerate() {
        let mut text = Text::parse(&file.text).map_err(io::Error::other)?;
        let list = if index == 0 {
            format!("[{}]", imported.join(", "))
        } else {
            "[]".to_owned()
        };
        text.replace(&["imports"], &list)
            .map_err(io::Error::other)?;
        fs::write(outside.join(name(index)), text.into_parts().0)?;
    }
    if files.is_empty() {
        fs::write(outside.join(name(0)), "version = 2\n")?;
    }
    Ok(inside.join(name(0)))
}

fn last_line(text: &str) -> String {
    text.trim().lines().last().unwrap_or_default().to_owned()
}

fn io_error(path: &Path, source: io::Error) -> CheckError {
    CheckError::Io {
        path: path.into(),
        source,
    }
}
