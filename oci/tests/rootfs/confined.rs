//! What a tar may do to the root that it is for, and how much of it.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kybernate_oci::rootfs::{ApplyError, Devices, Excess, Limits, Note, TarError, apply};
use nix::unistd::geteuid;
use tar::EntryType;

use super::hostile::{Scene, Tar};

/// A pax header that names the next member.
fn path_record(path: &str) -> Vec<u8> {
    let rest = format!(" path={path}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}").into_bytes()
}

#[test]
fn a_parent_that_somebody_swaps_for_a_link_leads_nowhere() {
    let scene = Scene::new();
    let (root, outside) = (scene.root(), scene.outside());
    let over = AtomicBool::new(false);
    let swaps = std::thread::scope(|scope| {
        let swapping = scope.spawn(|| {
            let mut swaps = 0;
            while !over.load(Ordering::Relaxed) {
                let _ = fs::remove_dir_all(root.join("d"));
                let _ = symlink(&outside, root.join("d"));
                let _ = fs::remove_file(root.join("d"));
                let _ = fs::create_dir(root.join("d"));
                swaps += 1;
            }
            swaps
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            let tar = Tar::default().directory("d").file("d/file").file("d/new");
            // It may fail, since what it has made goes away under it.
            let deleted = ["/d/dir".to_owned()];
            let _ = apply(&root, &tar.end()[..], &deleted, &Limits::default());
        }
        over.store(true, Ordering::Relaxed);
        swapping.join().unwrap()
    });
    assert!(swaps > 10, "{swaps}");
    scene.check();
}

#[test]
fn a_hard_link_reaches_what_is_in_the_root_alone() {
    let scene = Scene::new();
    let outside = format!("{}/file", scene.outside());
    symlink(&outside, scene.root().join("leaf")).unwrap();
    // By an absolute name of the host, through a link of the root, through one of the tar.
    for (name, target) in [("a", outside.as_str()), ("b", "../outside/file")] {
        let result = scene.apply(Tar::default().link(name, target), &[]);
        assert!(
            matches!(result, Err(ApplyError::Tar(TarError::Name { .. }))),
            "{result:?}"
        );
    }
    scene.apply(Tar::default().link("c", "leaf"), &[]).unwrap();
    let tar = Tar::default()
        .symlink("way", "../outside")
        .link("d", "way/file");
    let result = scene.apply(tar, &[]);
    assert!(matches!(result, Err(ApplyError::Path(_))), "{result:?}");
    for file in ["outside/file", "outside/dir/file"] {
        let facts = fs::metadata(scene.dir.path().join(file)).unwrap();
        assert_eq!(facts.nlink(), 1, "{file} has another name now");
    }
}

#[test]
fn setuid_stays_in_the_container_and_devices_need_its_right() {
    let scene = Scene::new();
    let mut header = Tar::header(EntryType::Regular, b"su", b"", 0);
    header.set_mode(0o106_755);
    header.set_cksum();
    let tar = Tar(header.as_bytes().to_vec());
    scene.apply(tar, &[]).unwrap();
    let facts = fs::symlink_metadata(scene.root().join("su")).unwrap();
    // What the container could have done itself; bits that are no permissions are not taken.
    assert_eq!(facts.mode(), 0o106_755);
    let device = || Tar::default().add(EntryType::Char, "null", "", b"");
    assert!(matches!(
        scene.apply(device(), &[]),
        Err(ApplyError::Device {
            major: 1,
            minor: 3,
            ..
        })
    ));
    assert!(!scene.root().join("null").exists());
    if geteuid().is_root() {
        let limits = Limits {
            devices: Devices::Make,
            ..Limits::default()
        };
        apply(&scene.root(), &device().end()[..], &[], &limits).unwrap();
        let made = fs::symlink_metadata(scene.root().join("null")).unwrap();
        assert!(made.file_type().is_char_device());
    }
}

#[test]
fn whiteouts_of_every_kind_delete_nothing() {
    let scene = Scene::new();
    fs::write(scene.root().join("etc/kept"), "").unwrap();
    // Names of layers of images are names like others.
    let tar = Tar::default().file("etc/.wh.kept").file("etc/.wh..wh..opq");
    scene.apply(tar, &[]).unwrap();
    assert!(scene.root().join("etc/kept").exists());
    assert!(scene.root().join("etc/.wh.kept").exists());
    // overlayfs's own attributes are not set.
    let record = b"37 SCHILY.xattr.trusted.overlay.opaque=y\n";
    let record = [format!("{}", record.len()).as_bytes(), &record[2..]].concat();
    let tar = Tar::default()
        .add(EntryType::XHeader, "x", "", &record)
        .directory("etc");
    let applied = scene.apply(tar, &[]).unwrap();
    assert!(
        matches!(&applied.notes[..], [Note::XattrRefused(_, name)] if name.ends_with("opaque")),
        "{:?}",
        applied.notes
    );
    assert!(scene.root().join("etc/kept").exists());
}

#[test]
fn a_fifo_blocks_nobody_and_a_socket_is_no_member() {
    let scene = Scene::new();
    let tar = Tar::default()
        .add(EntryType::Fifo, "fifo", "", b"")
        .file("fifo")
        .add(EntryType::Fifo, "fifo2", "", b"");
    scene.apply(tar, &[]).unwrap();
    assert!(
        fs::symlink_metadata(scene.root().join("fifo"))
            .unwrap()
            .is_file()
    );
    let result = scene.apply(
        Tar::default().add(EntryType::new(b's'), "sock", "", b""),
        &[],
    );
    assert!(
        matches!(
            result,
            Err(ApplyError::Tar(TarError::Unsupported { kind: 's', .. }))
        ),
        "{result:?}"
    );
    assert!(!scene.root().join("sock").exists());
}

#[test]
fn a_huge_file_of_holes_counts_with_its_declared_size() {
    let scene = Scene::new();
    let limits = Limits {
        bytes: 1 << 20,
        ..Limits::default()
    };
    // In the header, in a pax record, and in many members that are small each.
    let header = Tar::header(EntryType::Regular, b"huge", b"", 1 << 40);
    let result = apply(
        &scene.root(),
        header.as_bytes().chain(io::repeat(0)),
        &[],
        &limits,
    );
    assert!(too_large(&result), "{result:?}");
    let record = b"27 size=99999999999999999\n".to_vec();
    let record = [record.len().to_string().as_bytes(), &record[2..]].concat();
    let tar = Tar::default()
        .add(EntryType::XHeader, "x", "", &record)
        .file("huge");
    let result = apply(&scene.root(), tar.0.chain(io::repeat(0)), &[], &limits);
    assert!(too_large(&result), "{result:?}");
    let zeros = vec![0; 100_000];
    let many = (0..20).fold(Tar::default(), |tar, n| {
        tar.add(EntryType::Regular, &format!("f{n}"), "", &zeros)
    });
    let result = apply(&scene.root(), &many.end()[..], &[], &limits);
    assert!(too_large(&result), "{result:?}");
    assert!(!scene.root().join("huge").exists());
}

fn too_large<T>(result: &Result<T, ApplyError>) -> bool {
    matches!(
        result,
        Err(ApplyError::Tar(TarError::Excess(Excess::Bytes(_))))
    )
}

#[test]
fn depth_costs_no_stack_and_is_bounded_by_the_path() {
    let scene = Scene::new();
    let deep = "d/".repeat(2000) + "end";
    let tar = Tar::default()
        .add(EntryType::XHeader, "x", "", &path_record(&deep))
        .file("short");
    let applied = scene.apply(tar, &[]).unwrap();
    assert_eq!(applied.files, 1);
    assert_eq!(scene.apply(Tar::default(), &["/d"]).unwrap().deleted, 1);
    assert!(!scene.root().join("d").exists());
    let deeper = "d/".repeat(2100) + "end";
    let tar = Tar::default()
        .add(EntryType::XHeader, "x", "", &path_record(&deeper))
        .file("short");
    let result = scene.apply(tar, &[]);
    assert!(
        matches!(result, Err(ApplyError::Tar(TarError::Name { .. }))),
        "{result:?}"
    );
}

/// A short tar could otherwise make two thousand directories with every member.
#[test]
fn directories_that_only_names_mention_count() {
    let scene = Scene::new();
    let limits = Limits {
        entries: 100,
        ..Limits::default()
    };
    let members = |names: &[String]| {
        let tar = names.iter().fold(Tar::default(), |tar, name| {
            tar.add(EntryType::XHeader, "x", "", &path_record(name))
                .file("short")
        });
        tar.end()
    };
    let fits = members(&["a/".repeat(99) + "f", "a/b/f".to_owned()]);
    apply(&scene.root(), &fits[..], &[], &limits).unwrap();
    let too_many = members(&["c/".repeat(60) + "f", "e/".repeat(60) + "f"]);
    let result = apply(&scene.root(), &too_many[..], &[], &limits);
    assert!(
        matches!(
            result,
            Err(ApplyError::Tar(TarError::Excess(Excess::Entries(100))))
        ),
        "{result:?}"
    );
}

#[test]
fn entries_below_a_file_or_through_a_loop_are_refused() {
    let scene = Scene::new();
    for tar in [
        Tar::default().file("f").file("f/below"),
        Tar::default()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x"),
        Tar::default().symlink("gone", "nowhere").file("gone/x"),
    ] {
        let result = scene.apply(tar, &[]);
        assert!(matches!(result, Err(ApplyError::Path(_))), "{result:?}");
    }
}

#[test]
fn the_modes_of_what_is_there_are_the_tars_and_not_wider_before() {
    let scene = Scene::new();
    let mut header = Tar::header(EntryType::Regular, b"secret", b"", 0);
    header.set_mode(0o400);
    header.set_cksum();
    scene.apply(Tar(header.as_bytes().to_vec()), &[]).unwrap();
    let mode = fs::metadata(scene.root().join("secret")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o7777, 0o400);
}
