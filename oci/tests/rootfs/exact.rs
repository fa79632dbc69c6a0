//! Every kind of change, diffed and applied onto a fresh root of the same layers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kybernate_oci::rootfs::{ApplyError, Limits, Note, Overlay, apply};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::changes::{base, change, odd, put};
use crate::lab::{Lab, Root};
use crate::snapshot::{assert_same, differences, snapshot};

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
    // Names that JSON can't hold are in headers, and a member follows these.
    let kinds: Vec<_> = {
        let mut archive = tar::Archive::new(tar.as_slice());
        let entries = archive.entries().unwrap().raw(true);
        entries
            .map(|entry| entry.unwrap().header().entry_type())
            .collect()
    };
    let named = kinds.iter().filter(|kind| kind.is_pax_global_extensions());
    assert_eq!(named.count(), 2);
    assert_eq!(kinds.last(), Some(&tar::EntryType::Directory));
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

#[test]
fn layers_are_found_whatever_they_are_called() {
    if Lab::new("index=off").is_none() {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let names = ["co:lon,comma", "two words\ttab", "back\\slash", "plain"];
    for name in names.iter().chain(&["up,per", "work", "merged"]) {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    // As a mounter has to write them.
    let escaped = |name: &str| {
        let path = dir
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .replace('\\', "\\\\");
        path.replace(':', "\\:").replace(',', "\\,")
    };
    let lower = names.map(escaped).join(":");
    let (upper, work) = (escaped("up,per"), escaped("work"));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let merged = dir.path().join("merged");
    let none = nix::mount::MsFlags::empty();
    nix::mount::mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        none,
        Some(&*options),
    )
    .unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let found = Overlay::of_mount(&mounts, &merged).unwrap();
    assert_eq!(found.lower, names.map(|name| dir.path().join(name)));
    assert_eq!(found.upper, dir.path().join("up,per"));
}
