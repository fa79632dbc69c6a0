//! Archives that are whole and made to do harm: nothing of them is a link, leads out of the
//! directory, or takes more than it has declared.

mod archive_common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use archive_common::parts::Parts;
use archive_common::{options, write};
use kybernate_oci::archive::{Archive, EntryFault, Level, ReadError};
use kybernate_oci::manifest::Entry;

fn archive(directory: &Path) -> (PathBuf, Parts) {
    let path = directory.join("archive");
    let files = [
        ("checkpoint/pages-1.img", b"memory".repeat(1000)),
        ("container.log", b"a line\n".to_vec()),
    ];
    write(&path, options(Level::Default), &files).unwrap();
    let parts = Parts::of(&fs::read(&path).unwrap());
    (path, parts)
}

fn extract(archive: &Path, out: &Path) -> Result<u64, ReadError> {
    let target = |entry: &Entry| Some(PathBuf::from(&entry.name));
    Archive::open(archive)?.extract(&target, out, 1, &AtomicBool::new(false))
}

/// The shape of CVE-2026-53489: `container.log` in a checkpoint is a symbolic link to a file of the
/// host. Here an archive has no entry but plain files and directories.
#[test]
fn cve_2026_53489_a_log_that_is_a_link_is_no_entry() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut parts) = archive(directory.path());
    let number = (0..parts.frames.len())
        .find(|number| {
            parts
                .content(*number)
                .windows(13)
                .any(|w| w == b"container.log")
        })
        .unwrap();
    let good = parts.content(number);
    let at = good
        .windows(13)
        .position(|w| w == b"container.log")
        .unwrap();
    for kind in [b'1', b'2', b'3', b'4', b'6', b'7', b'x', b'g', b'L', b'S'] {
        let mut content = good.clone();
        let mut header = tar::Header::from_byte_slice(&content[at..at + 512]).clone();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_link_name("/etc/shadow").unwrap();
        header.set_cksum();
        content[at..at + 512].copy_from_slice(header.as_bytes());
        parts.set(number, &content, 3);
        fs::write(&path, parts.archive()).unwrap();
        let out = directory.path().join("out");
        fs::create_dir(&out).unwrap();
        let error = extract(&path, &out).unwrap_err();
        assert!(
            matches!(&error, ReadError::Entry { name, fault: EntryFault::Header } if name == "container.log"),
            "{error}"
        );
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
        fs::remove_dir(&out).unwrap();
    }
}

#[test]
fn links_that_lie_in_the_directory_already_are_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = archive(directory.path());
    let outside = directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    for (name, to) in [
        ("container.log", "../outside/file"),
        ("checkpoint", "../outside"),
    ] {
        let out = directory.path().join("out");
        fs::create_dir(&out).unwrap();
        symlink(to, out.join(name)).unwrap();
        let error = extract(&path, &out).unwrap_err();
        assert!(matches!(error, ReadError::Extract { .. }), "{error}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "{name}");
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        fs::remove_dir_all(&out).unwrap();
    }
    // The directory itself may be no link either.
    symlink("outside", directory.path().join("way")).unwrap();
    let error = extract(&path, &directory.path().join("way")).unwrap_err();
    assert!(matches!(error, ReadError::Extract { .. }), "{error}");
}

/// Frames that a seek table only claims take neither memory nor time.
#[test]
fn a_seek_table_of_holes_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bomb");
    for rows in [u32::MAX, u32::MAX / 12 - 1, 300_000_000, 20_000_000] {
        let file = File::create(&path).unwrap();
        let table = u64::from(rows) * 12 + 17;
        let mut footer = rows.to_le_bytes().to_vec();
        footer.push(0x80);
        footer.extend(0x8F92_EAB1_u32.to_le_bytes());
        file.set_len(table + (1 << 20)).unwrap();
        file.write_all_at(&footer, table + (1 << 20) - 9).unwrap();
        let begun = Instant::now();
        let error = Archive::open(&path).unwrap_err();
        assert!(matches!(error, ReadError::SeekTable { .. }), "{error}");
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{rows} rows: {:?}",
            begun.elapsed()
        );
    }
}

/// A frame may not be more than 64 MiB, nor smaller or larger than it says, whatever it decodes to.
#[test]
fn a_frame_that_decodes_to_more_than_it_declares_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut parts) = archive(directory.path());
    let number = 1;
    let declared = parts.frames[number].1;
    for size in [declared as usize + 1, 8 << 20, 65 << 20] {
        parts.set(number, &vec![0; size], 19);
        for told in [declared, size as u32] {
            parts.frames[number].1 = told;
            fs::write(&path, parts.archive()).unwrap();
            let out = directory.path().join("out");
            fs::create_dir(&out).unwrap();
            assert!(
                extract(&path, &out).is_err(),
                "{size} bytes, {told} declared"
            );
            assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
            fs::remove_dir(&out).unwrap();
        }
    }
}
