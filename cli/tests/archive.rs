//! The commands about archives, run as a user runs them, on an archive that the library wrote.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use kybernate_oci::{
    archive::{Level, WriteOptions, Writer},
    manifest::{self, Container, Manifest},
};
use tempfile::TempDir;

/// Large enough for several frames and for a pipe to fill.
const PAGES: usize = 3 << 20;

fn pages() -> Vec<u8> {
    (0..PAGES).map(|i| (i / 7 % 251) as u8).collect()
}

fn archive() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar.zst");
    let options = WriteOptions {
        level: "fast".parse::<Level>().unwrap(),
        buffer: 64 << 20,
        workers: 1,
        frame_size: 1 << 20,
    };
    let mut writer = Writer::new(File::create_new(&path).unwrap(), options).unwrap();
    writer.directory("checkpoint/").unwrap();
    writer
        .file(
            "checkpoint/pages-1.img",
            &mut pages().as_slice(),
            PAGES as u64,
        )
        .unwrap();
    writer.bytes("spec.dump", b"{}").unwrap();
    let container = Container {
        id: "c1".into(),
        name: "counter".into(),
        ..Container::default()
    };
    writer
        .finish(Manifest {
            format: manifest::FORMAT,
            container,
            ..Manifest::default()
        })
        .unwrap();
    (dir, path)
}

fn kybernate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kybernate"))
        .args(args)
        .output()
        .unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_intact_archive_verifies_lists_and_gives_its_entries() {
    let (_dir, path) = archive();
    let out = kybernate(&["verify", text(&path)]);
    assert!(out.status.success(), "{out:?}");
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(
        said.contains("intact") && said.contains("sha256:"),
        "{said}"
    );

    let out = kybernate(&["ls", text(&path)]);
    assert_eq!(
        out.stdout,
        b"checkpoint/\ncheckpoint/pages-1.img\nspec.dump\n"
    );
    let out = kybernate(&["cat", text(&path), "checkpoint/pages-1.img"]);
    assert!(out.stdout == pages() && out.stderr.is_empty());

    // The manifest lists every file but itself, and is a file all the same.
    let out = kybernate(&["cat", text(&path), "kybernate.json"]);
    assert!(out.status.success(), "{out:?}");
    let manifest: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(manifest["container"]["name"], "counter");
    let out = kybernate(&["inspect", "--json", text(&path)]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["manifest"]["container"]["name"], "counter");
    assert_eq!(
        report["archive"]["archive_bytes"],
        fs::metadata(&path).unwrap().len()
    );
    assert!(said.contains(report["archive"]["manifest_sha256"].as_str().unwrap()));
}

#[test]
fn extract_writes_what_is_asked_for_and_overwrites_nothing() {
    let (dir, path) = archive();
    let to = dir.path().join("to");
    let out = kybernate(&["extract", text(&path), text(&to), "checkpoint"]);
    assert!(out.status.success(), "{out:?}");
    assert!(fs::read(to.join("checkpoint/pages-1.img")).unwrap() == pages());
    assert!(!to.join("spec.dump").exists());

    let out = kybernate(&["extract", text(&path), text(&to)]);
    assert_eq!(out.status.code(), Some(1));
    assert!(!to.join("spec.dump").exists());
    assert!(fs::read(to.join("checkpoint/pages-1.img")).unwrap() == pages());

    let out = kybernate(&["extract", text(&path), text(&to), "nonsense"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains("nonsense") && said.contains("kybernate ls"),
        "{said}"
    );
}

#[test]
fn extract_leaves_a_directory_only_where_one_was() {
    let (dir, path) = archive();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 0x10;
    fs::write(&path, &bytes).unwrap();
    let (new, old) = (dir.path().join("new"), dir.path().join("old"));
    fs::create_dir(&old).unwrap();
    for to in [&new, &old] {
        let out = kybernate(&["extract", text(&path), text(to)]);
        assert_eq!(out.status.code(), Some(1));
    }
    assert!(!new.exists());
    assert_eq!(fs::read_dir(&old).unwrap().count(), 0);
}

#[test]
fn a_damaged_archive_fails_and_says_what_to_do() {
    let (_dir, path) = archive();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 0x10;
    fs::write(&path, &bytes).unwrap();
    let out = kybernate(&["verify", text(&path)]);
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.starts_with("kybernate: ") && said.contains("damaged"),
        "{said}"
    );

    fs::write(&path, "this is no archive").unwrap();
    for command in ["verify", "ls", "inspect"] {
        let out = kybernate(&[command, text(&path)]);
        assert_eq!(out.status.code(), Some(1), "{command}");
        assert!(
            String::from_utf8(out.stderr).unwrap().contains(text(&path)),
            "{command}"
        );
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let (_dir, path) = archive();
    let mut cat = Command::new(env!("CARGO_BIN_EXE_kybernate"))
        .args(["cat", text(&path), "checkpoint/pages-1.img"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(cat.stdout.take());
    let out = cat.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
}

#[test]
fn a_missing_entry_and_a_missing_containerd_are_told() {
    let (dir, path) = archive();
    let out = kybernate(&["cat", text(&path), "nope"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8(out.stderr).unwrap().contains("nope"));

    let socket = dir.path().join("none.sock");
    let output = dir.path().join("out.zst");
    let line = [
        "--socket",
        text(&socket),
        "checkpoint",
        "c1",
        "-o",
        text(&output),
    ];
    let out = kybernate(&line);
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains(text(&socket)) && said.contains("--socket"),
        "{said}"
    );
    assert!(!output.exists());
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let out = kybernate(&["man", text(dir.path())]);
    assert!(out.status.success(), "{out:?}");
    let shell = kybernate(&["completions", "bash"]);
    let script = String::from_utf8(shell.stdout).unwrap();
    for command in [
        "checkpoint",
        "restore",
        "inspect",
        "verify",
        "extract",
        "cat",
        "doctor",
    ] {
        assert!(script.contains(command));
        assert!(
            dir.path().join(format!("kybernate-{command}.1")).is_file(),
            "{command}"
        );
    }
}
