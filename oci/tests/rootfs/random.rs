//! Random changes on random layers: whatever a container does, its diff brings back.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::lab::Lab;
use crate::snapshot::{differences, snapshot};

/// One call of a container's. Which of them fail on a given tree does not matter.
#[derive(Debug, Clone)]
enum Step {
    Write(PathBuf, Vec<u8>),
    Append(PathBuf),
    Directory(PathBuf),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Fifo(PathBuf),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32, u32),
    Time(PathBuf, i64, i64),
    Attribute(PathBuf, String, Vec<u8>),
    Bare(PathBuf, String),
}

/// Few names, so that they meet again.
fn path() -> impl Strategy<Value = PathBuf> {
    let name = prop_oneof![
        4 => Just(b"a".to_vec()),
        4 => Just(b"b".to_vec()),
        2 => Just(b"c".to_vec()),
        1 => Just(b"\xff".to_vec()),
        1 => Just(vec![b'n'; 130]),
    ];
    proptest::collection::vec(name, 1..4)
        .prop_map(|names| names.into_iter().map(OsString::from_vec).collect())
}

fn attribute() -> impl Strategy<Value = String> {
    prop_oneof![Just("user.one".to_owned()), Just("user.t=o".to_owned())]
}

fn step(links: bool) -> impl Strategy<Value = Step> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        4 => (path(), bytes()).prop_map(|(path, data)| Step::Write(path, data)),
        2 => path().prop_map(Step::Append),
        5 => path().prop_map(Step::Directory),
        4 => path().prop_map(Step::Remove),
        4 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        3 => (path(), path()).prop_map(move |(from, to)| match links {
            true => Step::Link(from, to),
            false => Step::Rename(from, to),
        }),
        1 => (path(), path()).prop_map(|(to, path)| Step::Symlink(to, path)),
        1 => path().prop_map(Step::Fifo),
        1 => (path(), 0u32..0o10000).prop_map(|(path, mode)| Step::Mode(path, mode)),
        1 => (path(), 0u32..70_000, 0u32..70_000).prop_map(|(p, u, g)| Step::Owner(p, u, g)),
        1 => (path(), -9999i64..99_999_999, 0i64..1_000_000_000)
            .prop_map(|(path, sec, nsec)| Step::Time(path, sec, nsec)),
        1 => (path(), attribute(), bytes()).prop_map(|(p, name, value)| Step::Attribute(p, name, value)),
        1 => (path(), attribute()).prop_map(|(path, name)| Step::Bare(path, name)),
    ]
}

impl Step {
    fn run(&self, at: &Path) -> io::Result<()> {
        match self {
            Self::Write(path, data) => fs::write(real(at, path)?, data),
            Self::Append(path) => {
                let mut file = OpenOptions::new().append(true).open(real(at, path)?)?;
                file.write_all(b"more")
            }
            Self::Directory(path) => fs::create_dir_all(at.join(path)),
            Self::Remove(path) => {
                let path = at.join(path);
                fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path))
            }
            Self::Rename(from, to) => fs::rename(at.join(from), at.join(to)),
            Self::Link(from, to) => fs::hard_link(at.join(from), at.join(to)),
            Self::Symlink(to, path) => symlink(to, at.join(path)),
            Self::Fifo(path) => Ok(mkfifo(&at.join(path), Mode::S_IRUSR)?),
            Self::Mode(path, mode) => {
                fs::set_permissions(real(at, path)?, Permissions::from_mode(*mode))
            }
            Self::Owner(path, user, group) => lchown(at.join(path), Some(*user), Some(*group)),
            Self::Time(path, sec, nsec) => {
                let time = TimeSpec::new(*sec, *nsec);
                let flag = UtimensatFlags::NoFollowSymlink;
                Ok(utimensat(
                    nix::fcntl::AT_FDCWD,
                    &at.join(path),
                    &time,
                    &time,
                    flag,
                )?)
            }
            Self::Attribute(path, name, value) => xattr::set(at.join(path), name, value),
            Self::Bare(path, name) => xattr::remove(at.join(path), name),
        }
    }
}

/// A file or directory that no link leads away from, and opening which does not wait.
fn real(at: &Path, path: &Path) -> io::Result<PathBuf> {
    let full = at.join(path);
    match fs::symlink_metadata(&full) {
        Ok(meta) if meta.is_file() || meta.is_dir() => Ok(full),
        Ok(_) => Err(io::ErrorKind::InvalidInput.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(full),
        Err(error) => Err(error),
    }
}

fn steps(links: bool, count: usize) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(links), 0..count)
}

/// Two layers, the upper of which was itself an upper directory, then a container.
fn survives(options: &'static str, base_links: bool) {
    if Lab::new(options).is_none() {
        return;
    }
    // PROPTEST_CASES asks for more.
    let cases = std::env::var_os("PROPTEST_CASES").map_or(60, |_| Config::default().cases);
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let inputs = (
        steps(base_links, 25),
        steps(base_links, 25),
        steps(true, 25),
    );
    let tried = TestRunner::new(config).run(&inputs, |(bottom, layer, container)| {
        let mut lab = Lab::new(options).expect("worked a moment ago");
        let run = |at: &Path, steps: &[Step]| {
            for step in steps {
                let _ = step.run(at);
            }
        };
        run(lab.bottom(), &bottom);
        let root = lab.root();
        run(&root.merged, &layer);
        lab.commit(root);
        let root = lab.root();
        run(&root.merged, &container);
        let expected = snapshot(&root.merged);
        let (tar, found) = root.diff();
        let fresh = lab.root();
        let before = snapshot(&fresh.merged);
        for path in &found.deleted {
            let there = before.contains_key(Path::new(path).strip_prefix("/").unwrap());
            prop_assert!(there, "{path} is listed as deleted and never was");
        }
        fresh.apply(&tar, &found);
        let text = differences(&expected, &snapshot(&fresh.merged));
        if text.is_empty() {
            Ok(())
        } else {
            Err(TestCaseError::fail(text))
        }
    });
    if let Err(error) = tried {
        panic!("{options}: {error}");
    }
}

#[test]
fn random_changes_survive() {
    survives("index=off", true);
}

#[test]
fn random_changes_survive_with_redirects() {
    // A moved directory takes copies of files whose other names stay where they were: that
    // they were one inode in a read-only layer is not kept.
    survives("redirect_dir=on,index=off", false);
}

#[test]
fn random_changes_survive_with_metacopy() {
    survives("metacopy=on,index=off", false);
}

#[test]
fn random_changes_survive_with_index() {
    survives("index=on,redirect_dir=off", true);
}
