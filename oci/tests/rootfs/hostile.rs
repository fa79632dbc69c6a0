//! Tars that try to lead out of the root, to hold what they must not, or to never end.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::Path;

use kybernate_oci::rootfs::{Applied, ApplyError, Devices, Excess, Limits, TarError, apply};
use nix::unistd::{getegid, geteuid};
use tar::{EntryType, Header};
use tempfile::TempDir;

/// A tar written by hand, so that any name can stand in it.
#[derive(Default)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn header(kind: EntryType, name: &[u8], target: &[u8], size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(geteuid().as_raw().into());
        header.set_gid(getegid().as_raw().into());
        header.set_mtime(1);
        header.set_size(size);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        header
    }

    pub fn add(mut self, kind: EntryType, name: &str, target: &str, content: &[u8]) -> Self {
        let size = content.len() as u64;
        let header = Self::header(kind, name.as_bytes(), target.as_bytes(), size);
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str) -> Self {
        self.add(EntryType::Regular, name, "", b"hostile")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, target, b"")
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Link, name, target, b"")
    }

    pub fn directory(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", b"")
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A root beside something precious.
pub struct Scene {
    pub dir: TempDir,
}

impl Scene {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        fs::create_dir_all(dir.path().join("outside/dir")).unwrap();
        fs::write(dir.path().join("outside/file"), "precious").unwrap();
        fs::write(dir.path().join("outside/dir/file"), "precious").unwrap();
        Self { dir }
    }

    pub fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    pub fn outside(&self) -> String {
        self.dir.path().join("outside").to_str().unwrap().to_owned()
    }

    pub fn apply(&self, tar: Tar, deleted: &[&str]) -> Result<Applied, ApplyError> {
        let deleted: Vec<_> = deleted.iter().map(|path| (*path).to_owned()).collect();
        let applied = apply(&self.root(), &tar.end()[..], &deleted, &Limits::default());
        self.check();
        applied
    }

    /// Whether what is outside is as it was.
    #[track_caller]
    pub fn check(&self) {
        let mut found = Vec::new();
        for dir in ["outside", "outside/dir"] {
            for entry in fs::read_dir(self.dir.path().join(dir)).unwrap() {
                found.push(entry.unwrap().file_name().into_string().unwrap());
            }
        }
        found.sort();
        assert_eq!(found, ["dir", "file", "file"]);
        for file in ["outside/file", "outside/dir/file"] {
            assert_eq!(fs::read(self.dir.path().join(file)).unwrap(), b"precious");
        }
        let mut beside: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        beside.sort();
        assert_eq!(beside, ["outside", "root"]);
    }
}

#[track_caller]
fn refused_name(result: Result<Applied, ApplyError>) {
    assert!(
        matches!(result, Err(ApplyError::Tar(TarError::Name { .. }))),
        "{result:?}"
    );
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [
        "../outside/file",
        "/outside/file",
        "etc/../../outside/file",
        "..",
        "a/..",
        "",
    ] {
        let scene = Scene::new();
        refused_name(scene.apply(Tar::default().file(name), &[]));
        refused_name(scene.apply(Tar::default().directory(name), &[]));
        refused_name(scene.apply(Tar::default().file("etc/mine").link("etc/link", name), &[]));
    }
    // The root itself is a directory and stays one.
    let scene = Scene::new();
    refused_name(scene.apply(Tar::default().symlink("./", &scene.outside()), &[]));
    refused_name(scene.apply(Tar::default().link("etc/x", "."), &[]));
    // So does what an extension header says.
    let records = b"24 path=../outside/file\n";
    let tar = Tar::default()
        .add(EntryType::XHeader, "x", "", records)
        .file("innocent");
    refused_name(scene.apply(tar, &[]));
    let tar = Tar::default()
        .add(EntryType::GNULongName, "l", "", b"/etc/x\0")
        .file("innocent");
    refused_name(scene.apply(tar, &[]));
}

#[test]
fn links_in_the_tar_do_not_lead_out() {
    for target in [
        None,
        Some("../../../../../../../.."),
        Some("/"),
        Some("../outside"),
    ] {
        let scene = Scene::new();
        let outside = scene.outside();
        let target = target.unwrap_or(&outside);
        // Whatever comes of it, it stays inside.
        for name in ["way/file", "way/dir/file", "way/outside/file", "way/new"] {
            let _ = scene.apply(Tar::default().symlink("way", target).file(name), &[]);
            let _ = scene.apply(Tar::default().symlink("way", target).directory(name), &[]);
            let tar = Tar::default().symlink("way", target).link("mine", name);
            let _ = scene.apply(tar.file("mine"), &[]);
            let _ = scene.apply(
                Tar::default().symlink("way", target),
                &[name, "way/dir", "way/."],
            );
        }
    }
}

#[test]
fn links_in_the_root_do_not_lead_out() {
    let scene = Scene::new();
    symlink(scene.outside(), scene.root().join("way")).unwrap();
    symlink(
        Path::new(&scene.outside()).join("file"),
        scene.root().join("leaf"),
    )
    .unwrap();
    symlink("/proc/self/root", scene.root().join("magic")).unwrap();
    let _ = scene.apply(Tar::default().file("way/file"), &["way/dir"]);
    let applied = scene.apply(Tar::default().file("leaf"), &[]).unwrap();
    assert_eq!(applied.files, 1);
    assert!(
        fs::symlink_metadata(scene.root().join("leaf"))
            .unwrap()
            .is_file()
    );
    // A link to the link, not to what it leads to.
    symlink(
        Path::new(&scene.outside()).join("file"),
        scene.root().join("leaf2"),
    )
    .unwrap();
    scene
        .apply(Tar::default().link("hard", "leaf2"), &[])
        .unwrap();
    assert!(
        fs::symlink_metadata(scene.root().join("hard"))
            .unwrap()
            .is_symlink()
    );
    let path = format!("magic{}/file", scene.outside());
    let _ = scene.apply(Tar::default().file(&path[..path.len().min(99)]), &[&path]);
    // Deleting a link deletes the link.
    let applied = scene.apply(Tar::default(), &["/way", "/hard"]).unwrap();
    assert_eq!(applied.deleted, 2);
}

#[test]
fn links_inside_are_followed_as_the_container_would() {
    let scene = Scene::new();
    symlink("/etc", scene.root().join("conf")).unwrap();
    scene.apply(Tar::default().file("conf/file"), &[]).unwrap();
    assert_eq!(fs::read(scene.root().join("etc/file")).unwrap(), b"hostile");
}

#[test]
fn deletions_that_lead_out_are_refused() {
    let scene = Scene::new();
    for path in [
        "../outside/file",
        "/..",
        "etc/../..",
        "",
        "/",
        "//",
        ".",
        "a\0b",
    ] {
        let result = scene.apply(Tar::default(), &[path]);
        assert!(
            matches!(result, Err(ApplyError::Deletion { .. })),
            "{path:?}: {result:?}"
        );
        assert!(scene.root().join("etc").is_dir());
    }
    assert_eq!(
        scene
            .apply(Tar::default(), &["/gone", "/gone/too", "etc"])
            .unwrap()
            .deleted,
        1
    );
}

#[test]
fn a_directory_that_becomes_a_link_keeps_its_metadata_to_itself() {
    let scene = Scene::new();
    let before = fs::metadata(scene.dir.path().join("outside")).unwrap();
    let tar = Tar::default().directory("d").symlink("d", &scene.outside());
    scene.apply(tar, &[]).unwrap();
    let after = fs::metadata(scene.dir.path().join("outside")).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    assert_eq!(before.permissions(), after.permissions());
}

#[test]
fn kinds_that_do_not_belong_are_refused() {
    let scene = Scene::new();
    for kind in [EntryType::Char, EntryType::Block] {
        let result = scene.apply(Tar::default().add(kind, "dev", "", b""), &[]);
        assert!(
            matches!(result, Err(ApplyError::Device { .. })),
            "{result:?}"
        );
    }
    for kind in [b'S', b'M', b'V', b'D'] {
        let result = scene.apply(Tar::default().add(EntryType::new(kind), "x", "", b""), &[]);
        let unsupported = matches!(
            result,
            Err(ApplyError::Tar(TarError::Unsupported { kind: found, .. })) if found == kind.into()
        );
        assert!(unsupported, "{result:?}");
    }
    let sparse = b"22 GNU.sparse.major=1\n";
    let tar = Tar::default()
        .add(EntryType::XHeader, "x", "", sparse)
        .file("f");
    let result = scene.apply(tar, &[]);
    assert!(
        matches!(result, Err(ApplyError::Tar(TarError::Unsupported { .. }))),
        "{result:?}"
    );
    // A whiteout is refused even where devices are allowed.
    let made = |major, minor| {
        let mut header = Tar::header(EntryType::Char, b"white", b"", 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        let tar = Tar(header.as_bytes().to_vec()).end();
        let limits = Limits {
            devices: Devices::Make,
            ..Limits::default()
        };
        apply(&scene.root(), &tar[..], &[], &limits)
    };
    let result = made(0, 0);
    assert!(
        matches!(
            result,
            Err(ApplyError::Device {
                major: 0,
                minor: 0,
                ..
            })
        ),
        "{result:?}"
    );
    // So are numbers that would be one, or another device, once Linux has cut them off.
    for (major, minor) in [(1 << 12, 0), (0, 1 << 20), ((1 << 12) + 1, 3)] {
        let result = made(major, minor);
        assert!(
            matches!(result, Err(ApplyError::Tar(TarError::Header { .. }))),
            "{major}:{minor}: {result:?}"
        );
    }
}

#[test]
fn attributes_of_the_host_are_not_set() {
    let scene = Scene::new();
    // LENGTH is two digits here, and a blank and a newline count too.
    let record = |text: &str| format!("{} {text}\n", text.len() + 4);
    let records = [
        record("SCHILY.xattr.trusted.overlay.redirect=/"),
        record("SCHILY.xattr.security.selinux=evil"),
        record("SCHILY.xattr.security.ima=evil"),
    ];
    let records = records.concat().into_bytes();
    let tar = Tar::default()
        .add(EntryType::XHeader, "x", "", &records)
        .file("f");
    let applied = scene.apply(tar, &[]).unwrap();
    assert_eq!(applied.notes.len(), 3, "{:?}", applied.notes);
    let set: Vec<_> = xattr::list(scene.root().join("f")).unwrap().collect();
    assert!(
        !set.iter().any(|name| name == "trusted.overlay.redirect"),
        "{set:?}"
    );
}

#[test]
fn bombs_meet_their_bounds() {
    let scene = Scene::new();
    let limits = Limits {
        entries: 10,
        bytes: 1 << 20,
        ..Limits::default()
    };
    let many = (0..11)
        .fold(Tar::default(), |tar, n| tar.file(&format!("f{n}")))
        .end();
    let result = apply(&scene.root(), &many[..], &[], &limits);
    assert!(
        matches!(
            result,
            Err(ApplyError::Tar(TarError::Excess(Excess::Entries(10))))
        ),
        "{result:?}"
    );

    let header = |kind, size| Tar::header(kind, b"large", b"", size).as_bytes().to_vec();
    let claim = header(EntryType::Regular, (1 << 20) + 1);
    let result = apply(&scene.root(), claim.chain(io::repeat(0)), &[], &limits);
    assert!(
        matches!(
            result,
            Err(ApplyError::Tar(TarError::Excess(Excess::Bytes(_))))
        ),
        "{result:?}"
    );
    assert!(
        !scene.root().join("large").exists(),
        "made before its size was checked"
    );

    for kind in [
        EntryType::XHeader,
        EntryType::XGlobalHeader,
        EntryType::GNULongName,
    ] {
        let claim = header(kind, 1 << 32);
        let limits = Limits::default();
        let result = apply(&scene.root(), claim.chain(io::repeat(b'1')), &[], &limits);
        assert!(
            matches!(result, Err(ApplyError::Tar(TarError::Header { .. }))),
            "{result:?}"
        );
    }
    let endless = io::repeat(1);
    let result = apply(&scene.root(), endless, &[], &limits);
    assert!(
        matches!(result, Err(ApplyError::Tar(TarError::Header { at: 0, .. }))),
        "{result:?}"
    );

    let gone: Vec<_> = (0..11).map(|n| format!("/{n}")).collect();
    let result = apply(&scene.root(), &Tar::default().end()[..], &gone, &limits);
    assert!(
        matches!(
            result,
            Err(ApplyError::Tar(TarError::Excess(Excess::Deletions(10))))
        ),
        "{result:?}"
    );
}

/// What waits for the end of the tar takes memory: as little as a checkpoint's own tar needs.
#[test]
fn what_waits_for_the_end_is_bounded() {
    let scene = Scene::new();
    let limits = Limits {
        waiting: 1 << 20,
        ..Limits::default()
    };
    let value = |size: usize| {
        let rest = format!(" SCHILY.xattr.user.x={}\n", "v".repeat(size));
        let digits = (rest.len() + 7).to_string().len();
        format!("{}{rest}", rest.len() + digits).into_bytes()
    };
    // The same directory again and again, each time with large attributes.
    let tar = (0..40).fold(Tar::default(), |tar, _| {
        tar.add(EntryType::XHeader, "x", "", &value(60_000))
            .directory("d")
    });
    let result = apply(&scene.root(), &tar.end()[..], &[], &limits);
    let waits = |result: &Result<_, ApplyError>| {
        matches!(
            result,
            Err(ApplyError::Tar(TarError::Excess(Excess::Waiting(_))))
        )
    };
    assert!(waits(&result), "{result:?}");

    // Deletions that global headers name, and none in the list.
    let records = "24 KYBERNATE.deleted=/x\n".repeat(50_000).into_bytes();
    let tar = Tar::default().add(EntryType::XGlobalHeader, "g", "", &records);
    let result = apply(&scene.root(), &tar.0.clone()[..], &[], &limits);
    assert!(waits(&result), "{result:?}");
    let few = Limits {
        entries: 1000,
        ..Limits::default()
    };
    let result = apply(&scene.root(), &tar.end()[..], &[], &few);
    assert!(
        matches!(
            result,
            Err(ApplyError::Tar(TarError::Excess(Excess::Deletions(1000))))
        ),
        "{result:?}"
    );

    // Many headers for one member are as bad as a large one.
    let tar = (0..3).fold(Tar::default(), |tar, _| {
        tar.add(EntryType::XHeader, "x", "", &value(3 << 20))
    });
    let result = apply(&scene.root(), &tar.file("f").end()[..], &[], &limits);
    assert!(
        matches!(result, Err(ApplyError::Tar(TarError::Header { .. }))),
        "{result:?}"
    );
}

/// A header of many attributes takes no longer than one of few large ones.
#[test]
fn many_attributes_of_one_member_take_no_time() {
    let scene = Scene::new();
    let records: String = (0..300_000)
        .map(|n| format!("26 SCHILY.xattr.x.{n:06}=\n"))
        .collect();
    let tar = Tar::default()
        .add(EntryType::XHeader, "x", "", records.as_bytes())
        .file("f");
    let begun = std::time::Instant::now();
    let applied = scene.apply(tar, &[]).unwrap();
    assert_eq!(applied.notes.len(), 300_000);
    let took = begun.elapsed();
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}

/// Only members count: a checkpoint writes an extension header before nearly every one.
#[test]
fn headers_that_extend_a_member_are_no_entries() {
    let scene = Scene::new();
    let limits = Limits {
        entries: 10,
        ..Limits::default()
    };
    let tar = (0..10).fold(Tar::default(), |tar, n| {
        tar.add(EntryType::XHeader, "x", "", b"13 mtime=1.5\n")
            .file(&format!("f{n}"))
    });
    apply(&scene.root(), &tar.end()[..], &[], &limits).unwrap();
}

#[test]
fn a_tar_cut_off_anywhere_is_told() {
    let whole = Tar::default()
        .directory("d")
        .add(EntryType::XHeader, "x", "", b"11 path=p/\n")
        .directory("p")
        .file("d/f")
        .end();
    let scene = Scene::new();
    apply(&scene.root(), &whole[..], &[], &Limits::default()).unwrap();
    // The second block of zeros may be missing.
    for length in 0..whole.len() - 512 {
        let result = apply(&scene.root(), &whole[..length], &[], &Limits::default());
        let truncated = matches!(result, Err(ApplyError::Tar(TarError::Truncated { .. })));
        assert!(truncated, "{length} bytes: {result:?}");
    }
}

#[test]
fn a_changed_bit_in_a_header_is_told_or_harmless() {
    let whole = Tar::default()
        .directory("d")
        .file("d/f")
        .symlink("s", "d/f")
        .end();
    let scene = Scene::new();
    for at in 0..whole.len() {
        for bit in [0, 3, 6] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            let _ = apply(&scene.root(), &damaged[..], &[], &Limits::default());
        }
    }
    scene.check();
}
