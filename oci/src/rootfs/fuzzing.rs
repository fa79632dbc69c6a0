//! Tars of file system changes that somebody made to do harm.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::apply::apply;
use super::bounds::{Devices, Limits};
use super::decode::Members;
use super::encode::{BLOCK, Encoder};
use super::member::{Kind, Member, Meta, Stamp};

const LIMITS: Limits = Limits {
    entries: 200,
    bytes: 1 << 20,
    waiting: 1 << 20,
    devices: Devices::Refuse,
};

/// Bits of the first byte.
const AS_IT_IS: u8 = 1;
const DELETE_ALL: u8 = 2;
const LINKS_IN_THE_ROOT: u8 = 4;

/// What is decoded comes back from what it encodes to; what is applied stays in its root, is
/// bounded, and holds no device.
pub(crate) fn rootfs_diff(data: &[u8], scratch: &Path) {
    let Some((flags, rest)) = data.split_first() else {
        return;
    };
    let mut tar = rest.to_vec();
    if flags & AS_IT_IS == 0 {
        fix_checksums(&mut tar);
    }
    let names = decoded(&tar);
    let deleted: Vec<String> = if flags & DELETE_ALL == 0 {
        Vec::new()
    } else {
        let text = |path: &PathBuf| Some(format!("/{}", path.to_str()?));
        names.iter().filter_map(text).collect()
    };
    let (root, outside) = (scratch.join("root"), scratch.join("outside"));
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    if flags & LINKS_IN_THE_ROOT != 0 {
        std::os::unix::fs::symlink(&outside, root.join("way")).unwrap();
        std::os::unix::fs::symlink("../outside/file", root.join("leaf")).unwrap();
        std::os::unix::fs::symlink("/proc/self/root", root.join("magic")).unwrap();
    }
    if let Ok(applied) = apply(&root, &tar[..], &deleted, &LIMITS) {
        assert!(applied.files <= LIMITS.entries && applied.bytes <= LIMITS.bytes);
    }
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_dir(scratch).unwrap().count(), 2);
    assert!(fs::symlink_metadata(&outside).unwrap().is_dir());
    let (found, bytes) = cleared(&root);
    assert!(found as u64 <= LIMITS.entries + 8, "{found} entries");
    assert!(bytes <= LIMITS.bytes, "{bytes} bytes");
    fs::remove_dir_all(outside).unwrap();
}

/// Reads all members; each encodes to what reads as itself. Returns their names.
fn decoded(tar: &[u8]) -> Vec<PathBuf> {
    let mut names = Vec::new();
    let mut members = Members::new(tar, &LIMITS);
    while let Ok(Some(member)) = members.next() {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        encoder.member(&member).unwrap();
        encoder.finish().unwrap();
        let all = Limits {
            bytes: u64::MAX,
            ..LIMITS
        };
        let again = Members::new(Cursor::new(bytes), &all).next().unwrap();
        assert_eq!(again.as_ref(), Some(&member));
        names.push(member.path);
    }
    names
}

/// Counts what is in a root, and removes it.
fn cleared(root: &Path) -> (usize, u64) {
    let (mut found, mut bytes) = (0, 0);
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        // Whoever is not root could not look into it.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        let list = match fs::read_dir(&directory) {
            Ok(list) => list,
            // A path longer than the kernel takes at once: what is below is not counted.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENAMETOOLONG) => continue,
            Err(error) => panic!("{error}"),
        };
        for entry in list {
            let entry = entry.unwrap();
            found += 1;
            let kind = entry.file_type().unwrap();
            assert!(!kind.is_block_device() && !kind.is_char_device());
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                bytes += entry.metadata().unwrap().len();
            }
        }
    }
    fs::remove_dir_all(root).unwrap();
    (found, bytes)
}

/// Makes the checksum of every header right, as far as headers can be told.
fn fix_checksums(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let header: &mut [u8; BLOCK] = block.try_into().unwrap();
        let mut fixed = tar::Header::from_byte_slice(header).clone();
        fixed.set_cksum();
        *header = *fixed.as_bytes();
        let size = fixed.entry_size().unwrap_or(0).min(1 << 20) as usize;
        at += size.next_multiple_of(BLOCK);
    }
}

pub(crate) fn tars() -> Vec<Vec<u8>> {
    let member = |path: &str, kind| Member {
        path: path.into(),
        kind,
        meta: Meta {
            mode: 0o4755,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            mtime: Stamp { sec: 7, nsec: 8 },
            xattrs: vec![("user.a=b%".into(), b"\n\0".to_vec())],
        },
    };
    let tar = |members: &[Member]| {
        let mut bytes = vec![0];
        let mut encoder = Encoder::new(&mut bytes);
        for member in members {
            encoder.member(member).unwrap();
        }
        encoder.deletion(Path::new("etc/gone")).unwrap();
        encoder.finish().unwrap();
        bytes
    };
    let deep = "d/".repeat(300);
    let seeds = [
        tar(&[
            member("", Kind::Directory),
            member("etc/file", Kind::File(0)),
            member("etc/link", Kind::Link("etc/file".into())),
            member("s", Kind::Symlink("/etc".into())),
            member("s/through", Kind::File(0)),
            member("fifo", Kind::Fifo),
        ]),
        tar(&[
            member("way", Kind::Symlink("../../../../../..".into())),
            member("way/outside/file", Kind::File(0)),
            member("way/file", Kind::Link("leaf".into())),
            member("magic/etc/x", Kind::Directory),
        ]),
        tar(&[
            member("null", Kind::Char(1, 3)),
            member("sda", Kind::Block(8, 0)),
        ]),
        tar(&[member(&format!("{deep}end"), Kind::Directory)]),
        tar(&[member(
            &"n".repeat(260),
            Kind::Symlink("t".repeat(150).into()),
        )]),
    ];
    let with_links = seeds.clone().map(|mut seed| {
        seed[0] = LINKS_IN_THE_ROOT | DELETE_ALL;
        seed
    });
    let mut seeds: Vec<Vec<u8>> = seeds.into_iter().chain(with_links).collect();
    // A file with content, which the encoder takes from files alone.
    let mut file = tar(&[member("etc/full", Kind::File(5))]);
    let header = file.len() - 2 * BLOCK - 2 * BLOCK;
    let mut content = b"hello".to_vec();
    content.resize(BLOCK, 0);
    file.splice(header..header, content);
    seeds.push(file);
    seeds
}
