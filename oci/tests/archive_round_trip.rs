//! What was written is what is read, whatever the sizes and levels.

mod archive_common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use archive_common::{FRAME, memory, noise, options, verify, write};
use kybernate_oci::archive::{Archive, Level, ReadError, WriteError, Writer};
use kybernate_oci::manifest::{FORMAT, Manifest};
use proptest::prelude::*;

const LEVELS: [Level; 4] = [Level::Fast, Level::Default, Level::High, Level::Zstd(-20)];

/// Checks archive, random access and extraction against `files`.
fn check(level: Level, files: &[(&str, Vec<u8>)]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    let summary = write(&path, options(level), files).unwrap();
    let archive = verify(&path).unwrap();
    assert_eq!(summary.archive_bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(summary.archive_bytes, archive.archive_bytes());
    assert_eq!(summary.content_bytes, archive.content_bytes());
    assert_eq!(summary.manifest_sha256, archive.manifest_sha256());
    assert_eq!(archive.manifest().format, FORMAT);
    let names: Vec<&str> = archive
        .manifest()
        .entries
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    assert_eq!(names[0], "checkpoint/");
    assert!(names[1..].iter().eq(files.iter().map(|(name, _)| name)));
    for (name, content) in files {
        let mut read = Vec::new();
        archive.entry(name).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == *content, "{name} by read");
        let bytes = archive
            .entry(name)
            .unwrap()
            .bytes(content.len() as u64)
            .unwrap();
        assert!(bytes == *content, "{name} by bytes");
    }
    let out = directory.path().join("out");
    fs::create_dir(&out).unwrap();
    let target = |entry: &kybernate_oci::manifest::Entry| {
        (!entry.name.ends_with('/')).then(|| PathBuf::from("x").join(&entry.name))
    };
    let bytes = archive
        .extract(&target, &out, 0, &AtomicBool::new(false))
        .unwrap();
    assert_eq!(
        bytes,
        files
            .iter()
            .map(|(_, content)| content.len() as u64)
            .sum::<u64>()
    );
    for (name, content) in files {
        let file = out.join("x").join(name);
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(fs::read(&file).unwrap() == *content, "{name} extracted");
    }
}

#[test]
fn sizes_around_blocks_and_frames() {
    for level in LEVELS {
        let mut files = Vec::new();
        let sizes = [
            0,
            1,
            511,
            512,
            513,
            FRAME - 512,
            FRAME - 1,
            FRAME,
            FRAME + 1,
            5 * FRAME + 7,
        ];
        let names: Vec<String> = (0..2 * sizes.len())
            .map(|at| match at % 2 {
                0 => format!("checkpoint/pages-{at}.img"),
                _ => format!("file-{at}"),
            })
            .collect();
        for (at, name) in names.iter().enumerate() {
            files.push((name.as_str(), memory(at as u64 + 1, sizes[at / 2])));
        }
        check(level, &files);
    }
}

#[test]
fn zeros_noise_and_text() {
    for level in LEVELS {
        let mut mixed = vec![0; 10 * FRAME];
        mixed[3 * FRAME..4 * FRAME + 99].copy_from_slice(&noise(3, FRAME + 99));
        check(
            level,
            &[
                ("checkpoint/pages-1.img", vec![0; 40 * FRAME]),
                ("checkpoint/pages-2.img", noise(1, 9 * FRAME)),
                ("checkpoint/pages-3.img", mixed),
                ("log", b"the same line again and again\n".repeat(30_000)),
            ],
        );
    }
}

#[test]
fn an_empty_archive_has_the_directory_and_the_manifest() {
    check(Level::Default, &[]);
}

#[test]
fn many_small_files() {
    let names: Vec<String> = (0..3000).map(|at| format!("checkpoint/{at}")).collect();
    let files: Vec<(&str, Vec<u8>)> = names
        .iter()
        .enumerate()
        .map(|(at, name)| (name.as_str(), noise(at as u64, at % 700)))
        .collect();
    check(Level::Default, &files);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_sizes(
        sizes in prop::collection::vec((any::<bool>(), 0usize..3 * FRAME), 0..9),
        level in 0usize..4,
    ) {
        let names: Vec<String> = sizes
            .iter()
            .enumerate()
            .map(|(at, (stream, _))| if *stream {
                format!("checkpoint/pages-{at}.img")
            } else {
                format!("checkpoint/f-{at}")
            })
            .collect();
        let files: Vec<(&str, Vec<u8>)> = names
            .iter()
            .zip(&sizes)
            .map(|(name, (_, size))| (name.as_str(), memory(*size as u64, *size)))
            .collect();
        check(LEVELS[level], &files);
    }

    #[test]
    fn any_cuts_of_a_stream(cuts in prop::collection::vec(1usize..40_000, 0..20)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive");
        let file = fs::File::create(&path).unwrap();
        let mut writer = Writer::new(file, options(Level::Default)).unwrap();
        let content = memory(9, cuts.iter().sum());
        let mut stream = writer.stream("checkpoint/pages-1.img").unwrap();
        let mut at = 0;
        for cut in cuts {
            let mut rest = &content[at..at + cut];
            while !rest.is_empty() {
                let space = stream.space().unwrap();
                let size = space.len().min(rest.len());
                space[..size].copy_from_slice(&rest[..size]);
                stream.filled(size);
                rest = &rest[size..];
            }
            at += cut;
        }
        stream.finish().unwrap();
        writer.finish(Manifest::default()).unwrap();
        let archive = verify(&path).unwrap();
        let read = archive.entry("checkpoint/pages-1.img").unwrap().bytes(u64::MAX).unwrap();
        prop_assert!(read == content);
    }
}

#[test]
fn the_same_input_makes_the_same_archive() {
    let directory = tempfile::tempdir().unwrap();
    let files = [("checkpoint/pages-1.img", memory(4, 20 * FRAME))];
    let archives: Vec<Vec<u8>> = ["a", "b"]
        .map(|name| {
            let path = directory.path().join(name);
            write(&path, options(Level::Default), &files).unwrap();
            fs::read(path).unwrap()
        })
        .to_vec();
    assert!(archives[0] == archives[1]);
}

#[test]
fn names_are_checked_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = fs::File::create(directory.path().join("archive")).unwrap();
    let mut writer = Writer::new(file, options(Level::Default)).unwrap();
    writer.bytes("a", b"").unwrap();
    writer.directory("d").unwrap();
    let long = "x".repeat(101);
    for name in [
        "",
        "/",
        "/a",
        "..",
        "x/../y",
        "a\0",
        "a",
        "d",
        "a/b",
        "e/f",
        "kybernate.json",
        "x/",
        &long,
    ] {
        let error = writer.bytes(name, b"").unwrap_err();
        assert!(
            matches!(error, WriteError::Name { .. }),
            "{name:?}: {error}"
        );
    }
    for name in ["a", "d/", "checkpoint", "d/e/f"] {
        let error = writer.directory(name).unwrap_err();
        assert!(
            matches!(error, WriteError::Name { .. }),
            "{name:?}: {error}"
        );
    }
    writer.bytes("d/b", b"still works").unwrap();
    writer.finish(Manifest::default()).unwrap();
    verify(&directory.path().join("archive")).unwrap();
}

#[test]
fn a_source_of_another_size_is_an_error() {
    for size in [3, 5] {
        let directory = tempfile::tempdir().unwrap();
        let file = fs::File::create(directory.path().join("archive")).unwrap();
        let mut writer = Writer::new(file, options(Level::Default)).unwrap();
        let error = writer.file("log", &mut &b"1234"[..], size).unwrap_err();
        assert!(
            matches!(error, WriteError::Length { expected, found: 4, .. } if expected == size)
                || matches!(
                    error,
                    WriteError::Length {
                        expected: 3,
                        found: 4,
                        ..
                    }
                ),
            "{error}"
        );
        let error = writer.finish(Manifest::default()).unwrap_err();
        assert!(matches!(error, WriteError::Unfinished { .. }), "{error}");
    }
}

#[test]
fn a_dropped_stream_spoils_the_archive() {
    let directory = tempfile::tempdir().unwrap();
    let file = fs::File::create(directory.path().join("archive")).unwrap();
    let mut writer = Writer::new(file, options(Level::Default)).unwrap();
    writer.stream("s").unwrap().write_all(b"half").unwrap();
    assert!(matches!(writer.bytes("a", b""), Err(WriteError::Unfinished { name }) if name == "s"));
    assert!(matches!(
        writer.finish(Manifest::default()),
        Err(WriteError::Unfinished { .. })
    ));
}

#[test]
fn missing_and_large_entries_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    write(&path, options(Level::Default), &[("a", vec![1; 100])]).unwrap();
    let archive = Archive::open(&path).unwrap();
    assert!(matches!(archive.entry("b"), Err(ReadError::Missing { .. })));
    assert!(matches!(
        archive.entry("checkpoint/"),
        Err(ReadError::Missing { .. })
    ));
    assert!(matches!(
        archive.entry("a").unwrap().bytes(99),
        Err(ReadError::TooLarge { size: 100, .. })
    ));
}
