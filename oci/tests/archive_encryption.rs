//! Encrypted archives: they open for their recipients alone, hold no plain text, and notice
//! whatever happens to their bytes.

mod archive_common;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use archive_common::{FRAME, fill, memory, noise, options, verify, write};
use kybernate_age::{CHUNK, Header, Identity, NONCE, SEALED, TAG};
use kybernate_oci::archive::{
    Archive, ConvertError, Encryption, Envelope, Label, LabelPod, Level, ReadError, Summary,
    Writer, decrypt, encrypt,
};
use proptest::prelude::*;

type Files = Vec<(&'static str, Vec<u8>)>;

fn identities(count: usize) -> Vec<Identity> {
    (0..count).map(|_| Identity::generate().unwrap()).collect()
}

fn encryption(to: &[Identity]) -> Encryption {
    Encryption {
        recipients: to.iter().map(|one| one.recipient().clone()).collect(),
        label: Label {
            created: "2026-01-02T03:04:05Z".into(),
            id: "c0ffee".into(),
            name: "web".into(),
            pod: Some(LabelPod {
                namespace: "shop".into(),
                name: "web-0".into(),
            }),
        },
    }
}

fn write_to(path: &Path, to: &[Identity], level: Level, files: &Files) -> Summary {
    let file = File::create(path).unwrap();
    let writer = Writer::encrypted(file, options(level), &encryption(to)).unwrap();
    fill(writer, files).unwrap()
}

fn open(path: &Path, with: &Identity) -> Result<Archive, ReadError> {
    let archive = Archive::open_with(path, std::slice::from_ref(with))?;
    archive.verify(&mut |_| {})?;
    Ok(archive)
}

fn content(archive: &Archive, name: &str) -> Vec<u8> {
    let mut content = Vec::new();
    let mut entry = archive.entry(name).unwrap();
    entry.read_to_end(&mut content).unwrap();
    content
}

/// Where the first chunk lies.
fn start(file: &[u8]) -> usize {
    Header::parse(file).unwrap().size() + NONCE
}

#[test]
fn headers_that_are_patched_late_may_lie_anywhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    let one = &identities(1);
    // Stored frames of these sizes put the next stream's header before, across and behind the
    // borders of chunks, and two into one chunk.
    for size in [
        0,
        1,
        CHUNK - 1200,
        CHUNK - 1100,
        CHUNK - 600,
        CHUNK - 300,
        CHUNK,
        3 * CHUNK - 400,
    ] {
        let files = vec![
            ("checkpoint/pages-1.img", noise(1, size)),
            ("checkpoint/pages-2.img", noise(2, 3 * CHUNK)),
            ("checkpoint/pages-3.img", noise(3, 10)),
            ("checkpoint/pages-4.img", noise(4, CHUNK - 100)),
            ("spec.dump", noise(5, 100)),
        ];
        let summary = write_to(&path, one, Level::Fast, &files);
        assert_eq!(summary.archive_bytes, fs::metadata(&path).unwrap().len());
        let archive = open(&path, &one[0]).unwrap();
        assert_eq!(archive.manifest_sha256(), summary.manifest_sha256);
        for (name, expected) in &files {
            assert!(content(&archive, name) == *expected, "{name} {size}");
        }
    }
}

#[test]
fn no_plain_text_is_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    let marker = b"the same words again and again, which nothing compresses away: ";
    let mut pages = noise(7, 3 * CHUNK);
    pages[5000..5000 + marker.len()].copy_from_slice(marker);
    let files = vec![
        ("checkpoint/pages-1.img", pages),
        ("spec.dump", marker.to_vec()),
    ];
    let has = |marker: &[u8]| {
        let file = fs::read(&path).unwrap();
        file.windows(marker.len()).any(|window| window == marker)
    };
    write(&path, options(Level::Fast), &files).unwrap();
    assert!(
        has(marker) && has(b"pages-1.img") && has(b"kybernate.json"),
        "there to be found"
    );
    write_to(&path, &identities(1), Level::Fast, &files);
    assert!(!has(marker) && !has(b"pages-1.img") && !has(b"kybernate.json"));
}

#[test]
fn it_opens_for_its_recipients_alone_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    let all = identities(3);
    let files = vec![("spec.dump", noise(1, 100))];
    write_to(&path, &all, Level::Fast, &files);
    for one in &all {
        open(&path, one).unwrap();
    }
    let error = Archive::open(&path).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("3 recipients") && text.contains("restore.identities"),
        "{text}"
    );
    let ReadError::Encrypted { envelope } = error else {
        panic!("{text}")
    };
    assert_eq!(envelope.label, Some(encryption(&all).label));
    assert_eq!(envelope.bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(Envelope::read(&path).unwrap(), Some(*envelope));
    let error = open(&path, &identities(1)[0]).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ReadError::Locked { .. }), "{text}");
    assert!(
        text.contains("3 recipients") && text.contains("none of the 1"),
        "{text}"
    );

    write(&path, options(Level::Fast), &files).unwrap();
    assert_eq!(Envelope::read(&path).unwrap(), None);
    assert!(open(&path, &all[0]).unwrap().envelope().is_none());
}

/// A file of `chunks` full chunks and some.
fn large(directory: &Path, to: &[Identity], chunks: usize) -> (PathBuf, Vec<u8>) {
    let path = directory.join("large");
    let files = vec![
        ("checkpoint/pages-1.img", noise(11, chunks * CHUNK)),
        ("spec.dump", noise(12, 100)),
    ];
    write_to(&path, to, Level::Fast, &files);
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

fn refusal(path: &Path, with: &Identity, bytes: &[u8]) -> String {
    fs::write(path, bytes).unwrap();
    open(path, with).expect_err("refused").to_string()
}

#[test]
fn every_byte_is_guarded() {
    let directory = tempfile::tempdir().unwrap();
    let one = &identities(1)[0];
    let path = directory.path().join("small");
    let files = vec![
        ("checkpoint/pages-1.img", memory(1, 900)),
        ("spec.dump", noise(1, 90)),
    ];
    write_to(&path, std::slice::from_ref(one), Level::Default, &files);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let text = refusal(&path, one, &bad);
        let part = match at {
            // It does not look like an age file any more.
            0..19 => "seek table",
            at if at < start(&good) - NONCE => "",
            _ => "chunk 0 is damaged",
        };
        assert!(text.contains(part), "byte {at}: {text}");
    }
    for size in (0..good.len()).step_by(5) {
        refusal(&path, one, &good[..size]);
    }
}

#[test]
fn chunks_that_are_missing_moved_or_added_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let one = &identities(1)[0];
    let (path, good) = large(directory.path(), std::slice::from_ref(one), 4);
    let start = start(&good);
    let chunk = |number: usize| start + number * SEALED..start + (number + 1) * SEALED;
    let count = (good.len() - start).div_ceil(SEALED);
    assert!(count > 4);
    for kept in 1..count {
        let text = refusal(&path, one, &good[..chunk(kept).start]);
        assert!(
            text.contains("cut short") && text.contains(&format!("chunk {}", kept - 1)),
            "{text}"
        );
    }
    let text = refusal(&path, one, &good[..start]);
    assert!(text.contains("incomplete"), "{text}");
    for cut in [1, TAG - 1, TAG, TAG + 1, CHUNK] {
        let text = refusal(&path, one, &good[..chunk(2).start + cut]);
        assert!(
            text.contains("incomplete") || text.contains("chunk 2"),
            "{cut}: {text}"
        );
    }

    let mut swapped = good.clone();
    swapped[chunk(1)].copy_from_slice(&good[chunk(2)]);
    swapped[chunk(2)].copy_from_slice(&good[chunk(1)]);
    let text = refusal(&path, one, &swapped);
    assert!(
        text.contains("chunk 1 is damaged, belongs to another place"),
        "{text}"
    );
    let mut twice = good.clone();
    twice[chunk(2)].copy_from_slice(&good[chunk(1)]);
    assert!(refusal(&path, one, &twice).contains("chunk 2"));
    let mut without = good.clone();
    without.drain(chunk(1));
    refusal(&path, one, &without);

    // The end is looked at first.
    for junk in [vec![0], vec![0; TAG + 1], vec![0; SEALED], good.clone()] {
        let text = refusal(&path, one, &[&good[..], &junk].concat());
        assert!(
            text.contains("appended") || text.contains("incomplete"),
            "{}: {text}",
            junk.len()
        );
    }
    // A file whose last chunk is full takes another whole one.
    let full = &good[..chunk(3).start];
    assert!(refusal(&path, one, full).contains("cut short"));

    // Another archive for the same recipient has other keys.
    let other = directory.path().join("other");
    let (_, foreign) = large(&other_directory(&other), std::slice::from_ref(one), 4);
    let mut mixed = good.clone();
    mixed[chunk(1)].copy_from_slice(&foreign[chunk(1)]);
    assert!(refusal(&path, one, &mixed).contains("chunk 1"));
    let mut head = foreign[..start].to_vec();
    head.extend_from_slice(&good[start..]);
    assert!(refusal(&path, one, &head).contains("damaged"));
    let mut nonce = good.clone();
    nonce[start - NONCE..start].copy_from_slice(&foreign[start - NONCE..start]);
    assert!(refusal(&path, one, &nonce).contains("damaged"));
}

fn other_directory(path: &Path) -> PathBuf {
    fs::create_dir(path).unwrap();
    path.to_owned()
}

#[test]
fn one_entry_needs_its_own_chunks_alone() {
    let directory = tempfile::tempdir().unwrap();
    let one = &identities(1)[0];
    let path = directory.path().join("archive");
    let files = vec![
        ("checkpoint/pages-1.img", noise(1, 20 * FRAME)),
        ("checkpoint/pages-2.img", noise(2, 2 * FRAME)),
    ];
    write_to(&path, std::slice::from_ref(one), Level::Fast, &files);
    let mut bytes = fs::read(&path).unwrap();
    let place = start(&bytes) + 5 * SEALED + 99;
    bytes[place] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let archive = Archive::open_with(&path, std::slice::from_ref(one)).unwrap();
    assert!(content(&archive, "checkpoint/pages-2.img") == files[1].1);
    let mut entry = archive.entry("checkpoint/pages-1.img").unwrap();
    let error = entry.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("chunk 5"), "{error}");
    let error = archive.verify(&mut |_| {}).unwrap_err();
    assert!(matches!(error, ReadError::Chunk { .. }), "{error}");
}

#[test]
fn an_archive_can_be_encrypted_and_decrypted_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let create = |name: &str| File::create(place(name)).unwrap();
    let all = identities(2);
    let to = encryption(&all).recipients;
    let go = AtomicBool::new(false);
    let files = vec![("checkpoint/pages-1.img", memory(3, 5 * CHUNK))];
    write(&place("plain"), options(Level::Default), &files).unwrap();
    encrypt(&place("plain"), create("sealed"), &to, &go).unwrap();
    let archive = open(&place("sealed"), &all[1]).unwrap();
    assert_eq!(
        archive.manifest_sha256(),
        verify(&place("plain")).unwrap().manifest_sha256()
    );
    decrypt(&place("sealed"), create("again"), &all[..1], &go).unwrap();
    assert!(fs::read(place("again")).unwrap() == fs::read(place("plain")).unwrap());

    // What the writer encrypts is what it writes in plain text.
    write_to(&place("written"), &all, Level::Default, &files);
    decrypt(&place("written"), create("again"), &all, &go).unwrap();
    assert!(fs::read(place("again")).unwrap() == fs::read(place("plain")).unwrap());

    let failed = |result: Result<(), ConvertError>| result.unwrap_err().to_string();
    let text = failed(encrypt(&place("sealed"), create("x"), &to, &go));
    assert!(text.contains("encrypted already"), "{text}");
    let text = failed(decrypt(&place("plain"), create("x"), &all, &go));
    assert!(text.contains("not encrypted"), "{text}");
    let text = failed(decrypt(&place("sealed"), create("x"), &identities(1), &go));
    assert!(text.contains("none of the 1"), "{text}");
    let text = failed(encrypt(&place("plain"), create("x"), &[], &go));
    assert!(text.contains("cannot encrypt"), "{text}");
    let stop = AtomicBool::new(true);
    let text = failed(decrypt(&place("sealed"), create("x"), &all, &stop));
    assert!(text.contains("cancelled"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_goes_in_comes_out(
        recipients in 1..4usize,
        level in prop_oneof![Just(Level::Fast), Just(Level::Default), Just(Level::High)],
        sizes in proptest::collection::vec((any::<bool>(), prop_oneof![0..2000usize, 0..6 * CHUNK]), 0..6),
        seed: u64,
    ) {
        const NAMES: [[&str; 2]; 6] = [
            ["a", "pages-a"], ["b", "pages-b"], ["c", "pages-c"],
            ["d", "pages-d"], ["e", "pages-e"], ["f", "pages-f"],
        ];
        let files: Files = sizes.iter().zip(NAMES).map(|((stream, size), names)| {
            let content = if size % 2 == 0 { noise(seed, *size) } else { memory(seed, *size) };
            (names[usize::from(*stream)], content)
        }).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive");
        let all = identities(recipients);
        let summary = write_to(&path, &all, level, &files);
        for one in &all {
            let archive = open(&path, one).unwrap();
            prop_assert_eq!(archive.archive_bytes(), summary.archive_bytes);
            prop_assert_eq!(archive.content_bytes(), summary.content_bytes);
            for (name, expected) in &files {
                prop_assert!(content(&archive, name) == *expected);
            }
        }
        let out = directory.path().join("out");
        fs::create_dir(&out).unwrap();
        let archive = open(&path, &all[0]).unwrap();
        let target = |entry: &kybernate_oci::manifest::Entry| {
            (!entry.name.ends_with('/')).then(|| entry.name.clone().into())
        };
        archive.extract(&target, &out, 2, &AtomicBool::new(false)).unwrap();
        for (name, expected) in &files {
            prop_assert!(fs::read(out.join(name)).unwrap() == *expected);
        }
    }
}
