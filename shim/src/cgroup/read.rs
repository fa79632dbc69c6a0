//! Texts of cgroup files.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use crate::mount::table::{self, Entry};

/// A file with one number; `max` is the greatest. 0 when it can't be read.
pub fn number(path: &Path) -> u64 {
    fs::read_to_string(path)
        .map(|text| parse_number(&text))
        .unwrap_or(0)
}

/// One number, or `max`.
pub fn parse_number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// A file of lines `key value`; empty when it can't be read.
pub fn pairs(path: &Path) -> Pairs {
    Pairs::parse(&fs::read_to_string(path).unwrap_or_default())
}

/// Lines `key value`.
#[derive(Debug, Default)]
pub struct Pairs(HashMap<String, u64>);

impl Pairs {
    /// Parses lines; those of another form are passed over.
    pub fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), parse_number(value)))
        };
        Self(text.lines().filter_map(pair).collect())
    }

    /// The value of a key, 0 when it is missing.
    pub fn get(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or(0)
    }

    /// Whether a key is there.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

/// Directories by controller from `/proc/PID/cgroup` (lines `id:controllers:path`) and
/// `/proc/self/mountinfo`. A path is relative to the root that the mount shows.
pub fn directories(memberships: &str, mounts: &str) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        for controller in controllers.split(',') {
            let directory = table::entries(mounts).find_map(|m| directory(&m, controller, path));
            if let Some(directory) = directory {
                found.push((controller.to_owned(), directory));
            }
        }
    }
    found
}

/// The directory of `path` if this mount has the controller.
fn directory(mount: &Entry<'_>, controller: &str, path: &str) -> Option<PathBuf> {
    let fits = match controller {
        "" => mount.kind == "cgroup2",
        name => mount.kind == "cgroup" && mount.data.split(',').any(|option| option == name),
    };
    let root = Some(mount.root).filter(|_| fits)?;
    let inside = Path::new(path).strip_prefix(root).ok()?;
    Some(Path::new(mount.point).join(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 24 0:27 /docker/x /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
";

    #[test]
    fn memberships_become_directories_through_their_mounts() {
        let memberships = "\
4:memory:/k/pod
3:cpu,cpuacct:/docker/x/pod
2:name=systemd:/s
1:pids:/not/mounted
0::/u
";
        let found = directories(memberships, MOUNTS);
        let expected = [
            ("memory", "/sys/fs/cgroup/memory/k/pod"),
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct/pod"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/pod"),
            ("name=systemd", "/sys/fs/cgroup/systemd/s"),
            ("", "/sys/fs/cgroup/unified/u"),
        ]
        .map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(found, expected);
    }

    #[test]
    fn numbers_may_be_without_limit() {
        assert_eq!(parse_number("12\n"), 12);
        assert_eq!(parse_number("max\n"), u64::MAX);
        assert_eq!(parse_number("x"), 0);
        let pairs = Pairs::parse("a 1\nb max\nbad\n");
        assert_eq!(
            (pairs.get("a"), pairs.get("b"), pairs.get("c")),
            (1, u64::MAX, 0)
        );
        assert!(pairs.has("a") && !pairs.has("bad"));
    }
}
