//! Mounts of a root file system, as containerd's snapshotters describe them.
//!
//! mount(2) takes at most one page of options. An overlay of many layers needs more, since
//! every `lowerdir` is a long path; then the common directory of all layers becomes the
//! working directory of the thread that mounts, and the layers are named relative to it.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use containerd_shim_protos::api::Mount;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

pub mod idmap;
pub mod options;
pub mod table;

use options::MountOptions;

/// Most bytes of options that mount(2) takes: a page, less its end.
const PAGE_LIMIT: usize = 4095;
/// Attempts to unmount what is busy.
const UNMOUNT_ATTEMPTS: u32 = 50;
/// Pause between them.
const UNMOUNT_PAUSE: Duration = Duration::from_millis(50);

/// The mounts that this thread sees.
const MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// Why a root file system could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// mount(2), or what prepares it.
    #[error("cannot mount {source_name} ({kind}) at {target}: {source}")]
    Mount {
        /// What.
        source_name: String,
        /// File system type.
        kind: String,
        /// Where.
        target: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The options are longer than the kernel takes.
    #[error(
        "options of the {kind} at {target} have {length} bytes, more than {PAGE_LIMIT}; use fewer layers"
    )]
    TooLong {
        /// File system type.
        kind: String,
        /// Where.
        target: PathBuf,
        /// Their length.
        length: usize,
    },
    /// Options that this build does not know how to do.
    #[error("mount option {option:?} of the {kind} at {target} is not supported")]
    Unsupported {
        /// File system type.
        kind: String,
        /// Where.
        target: PathBuf,
        /// The option.
        option: String,
    },
    /// umount2(2).
    #[error("cannot unmount {target}: {source}")]
    Unmount {
        /// Where.
        target: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The mount table.
    #[error("cannot read {MOUNTINFO}: {0}")]
    Table(io::Error),
}

/// Mounts all, in order. On failure those before are unmounted.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), MountError> {
    for one in mounts {
        let at = mount_target(target, &one.target);
        if let Err(error) = mount_one(one, &at) {
            if let Err(error) = unmount_all(target) {
                tracing::warn!(%error, "a mount stays behind");
            }
            return Err(error);
        }
    }
    Ok(())
}

/// A mount's own target is relative to the root and stays in it.
fn mount_target(root: &Path, relative: &str) -> PathBuf {
    let parts = Path::new(relative).components();
    let inside = parts.filter(|part| matches!(part, std::path::Component::Normal(_)));
    inside.fold(root.to_owned(), |path, part| path.join(part))
}

fn mount_one(one: &Mount, target: &Path) -> Result<(), MountError> {
    let failed = |source: io::Error| MountError::Mount {
        source_name: one.source.clone(),
        kind: one.type_.clone(),
        target: target.into(),
        source,
    };
    if one.type_.starts_with("fuse.") || one.type_ == "fuse3" {
        return mount_by_helper(one, target).map_err(failed);
    }
    let mut options = MountOptions::parse(&one.options);
    if let Some(option) = options.unsupported.first() {
        return Err(MountError::Unsupported {
            kind: one.type_.clone(),
            target: target.into(),
            option: option.clone(),
        });
    }
    let overlay = one.type_ == "overlay";
    let shift = options.id_map.take();
    let base = if overlay && (shift.is_some() || !options.fits(PAGE_LIMIT)) {
        options.make_layers_relative()
    } else {
        None
    };
    if !options.fits(PAGE_LIMIT) {
        return Err(MountError::TooLong {
            kind: one.type_.clone(),
            target: target.into(),
            length: options.data.join(",").len(),
        });
    }
    let data = options.data.join(",");
    let call = Call {
        one,
        target,
        options: &options,
        data: &data,
    };
    let mount = || match (&base, &shift) {
        (None, None) => call.run(),
        (Some(base), None) => call.run_in(base),
        (Some(base), Some(shift)) => call.run_in(shift.clone_of(base)?.path()),
        (None, Some(_)) if overlay => Err(io::Error::other(
            "its layers have no directory in common to shift the owners of",
        )),
        (None, Some(shift)) => call.run().and_then(|()| shift.shift(target)),
    };
    mount().map_err(failed)
}

/// Runs in a thread that shares neither working directory nor root with others, so that it may
/// change them, or enter another mount namespace.
pub fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_FS)?;
            work()
        })?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Call<'a> {
    one: &'a Mount,
    target: &'a Path,
    options: &'a MountOptions,
    data: &'a str,
}

impl Call<'_> {
    fn run_in(&self, base: &Path) -> io::Result<()> {
        apart(|| {
            std::env::set_current_dir(base)?;
            self.run()
        })
    }

    fn run(&self) -> io::Result<()> {
        let MountOptions {
            flags, propagation, ..
        } = *self.options;
        let kind = Some(self.one.type_.as_str()).filter(|kind| !kind.is_empty());
        let remount = flags.contains(MsFlags::MS_REMOUNT);
        if !remount || !self.data.is_empty() {
            let source = Some(self.one.source.as_str());
            let data = Some(self.data).filter(|data| !data.is_empty());
            mount(source, self.target, kind, flags, data)?;
        }
        if !propagation.is_empty() {
            mount(
                None::<&str>,
                self.target,
                None::<&str>,
                propagation,
                None::<&str>,
            )?;
        }
        // The kernel takes the flags of a bind mount in a second step only.
        let bind_extra = flags.difference(MsFlags::MS_BIND | MsFlags::MS_REC);
        if flags.contains(MsFlags::MS_BIND) && !bind_extra.is_empty() {
            let flags = flags | MsFlags::MS_REMOUNT;
            mount(None::<&str>, self.target, None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    }
}

/// FUSE file systems are mounted by their programs: `fuse.NAME` by `mount.fuse.NAME`'s
/// convention `NAME SOURCE TARGET -o OPTIONS`.
fn mount_by_helper(one: &Mount, target: &Path) -> io::Result<()> {
    let program = match one.type_.strip_prefix("fuse.") {
        Some(name) => name.to_owned(),
        None => "mount.fuse3".to_owned(),
    };
    let mut command = std::process::Command::new(&program);
    command.arg(&one.source).arg(target);
    if !one.options.is_empty() {
        command.arg("-o").arg(one.options.join(","));
    }
    // Reaped with all other children: its end is the end of its stderr.
    let (mut reader, writer) = io::pipe()?;
    command
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .stdin(std::process::Stdio::null());
    drop(command.spawn()?);
    drop(command);
    let mut said = String::new();
    reader.read_to_string(&mut said)?;
    let mounted = mount_points(&fs::read_to_string(MOUNTINFO)?)
        .iter()
        .any(|point| point == target);
    if mounted {
        Ok(())
    } else {
        Err(io::Error::other(format!("{program}: {}", said.trim())))
    }
}

/// Unmounts everything at and below a directory, the last mount first. Nothing mounted is
/// no error.
pub fn unmount_all(target: &Path) -> Result<(), MountError> {
    let target = match fs::canonicalize(target) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(MountError::Unmount {
                target: target.into(),
                source,
            });
        }
    };
    let table = fs::read_to_string(MOUNTINFO).map_err(MountError::Table)?;
    for point in mount_points(&table)
        .iter()
        .rev()
        .filter(|point| point.starts_with(&target))
    {
        unmount(point)?;
    }
    Ok(())
}

fn unmount(point: &Path) -> Result<(), MountError> {
    for _ in 0..UNMOUNT_ATTEMPTS {
        match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EBUSY) => thread::sleep(UNMOUNT_PAUSE),
            // Not a mount (any more).
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => {
                return Err(MountError::Unmount {
                    target: point.into(),
                    source: error.into(),
                });
            }
        }
    }
    // Whoever holds it keeps it until they let go; nobody can reach it any more.
    umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(|error| {
        MountError::Unmount {
            target: point.into(),
            source: error.into(),
        }
    })
}

/// The mount points of a mount table, in order.
#[must_use]
pub fn mount_points(table: &str) -> Vec<PathBuf> {
    table::entries(table)
        .map(|entry| table::unescape(entry.point))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_stays_in_the_root() {
        let root = Path::new("/r");
        assert_eq!(mount_target(root, ""), Path::new("/r"));
        assert_eq!(mount_target(root, "/a/../../b"), Path::new("/r/a/b"));
    }

    #[test]
    fn nothing_mounted_is_unmounted_without_complaint() {
        let dir = tempfile::tempdir().unwrap();
        unmount_all(dir.path()).unwrap();
        unmount_all(&dir.path().join("missing")).unwrap();
    }
}
