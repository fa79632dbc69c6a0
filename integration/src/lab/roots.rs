//! Root file systems of labs: built once by `lab/root.sh`, kept under `.lab/`, never written.
//!
//! A root is found by the hash of the script that makes it, so a changed script means a new
//! root and an old checkout keeps its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::Distro;
use crate::image::{catalog::Catalog, hex};

/// A complete root and what identifies it.
#[derive(Debug, Clone)]
pub struct Root {
    /// Where it lies.
    pub path: PathBuf,
    /// Changes when the root would be built differently.
    pub key: String,
}

/// Where roots, images, running labs and their logs lie: `KYBERNATE_LAB_DIR`, or `.lab` in the
/// workspace.
pub fn lab_dir() -> Result<PathBuf> {
    let dir = std::env::var_os("KYBERNATE_LAB_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.lab"),
        PathBuf::from,
    );
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    dir.canonicalize()
        .with_context(|| format!("cannot find {}", dir.display()))
}

/// The root of a distribution and its images; builds them when they are missing.
pub fn prepare(distro: Distro) -> Result<(Root, Catalog)> {
    let dir = lab_dir()?;
    // Test binaries may run at the same time; one builds and the others wait.
    let lock = File::create(dir.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let root = root(&dir, distro)?;
    let catalog = Catalog::build(&root).context("cannot make the lab's images")?;
    Ok((root, catalog))
}

/// Whether the distribution's root is there already.
pub fn is_built(distro: Distro) -> bool {
    lab_dir().is_ok_and(|dir| dir.join(directory_name(distro)).is_dir())
}

/// A short key over some texts.
pub(crate) fn key_of(texts: &[String]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    hex(&hash.finalize()[..6])
}

fn directory_name(distro: Distro) -> String {
    let key = key_of(&[include_str!("../../lab/root.sh").into()]);
    format!("root-{distro}-{key}")
}

fn root(dir: &Path, distro: Distro) -> Result<Root> {
    let key = directory_name(distro);
    let path = dir.join(&key);
    if path.is_dir() {
        return Ok(Root { path, key });
    }
    eprintln!("building {} (once, about a minute)", path.display());
    let log = dir.join(format!("{key}.log"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/root.sh");
    let mut command = Command::new(script);
    command.arg(distro.to_string()).arg(&path);
    if distro == Distro::Forky {
        command.arg(root(dir, Distro::Trixie)?.path);
    }
    let output = File::create(&log)?;
    let status = command
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("cannot run lab/root.sh")?;
    if !status.success() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let tail: Vec<_> = text.lines().rev().take(15).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        anyhow::bail!(
            "lab/root.sh {distro}: {status}; its last lines:\n{}",
            tail.join("\n")
        );
    }
    ensure!(path.is_dir(), "lab/root.sh made no {}", path.display());
    Ok(Root { path, key })
}
