//! Options of a mount: flags for the kernel, and data for the file system.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::idmap::IdMap;

/// Parsed options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags of mount(2).
    pub flags: MsFlags,
    /// Propagation, which needs a call of its own.
    pub propagation: MsFlags,
    /// What goes to the file system.
    pub data: Vec<String>,
    /// Shift of owners for a user namespace.
    pub id_map: Option<IdMap>,
    /// Options that this build does not know how to do.
    pub unsupported: Vec<String>,
}

impl MountOptions {
    /// Parses options as fstab(5) names them. Unknown ones are the file system's.
    #[must_use]
    pub fn parse(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MsFlags::empty(),
            propagation: MsFlags::empty(),
            data: Vec::new(),
            id_map: None,
            unsupported: Vec::new(),
        };
        let (mut uids, mut gids) = (None, None);
        for option in options {
            if let Some((set, flag)) = flag(option) {
                parsed.flags.set(flag, set);
            } else if let Some(propagation) = propagation(option) {
                parsed.propagation |= propagation;
            } else if let Some(map) = option.strip_prefix("uidmap=") {
                uids = Some(map);
            } else if let Some(map) = option.strip_prefix("gidmap=") {
                gids = Some(map);
            } else if option == "loop" {
                parsed.unsupported.push(option.clone());
            } else if !option.is_empty() && !option.starts_with("X-") && !option.starts_with("x-") {
                parsed.data.push(option.clone());
            }
        }
        match (uids, gids) {
            (None, None) => {}
            (Some(uids), Some(gids)) => match IdMap::parse(uids, gids) {
                Some(map) => parsed.id_map = Some(map),
                None => parsed
                    .unsupported
                    .push(format!("uidmap={uids},gidmap={gids}")),
            },
            (Some(one), None) | (None, Some(one)) => {
                parsed
                    .unsupported
                    .push(format!("{one} without the other of uidmap and gidmap"));
            }
        }
        parsed
    }

    /// Whether the data fits into `limit` bytes.
    #[must_use]
    pub fn fits(&self, limit: usize) -> bool {
        self.data.join(",").len() <= limit
    }

    /// Names the layers of an overlay relative to the directory that they have in common, and
    /// returns that. Nothing changes when it is no overlay or the layers share no directory.
    pub fn make_layers_relative(&mut self) -> Option<PathBuf> {
        let lower = self
            .data
            .iter_mut()
            .find(|option| option.starts_with("lowerdir="))?;
        let layers: Vec<&str> = lower["lowerdir=".len()..].split(':').collect();
        let base = common_directory(&layers)?;
        // By components: the same directory may be written in several ways.
        let relative = layers
            .iter()
            .map(|layer| Path::new(layer).strip_prefix(base).ok()?.to_str())
            .collect::<Option<Vec<&str>>>()?;
        let (base, relative) = (
            PathBuf::from(base),
            format!("lowerdir={}", relative.join(":")),
        );
        *lower = relative;
        Some(base)
    }
}

/// The longest directory that is a proper ancestor of all absolute paths; never `/`.
fn common_directory<'a>(paths: &[&'a str]) -> Option<&'a str> {
    let mut base = Path::new(*paths.first()?).parent()?;
    for path in paths {
        while !Path::new(path).parent()?.starts_with(base) {
            base = base.parent()?;
        }
    }
    base.to_str()
        .filter(|base| base.starts_with('/') && base.len() > 1)
}

fn flag(option: &str) -> Option<(bool, MsFlags)> {
    Some(match option {
        "async" => (false, MsFlags::MS_SYNCHRONOUS),
        "atime" => (false, MsFlags::MS_NOATIME),
        "bind" => (true, MsFlags::MS_BIND),
        "defaults" => (true, MsFlags::empty()),
        "dev" => (false, MsFlags::MS_NODEV),
        "diratime" => (false, MsFlags::MS_NODIRATIME),
        "dirsync" => (true, MsFlags::MS_DIRSYNC),
        "exec" => (false, MsFlags::MS_NOEXEC),
        "mand" => (true, MsFlags::MS_MANDLOCK),
        "noatime" => (true, MsFlags::MS_NOATIME),
        "nodev" => (true, MsFlags::MS_NODEV),
        "nodiratime" => (true, MsFlags::MS_NODIRATIME),
        "noexec" => (true, MsFlags::MS_NOEXEC),
        "nomand" => (false, MsFlags::MS_MANDLOCK),
        "norelatime" => (false, MsFlags::MS_RELATIME),
        "nostrictatime" => (false, MsFlags::MS_STRICTATIME),
        "nosuid" => (true, MsFlags::MS_NOSUID),
        "rbind" => (true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "relatime" => (true, MsFlags::MS_RELATIME),
        "remount" => (true, MsFlags::MS_REMOUNT),
        "ro" => (true, MsFlags::MS_RDONLY),
        "rw" => (false, MsFlags::MS_RDONLY),
        "strictatime" => (true, MsFlags::MS_STRICTATIME),
        "suid" => (false, MsFlags::MS_NOSUID),
        "sync" => (true, MsFlags::MS_SYNCHRONOUS),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MsFlags> {
    Some(match option {
        "private" => MsFlags::MS_PRIVATE,
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        "rprivate" => MsFlags::MS_PRIVATE.union(MsFlags::MS_REC),
        "rshared" => MsFlags::MS_SHARED.union(MsFlags::MS_REC),
        "rslave" => MsFlags::MS_SLAVE.union(MsFlags::MS_REC),
        "runbindable" => MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        MountOptions::parse(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_propagation_and_data_are_told_apart() {
        let options = parse(&[
            "rbind", "ro", "nosuid", "suid", "rslave", "size=5", "X-x.y=z",
        ]);
        assert_eq!(
            options.flags,
            MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY
        );
        assert_eq!(options.propagation, MsFlags::MS_SLAVE | MsFlags::MS_REC);
        assert_eq!(options.data, ["size=5"]);
        assert!(options.unsupported.is_empty());
    }

    #[test]
    fn layers_become_relative_to_their_common_directory() {
        let mut options = parse(&[
            "upperdir=/u",
            "lowerdir=/s/snap/12/fs:/s/snap/1/fs:/s/snap/1",
        ]);
        assert!(options.fits(1000) && !options.fits(10));
        let base = options.make_layers_relative();
        assert_eq!(base.as_deref(), Some(Path::new("/s/snap")));
        assert_eq!(options.data, ["upperdir=/u", "lowerdir=12/fs:1/fs:1"]);
    }

    #[test]
    fn a_directory_may_be_written_in_several_ways() {
        let mut options = parse(&["lowerdir=/s//////////snap/1:/s/snap/2:/s/./snap/3/"]);
        let base = options.make_layers_relative();
        assert_eq!(base.as_deref(), Some(Path::new("/s/snap")));
        assert_eq!(options.data, ["lowerdir=1:2:3"]);
    }

    #[test]
    fn layers_without_a_common_directory_stay() {
        for option in ["lowerdir=/a/1:/b/2", "lowerdir=/a", "size=1"] {
            let mut options = parse(&[option]);
            assert_eq!(options.make_layers_relative(), None, "{option}");
            assert_eq!(options.data, [option]);
        }
        let mut options = parse(&["lowerdir=/a/1"]);
        assert_eq!(
            options.make_layers_relative().as_deref(),
            Some(Path::new("/a"))
        );
        assert_eq!(options.data, ["lowerdir=1"]);
    }

    #[test]
    fn a_shift_of_owners_needs_both_maps() {
        let options = parse(&["uidmap=0:5:9", "gidmap=0:6:9", "lowerdir=/a"]);
        assert_eq!(options.id_map, IdMap::parse("0:5:9", "0:6:9"));
        assert_eq!(options.data, ["lowerdir=/a"]);
        for wrong in [
            &["uidmap=0:5:9"][..],
            &["uidmap=x", "gidmap=0:1:1"],
            &["loop"],
        ] {
            assert_eq!(parse(wrong).unsupported.len(), 1, "{wrong:?}");
        }
    }
}
