//! The layers of an overlay mount, from the text of `/proc/self/mountinfo`.
//!
//! ```text
//! 36 25 0:31 / /run/…/rootfs rw,relatime shared:9 - overlay overlay rw,lowerdir=…,upperdir=…,workdir=…
//!            ^root ^mount point           optional ^ ^type  ^source ^super options
//! ```
//! The kernel writes blanks, tabs, newlines, backslashes and, in options, commas as `\ooo`.
//! Layers appear in one of two forms (fs/overlayfs/params.c, Linux 6.8): `lowerdir=A:B::D`
//! as the mounter wrote it, with `\:` for a colon that is part of a name and `::` before
//! data-only layers, or one `lowerdir+=A` and `datadir+=D` per layer. `upperdir` and `workdir`
//! keep the mounter's backslashes too.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::anchor::normal;

/// An overlay mount that can be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Read-only layers whose directories are merged, topmost first. Data-only layers are not
    /// among them. As mounted: they may be relative to a directory that only the mounter knew
    /// (see [`Overlay::resolved`]).
    pub lower: Vec<PathBuf>,
    /// Where the kernel keeps what was changed.
    pub upper: PathBuf,
    /// The kernel's scratch directory.
    pub work: PathBuf,
    /// Whether overlayfs keeps its marks in `user.overlay.*` instead of `trusted.overlay.*`
    /// (mount option `userxattr`).
    pub user_xattrs: bool,
}

/// Why a mount has no changes that could be taken.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Nothing is mounted there.
    #[error("nothing is mounted at {}: mount the container's root file system there first", target.display())]
    NotMounted {
        /// The path that was looked up.
        target: PathBuf,
    },
    /// Another kind of file system.
    #[error("{} is {fstype}, not overlay: its changes cannot be told from its image", target.display())]
    NotOverlay {
        /// The mount point.
        target: PathBuf,
        /// Its file system type.
        fstype: String,
    },
    /// An overlay of read-only layers alone: nothing in it can have changed.
    #[error("{} is an overlay without upperdir: it is read-only and holds no changes", target.display())]
    NoUpper {
        /// The mount point.
        target: PathBuf,
    },
    /// A directory of an overlay, bound somewhere else.
    #[error("{} is bound from {} inside an overlay: name the overlay's own mount point", target.display(), root.display())]
    Bound {
        /// The mount point.
        target: PathBuf,
        /// The directory of the overlay that is mounted there.
        root: PathBuf,
    },
    /// A line of the kernel's that this parser does not understand.
    #[error("mountinfo line {line:?} has {what}: please report it")]
    Malformed {
        /// The line.
        line: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Relative layers, and no directory in which all of them are.
    #[error(
        "layer {} is relative and lies in no directory above {}: the mounter's directory is unknown",
        layer.display(), upper.display()
    )]
    Unplaced {
        /// The first layer that was not found.
        layer: PathBuf,
        /// The upper directory, from which the search went upwards.
        upper: PathBuf,
    },
}

impl Overlay {
    /// The overlay mounted at `target`, an absolute path without symbolic links, according to
    /// `mountinfo` (the text of `/proc/self/mountinfo`). Where mounts are stacked, the topmost.
    ///
    /// # Errors
    /// All of [`MountError`] but `Unplaced`; a caller that treats "no changes possible" as an
    /// answer matches on `NoUpper`.
    pub fn of_mount(mountinfo: &str, target: &Path) -> Result<Self, MountError> {
        let mut found = None;
        for line in mountinfo.lines().filter(|line| !line.is_empty()) {
            let mount = Line::parse(line)?;
            if mount.point == target {
                found = Some(mount);
            }
        }
        let target = target.to_owned();
        let Some(mount) = found else {
            return Err(MountError::NotMounted { target });
        };
        if mount.fstype != "overlay" {
            return Err(MountError::NotOverlay {
                target,
                fstype: mount.fstype.to_owned(),
            });
        }
        if mount.root != Path::new("/") {
            return Err(MountError::Bound {
                target,
                root: mount.root,
            });
        }
        let options = Options::parse(mount.options);
        let (Some(upper), Some(work)) = (options.upper, options.work) else {
            return Err(MountError::NoUpper { target });
        };
        if options.lower.is_empty() {
            return Err(MountError::Malformed {
                line: mount.line.to_owned(),
                what: "an overlay without lower layers",
            });
        }
        Ok(Self {
            lower: options.lower,
            upper,
            work,
            user_xattrs: options.user_xattrs,
        })
    }

    /// The same overlay with every path absolute.
    ///
    /// Container engines with many layers change into the directory that holds them and mount
    /// relative names (containerd: `12/fs`, podman: `l/ABCDEF`), since all options must fit
    /// in one page. That directory is above the upper directory; the nearest one in which
    /// every relative layer exists is taken.
    ///
    /// # Errors
    /// [`MountError::Unplaced`] when there is none.
    pub fn resolved(mut self) -> Result<Self, MountError> {
        if self.upper.is_relative() {
            return Err(MountError::Unplaced {
                layer: self.upper.clone(),
                upper: self.upper,
            });
        }
        let Some(first) = self.lower.iter().find(|layer| layer.is_relative()).cloned() else {
            return Ok(self);
        };
        let relative: Vec<_> = self
            .lower
            .iter()
            .filter(|layer| layer.is_relative())
            .collect();
        let base = self
            .upper
            .ancestors()
            .skip(1)
            .filter(|base| base.is_absolute())
            .find(|base| relative.iter().all(|layer| base.join(layer).is_dir()))
            .map(Path::to_owned)
            .ok_or_else(|| MountError::Unplaced {
                layer: first,
                upper: self.upper.clone(),
            })?;
        for layer in &mut self.lower {
            *layer = base.join(&*layer);
        }
        Ok(self)
    }
}

/// The fields of one line that matter here.
struct Line<'a> {
    line: &'a str,
    root: PathBuf,
    point: PathBuf,
    fstype: &'a str,
    options: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Result<Self, MountError> {
        let malformed = |what| MountError::Malformed {
            line: line.to_owned(),
            what,
        };
        let (mount, fs) = line.split_once(" - ").ok_or(malformed("no separator"))?;
        let mut mount = mount.split(' ').skip(3);
        let root = mount.next().ok_or(malformed("no root field"))?;
        let point = mount.next().ok_or(malformed("no mount point field"))?;
        let mut fs = fs.splitn(3, ' ');
        let fstype = fs.next().ok_or(malformed("no file system type"))?;
        let options = fs.nth(1).ok_or(malformed("no super options"))?;
        Ok(Self {
            line,
            root: path(root),
            point: path(point),
            fstype,
            options,
        })
    }
}

#[derive(Default)]
struct Options {
    lower: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    user_xattrs: bool,
}

impl Options {
    fn parse(text: &str) -> Self {
        let mut options = Self::default();
        for option in text.split(',') {
            match option.split_once('=') {
                Some(("lowerdir", value)) => options.lower = split_layers(value),
                Some(("lowerdir+", value)) => options.lower.push(path(value)),
                Some(("upperdir", value)) => options.upper = Some(directory(value)),
                Some(("workdir", value)) => options.work = Some(directory(value)),
                None if option == "userxattr" => options.user_xattrs = true,
                _ => {}
            }
        }
        options
    }
}

/// The merged layers of a `lowerdir=` value.
fn split_layers(value: &str) -> Vec<PathBuf> {
    let mut layers = vec![Vec::new()];
    for (byte, protected) in mounters(value) {
        let layer = layers.last_mut().expect("starts with one and only grows");
        if byte != b':' || protected {
            layer.push(byte);
        } else if layer.is_empty() {
            break; // "::" begins the data-only layers.
        } else {
            layers.push(Vec::new());
        }
    }
    let filled = layers.into_iter().filter(|layer| !layer.is_empty());
    filled
        .map(|layer| PathBuf::from(OsString::from_vec(layer)))
        .collect()
}

/// The directory of an `upperdir=` or `workdir=` value.
fn directory(value: &str) -> PathBuf {
    let bytes: Vec<u8> = mounters(value).map(|(byte, _)| byte).collect();
    normal(Path::new(OsStr::from_bytes(&bytes)))
}

/// Bytes of a value that the mounter escaped, `\:`, and the kernel again, `\134:`, with whether
/// either protected them.
fn mounters(value: &str) -> impl Iterator<Item = (u8, bool)> {
    let mut bytes = Octal(value.as_bytes()).peekable();
    std::iter::from_fn(move || {
        let (byte, escaped) = bytes.next()?;
        // A backslash protects what has to be protected; before anything else it is a name's.
        let protects = |next: &(u8, bool)| matches!(next.0, b':' | b'\\' | b',');
        match bytes.next_if(|next| byte == b'\\' && protects(next)) {
            Some((protected, _)) => Some((protected, true)),
            None => Some((byte, escaped)),
        }
    })
}

/// A path field, decoded.
fn path(field: &str) -> PathBuf {
    let bytes: Vec<u8> = Octal(field.as_bytes()).map(|(byte, _)| byte).collect();
    normal(Path::new(OsStr::from_bytes(&bytes)))
}

/// Bytes of a field and whether each was written as `\ooo`.
struct Octal<'a>(&'a [u8]);

impl Iterator for Octal<'_> {
    type Item = (u8, bool);

    fn next(&mut self) -> Option<Self::Item> {
        if let [
            b'\\',
            a @ b'0'..=b'3',
            b @ b'0'..=b'7',
            c @ b'0'..=b'7',
            rest @ ..,
        ] = self.0
        {
            self.0 = rest;
            return Some(((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), true));
        }
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some((*first, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &str) -> Result<Overlay, MountError> {
        let text = format!(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
             36 22 0:31 / /run/a\\040b/rootfs rw,relatime shared:9 master:2 - overlay overlay {options}\n\
             37 22 0:32 / /ro rw - overlay none ro,lowerdir=/a:/b\n\
             38 22 0:31 /sub /bound rw - overlay overlay {options}\n"
        );
        Overlay::of_mount(&text, Path::new("/run/a b/rootfs"))
    }

    fn lower(options: &str) -> Vec<String> {
        let overlay = overlay(&format!("rw,{options},upperdir=/u,workdir=/w")).unwrap();
        overlay
            .lower
            .iter()
            .map(|layer| layer.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn layers_keep_their_order() {
        assert_eq!(lower("lowerdir=/3:/2:/1"), ["/3", "/2", "/1"]);
        assert_eq!(lower("lowerdir=l/AB:l/CD"), ["l/AB", "l/CD"]);
        assert_eq!(lower("lowerdir+=/3,lowerdir+=/2,datadir+=/d"), ["/3", "/2"]);
    }

    #[test]
    fn escapes_and_data_layers() {
        assert_eq!(lower(r"lowerdir=/a\134:b:/c\040d\054e"), ["/a:b", "/c d,e"]);
        assert_eq!(lower(r"lowerdir=/a\072b:/c\134d"), ["/a:b", r"/c\d"]);
        assert_eq!(lower("lowerdir=/a:/b::/data1::/data2"), ["/a", "/b"]);
        assert_eq!(lower(r"lowerdir+=/a:b,lowerdir+=/c\075d"), ["/a:b", "/c=d"]);
    }

    #[test]
    fn upper_work_and_marks() {
        let found = overlay(r"rw,lowerdir=/l,upperdir=/u\040p,workdir=/w,userxattr,xino=off");
        let found = found.unwrap();
        assert_eq!(found.upper, Path::new("/u p"));
        assert_eq!(found.work, Path::new("/w"));
        assert!(found.user_xattrs);
    }

    #[test]
    fn other_mounts_say_what_they_are() {
        let text = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                    37 22 0:32 / /ro rw - overlay none ro,lowerdir=/a:/b\n\
                    38 22 0:31 /sub /bound rw - overlay o rw,lowerdir=/a,upperdir=/u,workdir=/w\n";
        let of = |target: &str| Overlay::of_mount(text, Path::new(target)).unwrap_err();
        assert!(matches!(of("/"), MountError::NotOverlay { fstype, .. } if fstype == "ext4"));
        assert!(matches!(of("/ro"), MountError::NoUpper { .. }));
        assert!(matches!(of("/none"), MountError::NotMounted { .. }));
        assert!(
            matches!(of("/bound"), MountError::Bound { root, .. } if root == Path::new("/sub"))
        );
        let bad = Overlay::of_mount("22 1 8:1 / / rw", Path::new("/")).unwrap_err();
        assert!(matches!(bad, MountError::Malformed { .. }));
    }

    #[test]
    fn the_topmost_of_stacked_mounts_counts() {
        let text = "1 0 0:1 / /r rw - ext4 a rw\n2 1 0:2 / /r rw - tmpfs b rw\n";
        let found = Overlay::of_mount(text, Path::new("/r")).unwrap_err();
        assert!(matches!(found, MountError::NotOverlay { fstype, .. } if fstype == "tmpfs"));
    }

    #[test]
    fn relative_layers_are_found_above_the_upper_directory() {
        let dir = tempfile::tempdir().unwrap();
        for layer in ["1/fs", "2/fs", "3/fs", "3/work"] {
            std::fs::create_dir_all(dir.path().join(layer)).unwrap();
        }
        let overlay = Overlay {
            lower: vec!["2/fs".into(), "1/fs".into()],
            upper: dir.path().join("3/fs"),
            work: dir.path().join("3/work"),
            user_xattrs: false,
        };
        let found = overlay.clone().resolved().unwrap();
        assert_eq!(
            found.lower,
            [dir.path().join("2/fs"), dir.path().join("1/fs")]
        );
        let lost = Overlay {
            lower: vec!["9/fs".into()],
            ..overlay
        };
        assert!(matches!(lost.resolved(), Err(MountError::Unplaced { .. })));
    }
}
