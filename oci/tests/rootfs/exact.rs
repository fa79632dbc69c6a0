//! Every kind of change, diffed and applied onto a fresh root of the same layers.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use kybernate_oci::rootfs::{ApplyError, Limits, Note, apply};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;

use crate::lab::{Lab, Root};
use crate::snapshot::{assert_same, differences, snapshot};

/// An access ACL: owner rw, user 1234 r, group r, mask r, others none.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
/// A default ACL by which everything made in the directory gets an ACL of its own.
const DEFAULT_ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\xd2\x04\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
/// cap_net_raw+ep, revision 2. The newline byte in the second one must survive.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const CAPABILITY_NEWLINE: &[u8] = b"\x01\0\0\x02\x0a\x20\0\0\x0a\0\0\0\0\0\0\0\0\0\0\0";

fn put(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn stamp(path: &Path, sec: i64, nsec: i64) {
    let time = TimeSpec::new(sec, nsec);
    let nofollow = UtimensatFlags::NoFollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, nofollow).unwrap();
}

fn odd(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// A base image.
fn base(at: &Path) {
    for name in [
        "keep", "modify", "append", "chmod", "chown", "touch", "delete", "to-dir",
    ] {
        put(&at.join("files").join(name), format!("base {name}"));
    }
    for dir in [
        "kept",
        "deleted",
        "recreated",
        "to-file",
        "moved",
        "chmodded",
        "emptied",
    ] {
        for name in ["a", "b", "sub/c", "sub/deep/d"] {
            put(&at.join(dir).join(name), format!("{dir} {name}"));
        }
    }
    put(&at.join("links/one"), "linked");
    fs::hard_link(at.join("links/one"), at.join("links/two")).unwrap();
    put(&at.join("links/three"), "linked too");
    fs::hard_link(at.join("links/three"), at.join("links/four")).unwrap();
    symlink("files/keep", at.join("link")).unwrap();
    symlink("nowhere", at.join("dangling")).unwrap();
    put(&at.join("bin/suid"), "elf");
    mode(&at.join("bin/suid"), 0o4755);
    put(&at.join("bin/caps"), "elf");
    xattr::set(at.join("bin/caps"), "security.capability", CAPABILITY).unwrap();
    put(&at.join("attrs/file"), "x");
    xattr::set(at.join("attrs/file"), "user.gone", b"1").unwrap();
    xattr::set(at.join("attrs/file"), "user.kept", b"2").unwrap();
    put(&at.join("aclbase/file"), "x");
    xattr::set(at.join("aclbase"), "system.posix_acl_default", DEFAULT_ACL).unwrap();
    put(&at.join(odd(b"odd-\xff\xfe")), "not utf-8");
    put(&at.join(odd(b"odddir-\xff/in")), "not utf-8");
    stamp(&at.join("kept"), 1_000_000_000, 123_456_789);
    stamp(at, 1_100_000_000, 1);
}

/// Everything that a container can do to it.
fn change(at: &Path) {
    let files = at.join("files");
    put(&files.join("modify"), "changed");
    OpenOptions::new()
        .append(true)
        .open(files.join("append"))
        .unwrap()
        .write_all(b"+")
        .unwrap();
    mode(&files.join("chmod"), 0o600);
    chown(files.join("chown"), Some(1234), Some(0x7fff_fff0)).unwrap();
    stamp(&files.join("touch"), 987_654_321, 987_654_321);
    fs::remove_file(files.join("delete")).unwrap();
    fs::remove_file(files.join("to-dir")).unwrap();
    put(&files.join("to-dir/inner/file"), "was a file");
    put(&files.join("new"), "new");
    mode(&files.join("new"), 0);
    put(&files.join("empty"), "");

    fs::remove_dir_all(at.join("deleted")).unwrap();
    fs::remove_dir_all(at.join("recreated")).unwrap();
    put(&at.join("recreated/b"), "again");
    put(&at.join("recreated/sub/new"), "again");
    mode(&at.join("recreated"), 0o1777);
    fs::remove_dir_all(at.join("to-file")).unwrap();
    put(&at.join("to-file"), "was a directory");
    // Where redirects are off the kernel refuses and `mv` copies.
    if fs::rename(at.join("moved"), at.join("moved-away")).is_err() {
        Command::new("cp")
            .arg("-a")
            .args([at.join("moved"), at.join("moved-away")])
            .status()
            .unwrap();
        fs::remove_dir_all(at.join("moved")).unwrap();
    }
    put(&at.join("moved-away/sub/added"), "added");
    fs::remove_file(at.join("moved-away/a")).unwrap();
    mode(&at.join("chmodded"), 0o2700);
    for name in ["a", "b"] {
        fs::remove_file(at.join("emptied").join(name)).unwrap();
    }
    fs::remove_dir_all(at.join("emptied/sub")).unwrap();
    fs::create_dir_all(at.join("new-dirs/empty")).unwrap();
    stamp(&at.join("new-dirs/empty"), -1_500_000_000, 250_000_000);
    stamp(&at.join("new-dirs"), 12_345_678_901, 5);

    put(&at.join("links/one"), "changed through one");
    fs::hard_link(at.join("links/three"), at.join("links/five")).unwrap();
    put(&at.join("links/new1"), "new pair");
    fs::hard_link(at.join("links/new1"), at.join("kept/new2")).unwrap();
    symlink("odd target \u{fffd}", at.join("links/sym")).unwrap();
    fs::hard_link(at.join("links/sym"), at.join("links/sym2")).unwrap();
    lchown(at.join("links/sym"), Some(7), Some(8)).unwrap();
    stamp(&at.join("links/sym"), 5, 6);
    fs::remove_file(at.join("link")).unwrap();
    symlink("kept", at.join("link")).unwrap();
    fs::remove_file(at.join("dangling")).unwrap();
    fs::create_dir(at.join("dangling")).unwrap();

    mkfifo(&at.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    for (name, kind) in [("null", SFlag::S_IFCHR), ("disk", SFlag::S_IFBLK)] {
        let all = Mode::from_bits_truncate(0o666);
        mknod(&at.join(name), kind, all, makedev(1, 0x1_2345)).unwrap();
    }
    put(&at.join("bin/suid2"), "elf");
    chown(at.join("bin/suid2"), Some(33), Some(33)).unwrap();
    mode(&at.join("bin/suid2"), 0o6711);
    put(&at.join("bin/caps2"), "elf");
    xattr::set(
        at.join("bin/caps2"),
        "security.capability",
        CAPABILITY_NEWLINE,
    )
    .unwrap();
    put(&at.join("bin/caps"), "elf again");

    xattr::remove(at.join("attrs/file"), "user.gone").unwrap();
    xattr::set(at.join("attrs/file"), "user.a=b%3D", b"\n\0=\n12 x=y\n").unwrap();
    xattr::set(at.join("attrs"), "user.dir", vec![0xa5; 3000].as_slice()).unwrap();
    xattr::set(at.join("attrs"), "trusted.mine", b"t").unwrap();
    put(&at.join("acl/file"), "x");
    xattr::set(at.join("acl/file"), "system.posix_acl_access", ACL).unwrap();
    put(&at.join("acl/dir/before"), "x");
    xattr::set(at.join("acl/dir"), "system.posix_acl_default", DEFAULT_ACL).unwrap();
    put(&at.join("acl/dir/after/inner"), "inherits");
    put(&at.join("aclbase/plain"), "x");
    xattr::remove(at.join("aclbase/plain"), "system.posix_acl_access").unwrap();
    put(&at.join("aclbase/file"), "y");

    let sparse = fs::File::create(at.join("sparse")).unwrap();
    sparse.write_all_at(b"data", 5 << 20).unwrap();
    sparse.write_all_at(b"more", (9 << 20) + 4095).unwrap();
    sparse.set_len((16 << 20) + 3).unwrap();

    let long = at.join("long").join("d".repeat(120)).join("e".repeat(200));
    put(&long.join("f".repeat(255)), "long");
    symlink("t".repeat(300), long.join("link")).unwrap();
    fs::hard_link(long.join("f".repeat(255)), long.join("hard")).unwrap();
    for length in 90..=110 {
        put(&at.join("edge").join("n".repeat(length)), "x");
        put(
            &at.join("edge")
                .join("p".repeat(250 - length))
                .join("q".repeat(100)),
            "x",
        );
    }
    fs::remove_file(at.join(odd(b"odd-\xff\xfe"))).unwrap();
    fs::remove_dir_all(at.join(odd(b"odddir-\xff"))).unwrap();
    put(&at.join(odd(b"new-\xff\n\x01")), "not utf-8");
    symlink(odd(b"\xff\xfe"), at.join(odd(b"sym-\xff"))).unwrap();
    put(&at.join("new\\line\n\"quoted\" name"), "x");
    put(&at.join(".wh.literal"), "a name like a whiteout's");
    drop(UnixListener::bind(at.join("socket")).unwrap());
    mode(at, 0o711);
    stamp(&files, 1_234_567_890, 1);
    stamp(at, 1_300_000_000, 999_999_999);
}

fn prepared(options: &'static str) -> Option<(Lab, Root)> {
    let lab = Lab::new(options)?;
    base(lab.bottom());
    let root = lab.root();
    let before = snapshot(&root.merged);
    change(&root.merged);
    assert_ne!(differences(&before, &snapshot(&root.merged)), "");
    Some((lab, root))
}

/// Changes, diff, apply onto a fresh root, and the diff of that once more.
fn round_trip(options: &'static str) {
    let Some((lab, root)) = prepared(options) else {
        return;
    };
    let expected = snapshot(&root.merged);
    let (tar, found) = root.diff();
    assert!(
        found.notes.contains(&Note::Socket("socket".into())),
        "{:?}",
        found.notes
    );
    assert_eq!(
        snapshot(&root.merged),
        expected,
        "taking a diff changed the tree"
    );

    let fresh = lab.root();
    let applied = fresh.apply(&tar, &found);
    assert_same(&expected, &snapshot(&fresh.merged));
    assert_eq!((applied.files, applied.bytes), (found.files, found.bytes));
    assert_eq!(applied.notes, []);
    let sparse = fs::metadata(fresh.merged.join("sparse")).unwrap();
    assert!(
        sparse.blocks() * 512 < 1 << 20,
        "{} blocks for two pieces of data",
        sparse.blocks()
    );

    let (again, found_again) = fresh.diff();
    let third = lab.root();
    third.apply(&again, &found_again);
    assert_same(&expected, &snapshot(&third.merged));
}

#[test]
fn every_change_survives() {
    round_trip("index=off");
}

#[test]
fn every_change_survives_with_redirects() {
    round_trip("redirect_dir=on");
}

#[test]
fn every_change_survives_with_metacopy() {
    round_trip("metacopy=on");
}

#[test]
fn every_change_survives_with_index() {
    round_trip("index=on");
}

#[test]
fn every_change_survives_with_user_marks() {
    round_trip("userxattr");
}

#[test]
fn deletions_are_listed_as_other_engines_read_them() {
    let Some((_lab, root)) = prepared("index=off") else {
        return;
    };
    let (tar, found) = root.diff();
    let mut deleted: Vec<_> = found.deleted.iter().map(String::as_str).collect();
    deleted.sort_unstable();
    let expected = [
        "/deleted",
        "/emptied/a",
        "/emptied/b",
        "/emptied/sub",
        "/files/delete",
        "/moved",
        "/recreated/a",
        "/recreated/sub/c",
        "/recreated/sub/deep",
    ];
    assert_eq!(deleted, expected);
    // Nothing in the tar is on the list or below something on it.
    let mut archive = tar::Archive::new(tar.as_slice());
    for entry in archive.entries().unwrap().raw(true) {
        let entry = entry.unwrap();
        let path = Path::new("/").join(entry.path().unwrap());
        assert!(
            !deleted.iter().any(|gone| path.starts_with(gone)),
            "{path:?}"
        );
        assert!(!entry.header().entry_type().is_gnu_sparse());
    }
}

#[test]
fn gnu_tar_and_a_loop_over_the_deletions_give_the_same_tree() {
    let Some((lab, root)) = prepared("index=off") else {
        return;
    };
    let version = Command::new("tar").arg("--version").output();
    if !version.is_ok_and(|out| out.stdout.starts_with(b"tar (GNU tar)")) {
        println!("SKIPPED: no GNU tar");
        return;
    }
    let mut expected = snapshot(&root.merged);
    let (tar, found) = root.diff();
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(file.path(), &tar).unwrap();
    let fresh = lab.root();
    // Engines replace whatever an entry finds, except a directory by a directory; GNU tar has
    // no such mode.
    let mut archive = tar::Archive::new(tar.as_slice());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let path = fresh.merged.join(entry.path().unwrap());
        let there = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        if there && !entry.header().entry_type().is_dir() {
            fs::remove_dir_all(&path).unwrap();
        }
    }
    let output = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner"])
        .args(["--delay-directory-restore", "-xpf"])
        .arg(file.path())
        .arg("-C")
        .arg(&fresh.merged)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    for path in &found.deleted {
        let path = fresh.merged.join(path.trim_start_matches('/'));
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => {}
        }
    }
    // Deleting touches directories after tar has set their times; names that are not UTF-8
    // stand in no list; and tar leaves an ACL in place that a new file inherited.
    let mut seen = snapshot(&fresh.merged);
    for tree in [&mut expected, &mut seen] {
        for entry in tree
            .values_mut()
            .filter(|entry| entry.kind.contains("is_dir: true"))
        {
            entry.mtime = (0, 0);
        }
    }
    for path in ["aclbase/plain", "aclbase/file"] {
        seen.get_mut(Path::new(path)).unwrap().xattrs.clear();
    }
    for gone in [&b"odd-\xff\xfe"[..], b"odddir-\xff", b"odddir-\xff/in"] {
        assert!(seen.remove(Path::new(odd(gone))).is_some());
    }
    assert_same(&expected, &seen);
}

#[test]
fn an_unchanged_root_has_an_empty_diff() {
    let Some(lab) = Lab::new("index=off") else {
        return;
    };
    base(lab.bottom());
    let root = lab.root();
    let (_, found) = root.diff();
    assert_eq!((found.files, found.bytes, found.deleted.len()), (1, 0, 0));
}

/// What a fresh root shows may itself come through whiteouts, opaque and moved directories of
/// the layers; a directory made anew over it must hide exactly that.
#[test]
fn deletions_are_those_of_what_the_layers_show() {
    let Some(mut lab) = Lab::new("redirect_dir=on,index=off") else {
        return;
    };
    for name in [
        "near/from/a",
        "near/from/sub/b",
        "far/from/c",
        "far/from/d/e",
        "opaque/old",
    ] {
        put(&lab.bottom().join(name), name);
    }
    put(&lab.bottom().join("near/gone"), "x");
    let layer = lab.root();
    let at = |name: &str| layer.merged.join(name);
    fs::rename(at("near/from"), at("near/to")).unwrap();
    put(&at("near/to/sub/top"), "x");
    fs::remove_file(at("near/to/a")).unwrap();
    fs::create_dir(at("other")).unwrap();
    fs::rename(at("far/from"), at("other/to")).unwrap();
    fs::remove_dir_all(at("opaque")).unwrap();
    put(&at("opaque/new"), "x");
    fs::remove_file(at("near/gone")).unwrap();
    lab.commit(layer);

    let root = lab.root();
    for dir in ["near", "other", "opaque"] {
        fs::remove_dir_all(root.merged.join(dir)).unwrap();
    }
    for dir in ["near/to/sub", "other/to/d", "opaque"] {
        fs::create_dir_all(root.merged.join(dir)).unwrap();
    }
    let (tar, mut found) = root.diff();
    found.deleted.sort();
    let expected = [
        "/near/to/sub/b",
        "/near/to/sub/top",
        "/opaque/new",
        "/other/to/c",
        "/other/to/d/e",
    ];
    assert_eq!(found.deleted, expected);
    let fresh = lab.root();
    fresh.apply(&tar, &found);
    assert_same(&snapshot(&root.merged), &snapshot(&fresh.merged));
}

/// With an index a change made under one name shows under the others, which the upper
/// directory does not have; even when the first one is deleted again.
#[test]
fn the_other_names_of_a_changed_file_come_along_with_index() {
    for deleted in [false, true] {
        let Some(lab) = Lab::new("index=on") else {
            return;
        };
        base(lab.bottom());
        let root = lab.root();
        put(&root.merged.join("links/one"), "changed");
        if fs::read(root.merged.join("links/two")).unwrap() != b"changed" {
            println!("SKIPPED: index=on does not keep hard links here");
            return;
        }
        if deleted {
            fs::remove_file(root.merged.join("links/one")).unwrap();
        }
        let expected = snapshot(&root.merged);
        let (tar, found) = root.diff();
        let fresh = lab.root();
        fresh.apply(&tar, &found);
        assert_same(&expected, &snapshot(&fresh.merged));
    }
}

#[test]
fn what_another_mount_hides_is_left_out() {
    let Some(lab) = Lab::new("index=off") else {
        return;
    };
    let root = lab.root();
    put(&root.merged.join("dir/mnt/hidden"), "x");
    let inner = root.merged.join("dir/mnt");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &inner, Some("tmpfs"), flags, None::<&str>).unwrap();
    put(&inner.join("secret"), "of another mount");
    let (tar, found) = root.diff();
    nix::mount::umount(&inner).unwrap();
    assert_eq!(found.notes, [Note::MountPoint(PathBuf::from("dir/mnt"))]);
    let text = tar.windows(6).any(|window| window == b"secret");
    assert!(!text && found.files == 2, "{found:?}");
}

#[test]
fn devices_need_permission() {
    let Some(lab) = Lab::new("index=off") else {
        return;
    };
    let root = lab.root();
    let all = Mode::from_bits_truncate(0o666);
    mknod(
        &root.merged.join("null"),
        SFlag::S_IFCHR,
        all,
        makedev(1, 3),
    )
    .unwrap();
    let (tar, found) = root.diff();
    let fresh = lab.root();
    let refused = apply(&fresh.merged, &tar[..], &found.deleted, &Limits::default());
    let Err(ApplyError::Device {
        path,
        major: 1,
        minor: 3,
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(path, Path::new("null"));
    assert!(!fresh.merged.join("null").exists());
}

#[test]
fn deep_trees_cost_neither_stack_nor_descriptors() {
    let Some(lab) = Lab::new("index=off") else {
        return;
    };
    let mut deep = PathBuf::new();
    for _ in 0..1900 {
        deep.push("d");
    }
    fs::create_dir_all(lab.bottom().join(&deep)).unwrap();
    let root = lab.root();
    fs::write(root.merged.join(&deep).join("file"), "deep").unwrap();
    let expected = snapshot(&root.merged);
    let (tar, found) = root.diff();
    let fresh = lab.root();
    fresh.apply(&tar, &found);
    assert_same(&expected, &snapshot(&fresh.merged));
    fs::remove_dir_all(root.merged.join("d")).unwrap();
    let (tar, found) = root.diff();
    assert_eq!(found.deleted, ["/d"]);
    fresh.apply(&tar, &found);
    assert!(!fresh.merged.join("d").exists());
}
