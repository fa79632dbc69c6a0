//! An archive that grows: its file, and CRIU's page images in it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use kybernate_oci::archive::{EntryStream, Writer};

use super::{
    super::{
        CheckpointError,
        page_server::{PageImages, Pages},
    },
    host,
};

/// An archive that is removed unless it was completed.
pub struct Partial(Option<PathBuf>);

impl Partial {
    /// Makes the file; there must be none.
    pub fn create(path: &Path) -> Result<Self, CheckpointError> {
        let options = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        options.map_err(host("create", path))?;
        Ok(Self(Some(path.into())))
    }

    /// Opens it.
    pub fn open(&self) -> Result<File, CheckpointError> {
        let path = self.0.as_deref().expect("held until kept");
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(host("open", path))
    }

    /// Lets it stay.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
            // Its client can be the first.
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a partial archive");
        }
    }
}

/// Page images as entries of the archive.
pub struct Images(pub Writer);

struct Stream<'a>(EntryStream<'a>);

impl PageImages for Images {
    fn pages(&mut self, name: &str) -> io::Result<Box<dyn Pages + '_>> {
        Ok(Box::new(Stream(
            self.0.stream(&format!("checkpoint/{name}"))?,
        )))
    }
}

impl Pages for Stream<'_> {
    fn space(&mut self) -> io::Result<&mut [u8]> {
        Ok(self.0.space()?)
    }

    fn filled(&mut self, n: usize) {
        self.0.filled(n);
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.finish()?;
        Ok(())
    }
}
