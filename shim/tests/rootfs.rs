//! Root file systems on the real kernel, in a mount namespace of the test's own. Needs root.

use std::{fs, path::Path};

use containerd_shim_protos::api::Mount;
use kybernate_shim::mount::{MountError, mount_all, mount_points, unmount_all};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs a test on an empty tmpfs that nobody else sees.
fn in_private_mounts(test: impl FnOnce(&Path)) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: mounts need root");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let dir = tempfile::tempdir().unwrap();
    mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .unwrap();
    test(dir.path());
    unmount_all(dir.path()).unwrap();
}

fn request(kind: &str, source: &str, target: &str, options: &[&str]) -> Mount {
    Mount {
        type_: kind.into(),
        source: source.into(),
        target: target.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

/// Layers whose paths together are longer than a page; each has a file of its own.
fn layers(root: &Path, count: usize) -> String {
    let make = |n| {
        let layer = root.join(format!("snapshots/{n:03}-{}/fs", "x".repeat(40)));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("file-{n}")), "").unwrap();
        layer.to_str().unwrap().to_owned()
    };
    (0..count).map(make).collect::<Vec<_>>().join(":")
}

#[test]
fn an_overlay_of_more_layers_than_fit_a_page_is_mounted_and_gone_again() {
    in_private_mounts(|root| {
        let lower = layers(root, 60);
        for dir in ["upper", "work", "rootfs"] {
            fs::create_dir(root.join(dir)).unwrap();
        }
        let dir = |name: &str| root.join(name).to_str().unwrap().to_owned();
        let options = [
            format!("lowerdir={lower}"),
            format!("upperdir={}", dir("upper")),
            format!("workdir={}", dir("work")),
        ];
        assert!(options[0].len() > 4096);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let rootfs = root.join("rootfs");
        mount_all(&[request("overlay", "overlay", "", &options)], &rootfs).unwrap();
        assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 60);
        fs::write(rootfs.join("new"), "").unwrap();
        assert!(root.join("upper/new").exists());
        unmount_all(&rootfs).unwrap();
        assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 0);
    });
}

#[test]
fn a_read_only_bind_mount_is_read_only_and_follows_the_first_mount() {
    in_private_mounts(|root| {
        fs::create_dir_all(root.join("source/sub")).unwrap();
        fs::create_dir(root.join("rootfs")).unwrap();
        let rootfs = root.join("rootfs");
        let source = root.join("source");
        let mounts = [
            request(
                "bind",
                source.to_str().unwrap(),
                "",
                &["rbind", "ro", "nosuid"],
            ),
            request("tmpfs", "tmpfs", "/sub", &["size=64k"]),
        ];
        mount_all(&mounts, &rootfs).unwrap();
        assert!(fs::write(rootfs.join("x"), "").is_err());
        fs::write(rootfs.join("sub/x"), "").unwrap();
        assert!(!source.join("sub/x").exists());
    });
}

#[test]
fn a_mount_that_fails_takes_those_before_it_along() {
    in_private_mounts(|root| {
        let rootfs = root.join("rootfs");
        fs::create_dir(&rootfs).unwrap();
        let mounts = [
            request("tmpfs", "tmpfs", "", &[]),
            request("no-such-file-system", "x", "", &[]),
        ];
        let error = mount_all(&mounts, &rootfs).unwrap_err();
        assert!(matches!(error, MountError::Mount { .. }));
        assert!(error.to_string().contains("no-such-file-system"), "{error}");
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mount_points(&table).contains(&rootfs));
    });
}
