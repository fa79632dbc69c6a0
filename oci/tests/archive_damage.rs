//! Whatever happens to an archive's bytes is noticed, and named.

mod archive_common;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use archive_common::parts::Parts;
use archive_common::{FRAME, memory, noise, options, verify, write};
use kybernate_oci::archive::{Archive, EntryFault, Level, ReadError};
use kybernate_oci::manifest::Entry;
use proptest::prelude::*;

fn small_archive(directory: &Path) -> Vec<u8> {
    let path = directory.join("good");
    let files = [
        ("checkpoint/pages-1.img", memory(5, 900)),
        ("spec.dump", b"{\"a\": 1}".repeat(20)),
        ("empty", Vec::new()),
        ("zeros", vec![0; 9000]),
    ];
    write(&path, options(Level::Default), &files).unwrap();
    verify(&path).unwrap();
    fs::read(path).unwrap()
}

fn refused(directory: &Path, bytes: &[u8]) -> Option<ReadError> {
    let path = directory.join("bad");
    fs::write(&path, bytes).unwrap();
    verify(&path).err()
}

/// Which bytes are heads of frames, or the seek table.
fn frame_fields(archive: &[u8]) -> Vec<bool> {
    let mut fields = vec![true; archive.len()];
    let mut at = 0;
    for (frame, _) in Parts::of(archive).frames {
        fields[at + frame.len().min(24)..at + frame.len()].fill(false);
        at += frame.len();
    }
    fields
}

#[test]
fn every_byte_is_guarded() {
    let directory = tempfile::tempdir().unwrap();
    let good = small_archive(directory.path());
    let fields = frame_fields(&good);
    for at in 0..good.len() {
        // Every bit where fields are packed, a different one of each byte elsewhere.
        let bits = if fields[at] { 0..8 } else { at % 8..at % 8 + 1 };
        for bit in bits {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            let error = refused(directory.path(), &bad);
            let error = error.unwrap_or_else(|| panic!("byte {at} bit {bit} of {}", good.len()));
            let text = error.to_string();
            assert!(
                ["entry", "seek table", "manifest", "frames", "format"]
                    .iter()
                    .any(|part| text.contains(part)),
                "{text}"
            );
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let good = small_archive(directory.path());
    for size in 0..good.len() {
        assert!(refused(directory.path(), &good[..size]).is_some(), "{size}");
    }
}

#[test]
fn bytes_added_anywhere_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let good = small_archive(directory.path());
    for junk in [&b"\0"[..], b"x", b"\x50\x2a\x4d\x18\0\0\0\0", &good] {
        for at in [0, 526, good.len() / 2, good.len()] {
            let mut bad = good.clone();
            bad.splice(at..at, junk.iter().copied());
            assert!(
                refused(directory.path(), &bad).is_some(),
                "{} bytes at {at}",
                junk.len()
            );
        }
    }
}

fn parts() -> (tempfile::TempDir, Parts) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("good");
    let files = [
        ("checkpoint/pages-1.img", memory(5, 2 * FRAME)),
        ("checkpoint/pages-2.img", memory(6, 2 * FRAME)),
    ];
    write(&path, options(Level::Default), &files).unwrap();
    let bytes = fs::read(path).unwrap();
    let parts = Parts::of(&bytes);
    assert_eq!(parts.archive(), bytes);
    // First entry; per stream its header and two frames; the manifest.
    assert_eq!(parts.frames.len(), 8);
    (directory, parts)
}

fn name_and_fault(error: Option<ReadError>) -> (String, EntryFault) {
    match error.expect("refused") {
        ReadError::Entry { name, fault } => (name, fault),
        other => panic!("{other}"),
    }
}

#[test]
fn exchanged_entries_are_named() {
    let (directory, mut parts) = parts();
    parts.frames.swap(1, 4);
    let (name, fault) = name_and_fault(refused(directory.path(), &parts.archive()));
    assert_eq!(
        (name.as_str(), fault),
        ("checkpoint/pages-1.img", EntryFault::Header)
    );
}

#[test]
fn exchanged_and_changed_contents_are_named() {
    let (directory, parts) = parts();
    let mut swapped = Parts {
        frames: parts.frames.clone(),
    };
    swapped.frames.swap(5, 6);
    let mut changed = Parts {
        frames: parts.frames.clone(),
    };
    let mut content = changed.content(6);
    content[77] ^= 1;
    changed.set(6, &content, 3);
    for bad in [swapped, changed] {
        let (name, fault) = name_and_fault(refused(directory.path(), &bad.archive()));
        assert_eq!(name, "checkpoint/pages-2.img");
        assert!(matches!(fault, EntryFault::Digest { .. }), "{fault}");
    }
}

#[test]
fn frames_left_out_or_doubled_are_refused() {
    let (directory, parts) = parts();
    for at in 0..parts.frames.len() {
        let mut fewer = Parts {
            frames: parts.frames.clone(),
        };
        fewer.frames.remove(at);
        assert!(refused(directory.path(), &fewer.archive()).is_some());
        let mut more = Parts {
            frames: parts.frames.clone(),
        };
        more.frames.insert(at, parts.frames[at].clone());
        assert!(refused(directory.path(), &more.archive()).is_some());
    }
}

#[test]
fn another_encoding_of_the_same_content_is_refused() {
    let (directory, mut parts) = parts();
    let content = parts.content(5);
    parts.set(5, &content, 19);
    let error = refused(directory.path(), &parts.archive()).unwrap();
    assert!(matches!(error, ReadError::Frames { .. }), "{error}");
    parts.set(7, &parts.content(7), 3);
    let error = refused(directory.path(), &parts.archive()).unwrap();
    assert!(matches!(error, ReadError::Manifest { .. }), "{error}");
}

#[test]
fn headers_must_be_canonical() {
    let (directory, mut parts) = parts();
    let mut content = parts.content(4);
    let mut header = tar::Header::from_byte_slice(&content).clone();
    header.set_mode(0o4755);
    header.set_cksum();
    content.copy_from_slice(header.as_bytes());
    parts.set(4, &content, 3);
    let (name, fault) = name_and_fault(refused(directory.path(), &parts.archive()));
    assert_eq!(
        (name.as_str(), fault),
        ("checkpoint/pages-2.img", EntryFault::Header)
    );
}

/// Puts a changed manifest into the archive, in the writer's form.
fn with_manifest(parts: &mut Parts, change: impl FnOnce(&mut String)) {
    let last = parts.frames.len() - 1;
    let content = parts.content(last);
    let size = tar::Header::from_byte_slice(&content[..512])
        .size()
        .unwrap() as usize;
    let mut json = String::from_utf8(content[512..512 + size].to_vec()).unwrap();
    change(&mut json);
    let mut header = tar::Header::from_byte_slice(&content[..512]).clone();
    header.set_size(json.len() as u64);
    header.set_cksum();
    let mut content = header.as_bytes().to_vec();
    content.extend(json.bytes());
    content.resize(content.len().next_multiple_of(512) + 1024, 0);
    let mut frame = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    frame.push(0xA4);
    frame.extend((content.len() as u32).to_le_bytes());
    frame.extend(&(1 | (content.len() as u32) << 3).to_le_bytes()[..3]);
    frame.extend(&content);
    let mut with_sum = zstd::bulk::Compressor::new(1).unwrap();
    with_sum.include_checksum(true).unwrap();
    frame.extend(
        with_sum
            .compress(&content)
            .unwrap()
            .last_chunk::<4>()
            .unwrap(),
    );
    parts.frames[last] = (frame, content.len() as u32);
}

#[test]
fn manifests_that_do_not_fit_are_refused() {
    let (directory, mut parts) = parts();
    let mut error = |from: &str, to: &str| {
        with_manifest(&mut parts, |json| {
            assert!(json.contains(from), "{from} in {json}");
            *json = json.replace(from, to);
        });
        let error = refused(directory.path(), &parts.archive());
        with_manifest(&mut parts, |json| *json = json.replace(to, from));
        assert!(refused(directory.path(), &parts.archive()).is_none());
        error.expect("refused").to_string()
    };
    assert!(error("\"format\": 1", "\"format\": 2").contains("format 2"));
    assert!(error("\"format\": 1", "\"format\": \"x\"").contains("manifest"));
    assert!(error("pages-2.img", "pages-3.img").contains("pages-3.img"));
    assert!(error("checkpoint/pages-2.img", "../pages-2.img").contains("../pages-2.img"));
    assert!(error("checkpoint/pages-2.img", "/pages-2.img").contains("absolute"));
    assert!(
        error(
            "\"size\": 131072,\n      \"offset\": 512,",
            "\"size\": 131073,\n      \"offset\": 512,"
        )
        .contains("pages")
    );
    assert!(error("\"offset\": 512,", "\"offset\": 1024,").contains("pages-1.img"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn garbage_is_refused_and_never_panics(seed in any::<u64>(), size in 0usize..3000, tail in any::<bool>()) {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = noise(seed, size);
        if tail {
            let table = Parts { frames: vec![(noise(seed, 40), (seed % 9000) as u32 + 1); (seed % 5) as usize] };
            bytes = table.archive();
        }
        prop_assert!(refused(directory.path(), &bytes).is_some());
    }

    #[test]
    fn several_changed_bytes_are_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let directory = tempfile::tempdir().unwrap();
        let good = small_archive(directory.path());
        let mut bad = good.clone();
        for (at, byte) in changes {
            let at = at.index(bad.len());
            bad[at] = byte;
        }
        prop_assume!(bad != good);
        prop_assert!(refused(directory.path(), &bad).is_some());
    }
}

#[test]
fn extraction_of_a_damaged_archive_leaves_nothing() {
    let (directory, mut parts) = parts();
    let mut content = parts.content(6);
    content[1] ^= 0x80;
    parts.set(6, &content, 3);
    let path = directory.path().join("bad");
    fs::write(&path, parts.archive()).unwrap();
    let out = directory.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "stays").unwrap();
    // Damage in an entry that is not wanted spoils the others, too.
    let target = |entry: &Entry| {
        entry
            .name
            .ends_with("1.img")
            .then(|| PathBuf::from("a/b/c"))
    };
    let archive = Archive::open(&path).unwrap();
    let error = archive
        .extract(&target, &out, 2, &AtomicBool::new(false))
        .unwrap_err();
    assert!(error.to_string().contains("pages-2.img"), "{error}");
    let left: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert_eq!(left, ["mine"]);
    let mut read = Vec::new();
    let mut entry = archive.entry("checkpoint/pages-2.img").unwrap();
    assert!(entry.read_to_end(&mut read).is_err());
    assert!(entry.read(&mut [0]).is_err());
}

#[test]
fn extraction_stays_in_its_directory() {
    let (directory, parts) = parts();
    let path = directory.path().join("good");
    let archive = Archive::open(&path).unwrap();
    let out = directory.path().join("out");
    let elsewhere = directory.path().join("elsewhere");
    fs::create_dir(&out).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, out.join("link")).unwrap();
    symlink(elsewhere.join("x"), out.join("dangling")).unwrap();
    fs::write(out.join("taken"), "mine").unwrap();
    for target in ["../x", "/x", "", "a/../../x", "link/x", "dangling", "taken"] {
        let choose = |entry: &Entry| entry.name.ends_with("1.img").then(|| PathBuf::from(target));
        let error = archive
            .extract(&choose, &out, 2, &AtomicBool::new(false))
            .unwrap_err();
        assert!(
            matches!(error, ReadError::Target { .. } | ReadError::Extract { .. }),
            "{target:?}: {error}"
        );
    }
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    assert_eq!(fs::read(out.join("taken")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
    drop(parts);
}

#[test]
fn a_cancelled_extraction_leaves_nothing() {
    let (directory, _) = parts();
    let archive = Archive::open(directory.path().join("good")).unwrap();
    let out = directory.path().join("out");
    fs::create_dir(&out).unwrap();
    let error = archive
        .extract(
            &|entry| Some(PathBuf::from(&entry.name)),
            &out,
            2,
            &AtomicBool::new(true),
        )
        .unwrap_err();
    assert!(matches!(error, ReadError::Cancelled), "{error}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}

#[test]
fn only_regular_files_are_opened() {
    let (directory, _) = parts();
    let link = directory.path().join("link");
    symlink(directory.path().join("good"), &link).unwrap();
    assert!(matches!(Archive::open(&link), Err(ReadError::Open { .. })));
    assert!(matches!(
        Archive::open(directory.path()),
        Err(ReadError::NotFile { .. })
    ));
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(
        Archive::open(&fifo),
        Err(ReadError::NotFile { .. })
    ));
    assert!(matches!(
        Archive::open(directory.path().join("none")),
        Err(ReadError::Open { .. })
    ));
}
