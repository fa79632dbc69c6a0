//! Other programs read our archives.

mod archive_common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use archive_common::{FRAME, found, memory, noise, options, write};
use kybernate_oci::archive::{Archive, Level, Writer};
use kybernate_oci::manifest::Manifest;

fn archive(directory: &Path, level: Level) -> (PathBuf, Vec<(&'static str, Vec<u8>)>) {
    let path = directory.join(format!("archive-{level}"));
    let mut mixed = vec![0; 6 * FRAME];
    mixed[FRAME + 7..2 * FRAME + 7].copy_from_slice(&noise(3, FRAME));
    let files = vec![
        ("checkpoint/pages-1.img", memory(1, 5 * FRAME + 9)),
        ("checkpoint/pages-2.img", mixed),
        ("checkpoint/inventory.img", noise(2, 77)),
        ("config.dump", b"{}".to_vec()),
        ("empty", Vec::new()),
    ];
    write(&path, options(level), &files).unwrap();
    (path, files)
}

#[test]
fn zstd_and_tar_unpack_it() {
    if !found("zstd") || !found("tar") {
        return;
    }
    for level in [Level::Fast, Level::Default, Level::High] {
        let directory = tempfile::tempdir().unwrap();
        let (path, files) = archive(directory.path(), level);
        let test = Command::new("zstd").arg("-tq").arg(&path).output().unwrap();
        assert!(
            test.status.success(),
            "{}",
            String::from_utf8_lossy(&test.stderr)
        );
        let out = directory.path().join("out");
        fs::create_dir(&out).unwrap();
        let mut zstd = Command::new("zstd")
            .arg("-dc")
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let tar = Command::new("tar")
            .args(["-xvvf", "-", "--no-same-owner", "-C"])
            .arg(&out)
            .stdin(zstd.stdout.take().unwrap())
            .output()
            .unwrap();
        assert!(zstd.wait().unwrap().success());
        let errors = String::from_utf8_lossy(&tar.stderr);
        assert!(tar.status.success() && errors.is_empty(), "{errors}");
        let listing = String::from_utf8_lossy(&tar.stdout);
        let first = listing.lines().next().unwrap();
        assert!(
            first.starts_with("drwx------ 0/0") && first.ends_with("checkpoint/"),
            "{first}"
        );
        assert!(
            listing.lines().last().unwrap().ends_with("kybernate.json"),
            "{listing}"
        );
        for (name, content) in files {
            assert!(fs::read(out.join(name)).unwrap() == content, "{name}");
        }
        let json = fs::read(out.join("kybernate.json")).unwrap();
        let manifest: Manifest = serde_json::from_slice(&json).unwrap();
        assert_eq!(manifest.entries.len(), 6);
    }
}

#[test]
fn python_reads_it() {
    if !found("python3") || !found("zstd") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = archive(directory.path(), Level::Default);
    let program = r#"
import sys, subprocess, struct, tarfile, hashlib, json
data = subprocess.run(["zstd", "-dc", sys.argv[1]], check=True, stdout=subprocess.PIPE)
import io
tar = tarfile.open(fileobj=io.BytesIO(data.stdout), mode="r:", errorlevel=2)
manifest = json.load(tar.extractfile("kybernate.json"))
members = tar.getmembers()
archive = open(sys.argv[1], "rb").read()
count, = struct.unpack("<I", archive[-9:-5])
sizes = [size for _, size, _ in struct.iter_unpack("<III", archive[-9 - 12 * count:-9])]
starts = [sum(sizes[:number]) for number in range(count)]
frames = [(start, start + size) for start, size in zip(starts, sizes)]
assert [m.name for m in members[:-1]] == [e["name"].rstrip("/") for e in manifest["entries"]]
for member, entry in zip(members, manifest["entries"]):
    assert member.offset == entry["offset"], member
    assert member.isdir() or member.isreg()
    if member.isreg():
        content = tar.extractfile(member).read()
        begin, end = member.offset_data, member.offset_data + member.size
        pieces = [content[max(a, begin) - begin:min(b, end) - begin] for a, b in frames if a < end and b > begin]
        leaves = [hashlib.sha256(piece).digest() for piece in pieces or [b""]]
        digest = leaves[0] if len(leaves) == 1 else hashlib.sha256(b"".join(leaves)).digest()
        assert digest.hex() == entry["sha256"], member
print(len(members))
"#;
    let output = Command::new("python3")
        .args(["-c", program])
        .arg(&path)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "7");
}

#[test]
fn more_than_8_gib_fit_an_entry() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    let options = kybernate_oci::archive::WriteOptions::default();
    let mut writer = Writer::new(File::create(&path).unwrap(), options).unwrap();
    let mut stream = writer.stream("checkpoint/pages-1.img").unwrap();
    let mut left: u64 = (8 << 30) + 4096;
    while left > 0 {
        let space = stream.space().unwrap().len();
        // Fresh and recycled buffers alike hold zeros: nothing else was ever put there.
        let size = usize::try_from(left).unwrap().min(space);
        stream.filled(size);
        left -= size as u64;
    }
    assert_eq!(stream.finish().unwrap(), (8 << 30) + 4096);
    let summary = writer.finish(Manifest::default()).unwrap();
    assert!(summary.archive_bytes < 1 << 20, "{summary:?}");
    let archive = Archive::open(&path).unwrap();
    // Checks the header.
    let entry = archive.entry("checkpoint/pages-1.img").unwrap();
    assert_eq!(entry.entry().size, (8 << 30) + 4096);
    if !found("zstd") || !found("tar") {
        return;
    }
    let mut zstd = Command::new("zstd")
        .arg("-dc")
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let tar = Command::new("tar")
        .args(["-tvf", "-"])
        .stdin(zstd.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(zstd.wait().unwrap().success());
    let listing = String::from_utf8_lossy(&tar.stdout);
    assert!(
        tar.status.success() && listing.contains(" 8589938688 "),
        "{listing}"
    );
}
