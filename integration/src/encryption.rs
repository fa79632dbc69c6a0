//! Keys and settings for encrypted archives in a lab.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use kybernate_age::Identity;
use kybernate_oci::archive::Envelope;

use crate::{
    Lab,
    checkpoint::{Archive, run},
};

const KEYS: &str = "/etc/kybernate/keys";
const SETTINGS: &str = "/etc/kybernate/config.toml";

/// A key in a lab, and settings while it lives. The lab is as it was when it is dropped.
#[derive(Debug)]
pub struct Key {
    lab: Arc<Lab>,
    settings: String,
    /// Its file in the lab.
    pub file: String,
    /// Whom to encrypt to.
    pub recipient: String,
}

impl Key {
    /// Makes a key, which no settings name yet.
    pub fn new(lab: &Arc<Lab>) -> Result<Self> {
        let identity = Identity::generate()?;
        let file = format!("{KEYS}/node.agekey");
        fs::create_dir_all(lab.path(KEYS))?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(lab.path(&file))?
            .write_all(format!("# a key\n{}\n", *identity.to_secret_text()).as_bytes())?;
        Ok(Self {
            settings: fs::read_to_string(lab.path(SETTINGS)).context(SETTINGS)?,
            lab: lab.clone(),
            file,
            recipient: identity.recipient().to_string(),
        })
    }

    /// Adds to the lab's settings what it had before `text`, instead of what was added earlier.
    pub fn set(&self, text: &str) -> Result<()> {
        let text = format!("{}\n{text}\n", self.settings);
        fs::write(self.lab.path(SETTINGS), text)?;
        Ok(())
    }

    /// Settings that encrypt, with more lines for `[checkpoint]`.
    pub fn encrypts(&self, more: &str) -> String {
        format!(
            "[checkpoint]\nencrypt_to = ['{}']\n{more}\n",
            self.recipient
        )
    }

    /// Settings that decrypt.
    pub fn decrypts(&self) -> String {
        format!("[restore]\nidentities = ['{}']\n", self.file)
    }

    /// Makes sure that an archive has so many recipients, and that this key verifies it.
    pub async fn verifies(&self, archive: &Archive, recipients: usize) -> Result<()> {
        let envelope = Envelope::read(&archive.file())?.context("not encrypted")?;
        ensure!(envelope.recipients == recipients, "{envelope:?}");
        let verify = [
            "kybernate",
            "verify",
            &archive.path,
            "--identity",
            &self.file,
        ];
        run(&self.lab, &verify).await?.ok()?;
        Ok(())
    }

    /// Changes the mode of its file.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        let path = self.lab.path(&self.file);
        Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.lab.path(SETTINGS), &self.settings) {
            eprintln!("{SETTINGS} of the lab stays changed: {error}");
        }
        let _ = fs::remove_dir_all(self.lab.path(KEYS));
    }
}

/// Fails if a file below `directory` has one of the texts, or several files have nothing at all:
/// then there was nothing to find.
pub fn holds_none_of(directory: &Path, texts: &[&str]) -> Result<u64> {
    let mut bytes = 0;
    // Files of a staging directory may go while they are looked at.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            bytes += holds_none_of(&path, texts)?;
        } else if let Ok(content) = fs::read(&path) {
            for text in texts {
                let found = memchr::memmem::find(&content, text.as_bytes());
                ensure!(found.is_none(), "{text:?} is in {}", path.display());
            }
            bytes += content.len() as u64;
        }
    }
    Ok(bytes)
}
