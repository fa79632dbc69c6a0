//! A root directory that is looked at from outside: of this machine, of a mounted one, or of a
//! fixture. Symbolic links inside it are followed as they would be followed there.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Component, Path, PathBuf},
};

/// More links than any node has in one path.
const LINKS: usize = 40;

/// A root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The directory that stands for `/`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Whether this is the root of the process itself.
    pub fn is_own(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where `path`, absolute inside, lies outside. Every link but one at the end is followed.
    pub fn place(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        self.walk(path.as_ref(), false)
    }

    /// Like [`Root::place`], with a link at the end followed too.
    pub fn target(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        self.walk(path.as_ref(), true)
    }

    /// Whether something is there; a link that leads nowhere is not.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.target(path).is_ok_and(|path| path.exists())
    }

    /// The content of a file.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        fs::read(self.target(path)?)
    }

    /// The content of a text file.
    pub fn read_text(&self, path: impl AsRef<Path>) -> io::Result<String> {
        fs::read_to_string(self.target(path)?)
    }

    /// The first of `paths` that is there.
    pub fn first<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> Option<&'a Path> {
        paths.into_iter().find(|path| self.exists(path))
    }

    /// The command lines of running processes, if `/proc` is mounted there.
    pub fn processes(&self) -> Vec<Vec<String>> {
        let Ok(entries) = self.target("/proc").and_then(fs::read_dir) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                name.to_string_lossy().bytes().all(|b| b.is_ascii_digit())
            })
            // A process may end between being listed and being read.
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .map(|line| {
                line.split(|byte| *byte == 0)
                    .filter(|word| !word.is_empty())
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .collect()
            })
            .filter(|words: &Vec<String>| !words.is_empty())
            .collect()
    }

    fn walk(&self, path: &Path, follow_last: bool) -> io::Result<PathBuf> {
        let mut ahead: VecDeque<PathBuf> = parts(path).collect();
        let mut inside = PathBuf::new();
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            if part == Path::new("..") {
                inside.pop();
                continue;
            }
            let outside = self.0.join(&inside).join(&part);
            let follow = follow_last || !ahead.is_empty();
            match fs::read_link(&outside) {
                Ok(target) if follow => {
                    links += 1;
                    if links > LINKS {
                        return Err(io::Error::other(format!(
                            "{}: too many symbolic links",
                            path.display()
                        )));
                    }
                    if target.is_absolute() {
                        inside = PathBuf::new();
                    }
                    for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                        ahead.push_front(part);
                    }
                }
                _ => inside.push(part),
            }
        }
        Ok(self.0.join(inside))
    }
}

/// The names in a path, `..` among them.
fn parts(path: &Path) -> impl Iterator<Item = PathBuf> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fs::create_dir_all(dir.path().join("var/snap/microk8s/2546/args")).unwrap();
        symlink("2546", dir.path().join("var/snap/microk8s/current")).unwrap();
        symlink("/etc/passwd", dir.path().join("var/absolute")).unwrap();
        symlink("../../../../../etc/passwd", dir.path().join("var/up")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let place = |path| {
            root.target(path)
                .unwrap()
                .strip_prefix(dir.path())
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            place("/var/snap/microk8s/current/args/new"),
            Path::new("var/snap/microk8s/2546/args/new")
        );
        assert_eq!(place("/var/absolute"), Path::new("etc/passwd"));
        assert_eq!(place("/var/up"), Path::new("etc/passwd"));
        assert!(!root.exists("/var/absolute"));
        assert!(root.target("/loop").is_err());
        assert_eq!(
            root.place("/var/absolute").unwrap(),
            dir.path().join("var/absolute")
        );
    }

    #[test]
    fn processes_are_those_of_its_proc() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc/12")).unwrap();
        fs::create_dir_all(dir.path().join("proc/13")).unwrap();
        fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        fs::write(
            dir.path().join("proc/12/cmdline"),
            "/usr/bin/kubelet\0--v=2\0",
        )
        .unwrap();
        fs::write(dir.path().join("proc/13/cmdline"), "").unwrap();
        fs::write(dir.path().join("proc/self/cmdline"), "no\0").unwrap();
        assert_eq!(
            Root::new(dir.path()).processes(),
            [["/usr/bin/kubelet", "--v=2"]]
        );
    }
}
