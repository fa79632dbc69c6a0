//! Overlay mounts in a temporary directory, gone with the value that made them.

use std::fs;
use std::path::{Path, PathBuf};

use kybernate_oci::rootfs::{Applied, Devices, Diff, Limits, Overlay, apply, diff};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// Device nodes allowed, as for a container with CAP_MKNOD.
pub const ALL: Limits = Limits {
    entries: 1 << 20,
    bytes: 1 << 36,
    waiting: 1 << 30,
    devices: Devices::Make,
};

/// A stack of layers that grows, and roots mounted on it.
pub struct Lab {
    dir: TempDir,
    /// Topmost first.
    layers: Vec<PathBuf>,
    options: &'static str,
    roots: std::cell::Cell<u32>,
}

/// One mounted root. Unmounted when dropped.
pub struct Root {
    pub merged: PathBuf,
    upper: PathBuf,
}

impl Lab {
    /// A lab with one empty layer, or `None`, after saying why, where overlays can't be had.
    pub fn new(options: &'static str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: overlay mounts need root");
            return None;
        }
        // Not /tmp, which may be an overlay or tmpfs without extended attributes.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bottom = dir.path().join("bottom");
        fs::create_dir(&bottom).unwrap();
        let lab = Self {
            dir,
            layers: vec![bottom],
            options,
            roots: 0.into(),
        };
        match lab.try_root() {
            Ok(_) => Some(lab),
            Err(error) => {
                println!("SKIPPED: cannot mount an overlay ({options}) here: {error}");
                None
            }
        }
    }

    /// The bottom layer, to be filled before anything is mounted.
    pub fn bottom(&self) -> &Path {
        self.layers.last().unwrap()
    }

    /// Mounts a fresh root on the layers.
    pub fn root(&self) -> Root {
        self.try_root().unwrap()
    }

    /// Makes what was changed in a root the topmost layer.
    pub fn commit(&mut self, root: Root) {
        self.layers.insert(0, root.upper.clone());
        drop(root);
    }

    fn try_root(&self) -> nix::Result<Root> {
        let number = self.roots.get();
        self.roots.set(number + 1);
        let base = self.dir.path().join(format!("root{number}"));
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| base.join(name));
        for dir in [&upper, &work, &merged] {
            fs::create_dir_all(dir).unwrap();
        }
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| layer.to_str().unwrap())
            .collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},{}",
            layers.join(":"),
            upper.display(),
            work.display(),
            self.options
        );
        let none = MsFlags::empty();
        mount(
            Some("overlay"),
            &merged,
            Some("overlay"),
            none,
            Some(options.as_str()),
        )?;
        Ok(Root { merged, upper })
    }
}

impl Root {
    /// What the kernel says about this mount.
    pub fn overlay(&self) -> Overlay {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        Overlay::of_mount(&mounts, &self.merged)
            .unwrap()
            .resolved()
            .unwrap()
    }

    /// Its changes.
    pub fn diff(&self) -> (Vec<u8>, Diff) {
        let mut tar = Vec::new();
        let found = diff(&self.overlay(), &self.merged, &mut tar).unwrap();
        (tar, found)
    }

    /// Puts changes onto it.
    pub fn apply(&self, tar: &[u8], found: &Diff) -> Applied {
        apply(&self.merged, tar, &found.deleted, &ALL).unwrap()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Detached: a child that another test is just starting may hold our descriptors.
        if let Err(error) = umount2(&self.merged, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.merged.display());
        }
    }
}
