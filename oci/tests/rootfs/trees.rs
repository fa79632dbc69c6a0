//! Whole directories: the contents of /dev/shm.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use kybernate_oci::rootfs::{Limits, tree};

use crate::snapshot::{assert_same, snapshot};

#[test]
fn a_directory_comes_back_as_it_was() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("sem.lock"), [7; 32]).unwrap();
    fs::hard_link(from.path().join("sem.lock"), from.path().join("sem.other")).unwrap();
    fs::create_dir(from.path().join("dir")).unwrap();
    fs::write(from.path().join("dir/psm"), vec![1; 70_000]).unwrap();
    std::os::unix::fs::symlink("dir/psm", from.path().join("sym")).unwrap();
    fs::set_permissions(from.path(), Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(from.path().join("dir/psm"), Permissions::from_mode(0o600)).unwrap();
    let mut tar = Vec::new();
    let packed = tree::pack(from.path(), &mut tar).unwrap();
    assert_eq!(
        (packed.files, packed.bytes, packed.deleted.len()),
        (6, 70_032, 0)
    );

    let into = tempfile::tempdir().unwrap();
    fs::write(into.path().join("dir"), "in the way").unwrap();
    let applied = tree::unpack(into.path(), &tar[..], &Limits::default()).unwrap();
    assert_eq!((applied.files, applied.bytes), (6, 70_032));
    assert_same(&snapshot(from.path()), &snapshot(into.path()));

    let empty = tempfile::tempdir().unwrap();
    let mut tar = Vec::new();
    assert_eq!(tree::pack(empty.path(), &mut tar).unwrap().files, 1);

    let into = tempfile::tempdir().unwrap();
    tree::unpack(into.path(), &tar[..], &Limits::default()).unwrap();
    assert_same(&snapshot(empty.path()), &snapshot(into.path()));
}
