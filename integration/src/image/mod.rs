//! Container images without a registry: an OCI image layout in a tar, made from files.
//!
//! ```text
//! oci-layout                          {"imageLayoutVersion":"1.0.0"}
//! index.json                          → manifest, named by io.containerd.image.name
//! blobs/sha256/<config>               architecture, environment, entry point, diff id
//! blobs/sha256/<manifest>             → config, one layer
//! blobs/sha256/<layer>                plain tar
//! ```

pub mod catalog;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// An image in the making: a list of what its one layer holds.
#[derive(Debug)]
pub struct Image {
    name: String,
    program: String,
    entries: Vec<Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory(String, u32),
    File(String, PathBuf, u32),
    Text(String, String),
    Link(String, String),
}

impl Image {
    /// An empty image of the given reference, like `kybernate.test/lab:1`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            program: "/bin/sh".into(),
            entries: Vec::new(),
        }
    }

    /// Sets what runs when a container names no command; `/bin/sh` otherwise.
    pub fn program(mut self, path: &str) -> Self {
        self.program = path.into();
        self
    }

    /// Adds a directory with the given permission bits.
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        self.entries.push(Entry::Directory(path.into(), mode));
        self
    }

    /// Adds a file of the host under `path` with the given permission bits.
    pub fn file(mut self, path: &str, from: impl Into<PathBuf>, mode: u32) -> Self {
        self.entries
            .push(Entry::File(path.into(), from.into(), mode));
        self
    }

    /// Adds a file with the given content, readable by all.
    pub fn text(mut self, path: &str, content: &str) -> Self {
        self.entries.push(Entry::Text(path.into(), content.into()));
        self
    }

    /// Adds a symbolic link.
    pub fn link(mut self, path: &str, to: &str) -> Self {
        self.entries.push(Entry::Link(path.into(), to.into()));
        self
    }

    /// Adds everything below `from` under the directory `path`, links as links.
    pub fn tree(mut self, path: &str, from: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        self.entries.push(Entry::Directory(path.into(), 0o755));
        let mut names: Vec<_> = fs::read_dir(from)
            .with_context(|| format!("cannot list {}", from.display()))?
            .collect::<io::Result<_>>()?;
        names.sort_by_key(|entry| entry.file_name());
        for entry in names {
            let to = format!("{path}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self = self.tree(&to, &entry.path())?;
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                self.entries
                    .push(Entry::Link(to, target.to_string_lossy().into()));
            } else if kind.is_file() {
                let mode = entry.metadata()?.permissions().mode() & 0o7777;
                self.entries.push(Entry::File(to, entry.path(), mode));
            }
        }
        Ok(self)
    }

    /// Writes the image as a tar that `ctr images import` reads.
    pub fn write(&self, to: &Path) -> Result<()> {
        let layer = self.layer().context("cannot make the image's layer")?;
        let layer_digest = digest(&layer);
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": [self.program],
            },
            "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let mut listed = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        listed["annotations"] = json!({ "io.containerd.image.name": self.name });
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [listed],
        }))?;

        let partial = to.with_extension("partial");
        let mut tar = Builder::new(File::create(&partial)?);
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        append(&mut tar, "oci-layout", 0o644, layout.len(), &layout[..])?;
        append(&mut tar, "index.json", 0o644, index.len(), &index[..])?;
        for blob in [&config, &manifest, &layer] {
            let name = digest(blob).replace(':', "/");
            append(
                &mut tar,
                &format!("blobs/{name}"),
                0o644,
                blob.len(),
                &blob[..],
            )?;
        }
        tar.into_inner()?.flush()?;
        fs::rename(&partial, to)?;
        Ok(())
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for entry in &self.entries {
            match entry {
                Entry::Directory(path, mode) => {
                    let mut header = header(EntryType::Directory, *mode, 0);
                    tar.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
                Entry::File(path, from, mode) => {
                    let file = File::open(from)
                        .with_context(|| format!("cannot read {}", from.display()))?;
                    let size = usize::try_from(file.metadata()?.len())?;
                    append(&mut tar, path, *mode, size, file)?;
                }
                Entry::Text(path, content) => {
                    append(&mut tar, path, 0o644, content.len(), content.as_bytes())?;
                }
                Entry::Link(path, target) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header
}

fn append(
    tar: &mut Builder<impl Write>,
    path: &str,
    mode: u32,
    size: usize,
    data: impl Read,
) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, size as u64);
    tar.append_data(&mut header, path, data)?;
    Ok(())
}

fn digest(data: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(data)))
}

/// Lower-case hexadecimal digits of some bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn descriptor(media_type: &str, data: &[u8]) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest(data), "size": data.len() })
}

/// The name that OCI gives the architecture we run on.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_holds_what_its_descriptors_name() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("program");
        fs::write(&source, b"#!/bin/sh\n").unwrap();
        let path = dir.path().join("image.tar");
        Image::new("kybernate.test/x:1")
            .directory("bin", 0o755)
            .file("bin/program", &source, 0o755)
            .link("bin/alias", "program")
            .write(&path)
            .unwrap();

        let mut found = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(File::open(&path).unwrap())
            .entries()
            .unwrap()
        {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            found.insert(name, data);
        }
        let json = |data: &[u8]| serde_json::from_slice::<serde_json::Value>(data).unwrap();
        let blob = |descriptor: &serde_json::Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let data = &found[&format!("blobs/{}", digest.replace(':', "/"))];
            assert_eq!(descriptor["size"], data.len());
            data.clone()
        };
        let index = json(&found["index.json"]);
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
        let layer = blob(&manifest["layers"][0]);
        let names: Vec<_> = tar::Archive::new(&layer[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["bin/", "bin/program", "bin/alias"]);
    }
}
