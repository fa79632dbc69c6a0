//! The program `age` reads our encrypted archives, and we read its files.
//!
//! `make deps` installs it. Without it these tests say SKIPPED, and fail where
//! `KYBERNATE_REQUIRE_ALL=1` or `CI=true` is set.

mod archive_common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use archive_common::{fill, found, memory, noise, options, verify, write};
use kybernate_age::{CHUNK, Identity, Recipient, read_identities};
use kybernate_oci::archive::{Archive, Encryption, Label, Level, Writer};

fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    output.stdout
}

/// A key by `age-keygen`, with its recipient.
fn keygen(file: &Path) -> (Identity, Recipient) {
    run("age-keygen", &["-o", text(file)]);
    let public = String::from_utf8(run("age-keygen", &["-y", text(file)])).unwrap();
    let mut identities = read_identities(file).unwrap();
    (identities.remove(0), public.trim().parse().unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("checkpoint/pages-1.img", memory(1, 9 * CHUNK + 77)),
        ("checkpoint/pages-2.img", noise(2, 3 * CHUNK)),
        ("checkpoint/inventory.img", noise(3, 77)),
        ("config.dump", b"{}".to_vec()),
    ]
}

#[test]
fn age_zstd_and_tar_unpack_what_we_encrypt() {
    if !found("age") || !found("zstd") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let (_, first) = keygen(&place("first.key"));
    let (_, second) = keygen(&place("second.key"));
    let encryption = Encryption {
        recipients: vec![first, second],
        label: Label {
            name: "w".repeat(200),
            ..Label::default()
        },
    };
    for level in [Level::Fast, Level::Default, Level::High] {
        let archive = place("archive");
        let file = File::create(&archive).unwrap();
        let writer = Writer::encrypted(file, options(level), &encryption).unwrap();
        fill(writer, &files()).unwrap();
        for key in ["first.key", "second.key"] {
            let out = place("out");
            fs::create_dir(&out).unwrap();
            let line = "set -o pipefail; age -d -i \"$1\" \"$2\" | zstd -d | tar x --no-same-owner -C \"$3\"";
            run(
                "bash",
                &[
                    "-c",
                    line,
                    "bash",
                    text(&place(key)),
                    text(&archive),
                    text(&out),
                ],
            );
            for (name, content) in files() {
                assert!(fs::read(out.join(name)).unwrap() == content, "{name}");
            }
            fs::remove_dir_all(out).unwrap();
        }
    }
    keygen(&place("third.key"));
    let refused = Command::new("age")
        .args([
            "-d",
            "-i",
            text(&place("third.key")),
            text(&place("archive")),
        ])
        .output()
        .unwrap();
    assert!(!refused.status.success());
}

#[test]
fn we_read_what_age_encrypts() {
    if !found("age") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let (first, public) = keygen(&place("first.key"));
    let (second, other) = keygen(&place("second.key"));
    assert_eq!(first.recipient(), &public);
    write(&place("plain"), options(Level::Default), &files()).unwrap();
    let (plain, sealed) = (place("plain"), place("sealed"));
    run(
        "age",
        &[
            "-r",
            &public.to_string(),
            "-r",
            &other.to_string(),
            "-o",
            text(&sealed),
            text(&plain),
        ],
    );
    for identity in [first, second] {
        let archive = Archive::open_with(&sealed, &[identity]).unwrap();
        archive.verify(&mut |_| {}).unwrap();
        let expected = verify(&plain).unwrap();
        assert_eq!(archive.manifest_sha256(), expected.manifest_sha256());
        let envelope = archive.envelope().unwrap();
        assert_eq!((envelope.recipients, &envelope.label), (2, &None));
    }
    let error = Archive::open(&sealed).unwrap_err().to_string();
    assert!(error.contains("2 recipients"), "{error}");
}

#[test]
fn age_takes_our_keys() {
    if !found("age-keygen") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let identity = Identity::generate().unwrap();
    fs::write(&path, &*identity.to_secret_text()).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let public = String::from_utf8(run("age-keygen", &["-y", text(&path)])).unwrap();
    assert_eq!(public.trim(), identity.recipient().to_string());
}
