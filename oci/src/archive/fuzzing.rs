//! Archives and seek tables that somebody made to do harm.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use sha2::{Digest as _, Sha256};
use twox_hash::XxHash3_64;

use super::pass::Pass;
use super::seek::{self, Row};
use super::{Archive, BLOCK, FIRST, Level, WriteOptions, Writer, digest, frame, header, padding};
use crate::manifest::{Entry, FILE, FORMAT, Manifest};

/// More content than this is refused nowhere, and takes too long here.
const MOST: u64 = 8 << 20;

/// The first byte says what the rest is: the file, or a program for [`assembled`].
pub(crate) fn archive(data: &[u8], scratch: &Path) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let path = scratch.join("archive");
    let bytes = match kind % 2 {
        0 => rest.to_vec(),
        _ => assembled(rest),
    };
    fs::write(&path, bytes).unwrap();
    look(&path, scratch);
    fs::remove_file(path).unwrap();
}

/// Opens, verifies, extracts and reads; all have to agree.
fn look(path: &Path, scratch: &Path) {
    let Ok(archive) = Archive::open(path) else {
        return;
    };
    assert!(archive.content_bytes() > archive.manifest_json().len() as u64);
    let json = serde_json::to_vec(archive.manifest()).unwrap();
    let again: Manifest = serde_json::from_slice(&json).unwrap();
    assert_eq!(again, *archive.manifest());
    if archive.content_bytes() > MOST {
        return;
    }
    let go_on = AtomicBool::new(false);
    let mut seen = 0;
    let verified = Pass::new(&archive, None, 1, &go_on).run(&mut |bytes| {
        assert!(bytes >= seen);
        seen = bytes;
    });
    assert!(verified.is_err() || seen == archive.content_bytes());
    let out = scratch.join("out");
    fs::create_dir(&out).unwrap();
    let target = |entry: &Entry| Some(PathBuf::from(&entry.name));
    let extracted = archive.extract(&target, &out, 1, &go_on);
    assert_eq!(
        extracted.is_ok(),
        verified.is_ok(),
        "{extracted:?} {verified:?}"
    );
    let files = below(&out);
    if let Ok(bytes) = extracted {
        let entries = &archive.manifest().entries;
        assert_eq!(files.len(), entries.len());
        assert_eq!(entries.iter().map(|entry| entry.size).sum::<u64>(), bytes);
        for entry in entries {
            let content = &files[entry.name.trim_end_matches('/')];
            if entry.name.ends_with('/') {
                assert_eq!(*content, None);
                continue;
            }
            let read = archive.entry(&entry.name).unwrap().bytes(MOST).unwrap();
            assert_eq!(content.as_ref(), Some(&read));
            assert_eq!(read.len() as u64, entry.size);
        }
    } else {
        assert!(files.is_empty(), "left behind: {files:?}");
        for entry in &archive.manifest().entries {
            // It may be whole, or damaged; it ends.
            let _ = archive.entry(&entry.name).and_then(|e| e.bytes(MOST));
        }
    }
    fs::remove_dir_all(&out).unwrap();
    let beside = fs::read_dir(scratch).unwrap().count();
    assert_eq!(beside, 1, "something was written beside the directory");
}

/// Paths below a directory; regular files with their content.
fn below(root: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let facts = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            let (mode, content) = if facts.is_dir() {
                pending.push(path.clone());
                (0o700, None)
            } else {
                assert!(facts.is_file(), "{name} is neither file nor directory");
                (0o600, Some(fs::read(&path).unwrap()))
            };
            assert_eq!(facts.permissions().mode() & 0o7777, mode, "{name}");
            found.insert(name.to_owned(), content);
        }
    }
    found
}

/// Bytes of a program, zeros at its end.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        let width = 1 << (self.byte() % 4);
        bytes[..width]
            .iter_mut()
            .for_each(|byte| *byte = self.byte());
        u64::from_le_bytes(bytes)
    }
}

/// An archive with good checksums everywhere, so that what is wrong with it is seen by nobody but
/// whoever looks at entries:
///
/// ```text
/// frame size, entries: name, size, content      a whole archive, the manifest that fits it
/// changes: which, where, what                   to the manifest, the tar or the seek table
/// ```
fn assembled(program: &[u8]) -> Vec<u8> {
    let mut program = Program(program);
    let cut = 512 << (program.byte() % 8);
    let mut tar = header::encode(FIRST, 0).to_vec();
    let mut manifest = Manifest {
        format: FORMAT,
        entries: vec![Entry {
            name: FIRST.into(),
            ..Entry::default()
        }],
        ..Manifest::default()
    };
    for _ in 0..program.byte() % 16 {
        let length = usize::from(program.byte() % 101);
        let name = String::from_utf8_lossy(&program.bytes(length)).into_owned();
        let zeros = program.byte();
        let length = usize::from(program.byte());
        let mut content = program.bytes(length);
        content.resize(content.len() + usize::from(zeros) * 64, 0);
        if name.ends_with('/') {
            content.clear();
        }
        let offset = tar.len();
        // A name that no header can hold is in the manifest alone.
        let fits = if name.len() <= 100 {
            name.as_str()
        } else {
            "x"
        };
        tar.extend(header::encode(fits, content.len() as u64));
        let mut sum = digest::Digest::default();
        let (mut left, mut at) = (&content[..], offset + BLOCK);
        while !left.is_empty() {
            let (piece, rest) = left.split_at(left.len().min(cut - at % cut));
            sum.push(digest::leaf(piece));
            (left, at) = (rest, at + piece.len());
        }
        tar.extend(&content);
        tar.resize(tar.len() + padding(content.len() as u64), 0);
        manifest.entries.push(Entry {
            sha256: if name.ends_with('/') {
                String::new()
            } else {
                sum.finish()
            },
            size: content.len() as u64,
            offset: offset as u64,
            name,
        });
    }
    let mut rows: Vec<(usize, usize, u32)> = Vec::new();
    for _ in 0..program.byte() % 8 {
        let (what, which) = (program.byte(), usize::from(program.byte()));
        let number = program.number();
        let count = manifest.entries.len();
        let entry = &mut manifest.entries[which % count];
        match what % 8 {
            0 => entry.size = number,
            1 => entry.offset = number,
            2 => entry.size = entry.size.wrapping_add(number),
            3 => entry.name.push(char::from(number as u8)),
            4 => drop(entry.sha256.pop()),
            5 => {
                let at = number as usize % tar.len();
                tar[at] ^= 1 << (which % 8);
            }
            6 => manifest.frames = "0".repeat(number as usize % 80),
            _ => rows.push((which, (number >> 32) as usize, number as u32)),
        }
    }
    let mut stored: Vec<(Vec<u8>, usize)> = tar
        .chunks(cut)
        .map(|content| (frame::stored(content), content.len()))
        .collect();
    if manifest.frames.is_empty() {
        let mut all = Sha256::new();
        for (bytes, _) in &stored {
            all.update(XxHash3_64::oneshot(bytes).to_le_bytes());
        }
        manifest.frames = super::hex(&all.finalize());
    }
    let json = serde_json::to_vec(&manifest).unwrap();
    let mut last = header::encode(FILE, json.len() as u64).to_vec();
    last.extend(&json);
    last.resize(last.len() + padding(json.len() as u64) + 2 * BLOCK, 0);
    stored.push((frame::stored(&last), last.len()));
    table(&stored, &rows)
}

/// The file of these frames; `changes` name a row, a column and a number.
fn table(frames: &[(Vec<u8>, usize)], changes: &[(usize, usize, u32)]) -> Vec<u8> {
    let mut rows: Vec<Row> = frames
        .iter()
        .map(|(bytes, content)| Row {
            stored: bytes.len() as u32,
            content: *content as u32,
            checksum: bytes.last_chunk().map_or(0, |sum| u32::from_le_bytes(*sum)),
        })
        .collect();
    let count = rows.len();
    for (row, column, number) in changes {
        let row = &mut rows[row % count];
        match column % 3 {
            0 => row.stored = *number,
            1 => row.content = *number,
            _ => row.checksum = *number,
        }
    }
    let mut file: Vec<u8> = frames.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
    file.extend(seek::encode(&rows));
    file
}

/// A table reads back as what it was written from, or not at all.
pub(crate) fn seek_table(data: &[u8]) {
    let footer = data.last_chunk().and_then(seek::rows);
    if let Some(rows) = seek::decode(data) {
        assert_eq!(seek::encode(&rows), data);
        assert_eq!(footer, Some(rows.len()));
        assert_eq!(seek::size(rows.len()), data.len());
    }
}

pub(crate) fn seek_tables() -> Vec<Vec<u8>> {
    let row = |n: u32| Row {
        stored: n * 7 + 13,
        content: n + 1,
        checksum: !n,
    };
    [0, 1, 9]
        .map(|count| seek::encode(&(0..count).map(row).collect::<Vec<_>>()))
        .to_vec()
}

pub(crate) fn archives() -> Vec<Vec<u8>> {
    let path = std::env::temp_dir().join(format!("kybernate-seed-{}", std::process::id()));
    let options = WriteOptions {
        level: Level::Default,
        buffer: 128 << 20,
        workers: 1,
        frame_size: 64 << 10,
    };
    let mut writer = Writer::new(File::create(&path).unwrap(), options).unwrap();
    writer.directory("checkpoint").unwrap();
    let memory: Vec<u8> = (0..9000_u32)
        .map(|n| (n % 251 * (n / 4096)) as u8)
        .collect();
    let mut stream = writer.stream("checkpoint/pages-1.img").unwrap();
    std::io::Write::write_all(&mut stream, &memory).unwrap();
    stream.finish().unwrap();
    writer.bytes("spec.dump", b"{\"a\": 1}").unwrap();
    writer.bytes("empty", b"").unwrap();
    writer.finish(Manifest::default()).unwrap();
    let written = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let program = |parts: &[&[u8]]| [&[1][..], &parts.concat()].concat();
    let file = |name: &str, zeros: u8, content: &[u8]| {
        [
            &[name.len() as u8],
            name.as_bytes(),
            &[zeros, content.len() as u8],
            content,
        ]
        .concat()
    };
    let whole = [
        file("checkpoint/pages-1.img", 40, b"memory of a process"),
        file("d/", 0, b""),
        file("d/spec.dump", 0, b"{}"),
        file("empty", 0, b""),
    ]
    .concat();
    vec![
        [&[0][..], &written].concat(),
        program(&[&[1, 4], &whole]),
        program(&[&[7, 4], &whole]),
        // Each kind of change once.
        program(&[&[0, 4], &whole, &[1, 0, 1, 1, 0xff, 0xff]]),
        program(&[
            &[2, 4],
            &whole,
            &[2, 1, 2, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2, 3, 0, 1],
        ]),
        program(&[&[0, 4], &whole, &[2, 5, 3, 1, 0, 2, 4, 1, 0, 0]]),
        program(&[&[0, 4], &whole, &[1, 7, 2, 3, 9, 0, 0, 0, 1, 0, 0, 0]]),
        program(&[&[3, 1], &file("../way/out", 0, b"hostile")]),
        program(&[&[3, 2], &file("same", 0, b"a"), &file("same/", 0, b"")]),
    ]
}
