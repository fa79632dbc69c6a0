//! What goes into the archive once the container runs again.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use kybernate_oci::archive::Writer;
use serde_json::Value;

use super::{
    super::{
        CheckpointError,
        dump::{LOG, Plan, STATS},
        files,
        page_server::Received,
        request::Request,
    },
    host,
};
use crate::container::Container;

/// Everything that does not change any more when the container runs again.
pub fn append(
    writer: &mut Writer,
    container: &Container,
    spec: &Value,
    plan: &Plan,
    received: Received,
    request: &Request,
    warnings: &mut Vec<String>,
) -> Result<(), CheckpointError> {
    for (name, content) in &received.pagemaps {
        writer.bytes(&format!("checkpoint/{name}"), content)?;
    }
    for (name, path) in list(&plan.images)? {
        add_file(writer, &format!("checkpoint/{name}"), &path)?;
    }
    writer.bytes(
        "spec.dump",
        &files::read(&container.bundle.join("config.json"))?,
    )?;
    writer.bytes("bind.mounts", &files::bind_mounts(spec))?;
    for name in [LOG, STATS] {
        let path = plan.work.join(name);
        if path.exists() {
            add_file(writer, name, &path)?;
        }
    }
    for (name, path) in &request.include {
        match open(path) {
            Ok(_) => add_file(writer, name, path)?,
            // A container without output has no log; the archive says so and is whole.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                warnings.push(format!("{name} was asked for and is not there"));
            }
            Err(source) => {
                return Err(CheckpointError::Host {
                    action: "open",
                    path: path.clone(),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Adds a file of the length it has now: a log may grow while it is read.
fn add_file(writer: &mut Writer, name: &str, path: &Path) -> Result<(), CheckpointError> {
    let mut file = open(path).map_err(host("open", path))?;
    let size = file.metadata().map_err(host("inspect", path))?.len();
    Ok(writer.file(name, &mut io::Read::take(&mut file, size), size)?)
}

/// Opens a regular file, following no link at its end.
fn open(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}

fn list(directory: &Path) -> Result<Vec<(String, PathBuf)>, CheckpointError> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
        .map_err(host("list", directory))?
        .into_iter()
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .collect();
    found.sort();
    Ok(found)
}
