//! `kybernate encrypt` and `kybernate decrypt`: the same archive in another envelope.

use std::{
    fs::{File, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::AtomicBool,
};

use anyhow::{Context, bail};
use kybernate_config::Settings;
use kybernate_oci::archive::{self, ConvertError};
use tempfile::{Builder, NamedTempFile};

use super::{identities, parent, runtime};
use crate::{
    args::{Decrypt, Encrypt},
    interrupt,
    output::Output,
};

/// Writes an encrypted copy.
pub fn encrypt(args: &Encrypt) -> anyhow::Result<()> {
    let recipients = match args.recipient.as_slice() {
        [] => Settings::load()?.checkpoint.encrypt_to,
        named => named.to_vec(),
    };
    if recipients.is_empty() {
        bail!("nobody to encrypt to: name a --recipient, or set checkpoint.encrypt_to");
    }
    convert(
        &args.file,
        &args.output,
        args.force,
        "encrypted",
        |to, cancelled| archive::encrypt(&args.file, to, &recipients, cancelled),
    )
}

/// Writes a plain copy.
pub fn decrypt(args: &Decrypt) -> anyhow::Result<()> {
    let identities = identities(&args.keys)?;
    convert(
        &args.file,
        &args.output,
        args.force,
        "decrypted",
        |to, cancelled| archive::decrypt(&args.file, to, &identities, cancelled),
    )
}

/// Writes beside `output`, and gives the result its name when it is safe on disk.
fn convert(
    file: &Path,
    output: &Path,
    force: bool,
    done: &str,
    write: impl FnOnce(File, &AtomicBool) -> Result<(), ConvertError>,
) -> anyhow::Result<()> {
    if !force && output.symlink_metadata().is_ok() {
        bail!("{} exists; --force replaces it", output.display());
    }
    let parent = parent(output);
    let cannot = || format!("cannot write {}", output.display());
    let partial = Builder::new()
        .prefix(".kybernate-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(parent)
        .with_context(cannot)?;
    let runtime = runtime()?;
    let cancelled = interrupt::flag(&runtime)?;
    write(partial.reopen().with_context(cannot)?, &cancelled)
        .with_context(|| format!("{} was not {done}", file.display()))?;
    publish(partial, output, force).with_context(cannot)?;
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .with_context(cannot)?;
    let mut out = Output::lock();
    writeln!(out, "{}: {done}", output.display())?;
    out.flush()?;
    Ok(())
}

fn publish(partial: NamedTempFile, output: &Path, force: bool) -> std::io::Result<()> {
    let published = if force {
        partial.persist(output)
    } else {
        partial.persist_noclobber(output)
    };
    published.map(drop).map_err(|error| error.error)
}
