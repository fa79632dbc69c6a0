//! Archives for the tests.
#![allow(dead_code, reason = "no test file needs all of this")]

pub mod parts;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use kybernate_oci::archive::{
    Archive, Level, ReadError, Summary, WriteError, WriteOptions, Writer,
};
use kybernate_oci::manifest::Manifest;

/// Whether a program is here. Where it has to be, a lack of it fails.
pub fn found(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|text| text == value);
        let required = set("KYBERNATE_REQUIRE_ALL", "1") || set("CI", "true");
        assert!(!required, "no {program} here; `make deps` installs it");
        let test = std::thread::current();
        println!("SKIPPED {}: no {program} here", test.name().unwrap_or("?"));
    }
    found
}

/// Frames of the smallest size.
pub const FRAME: usize = 64 << 10;

/// Options with small frames.
pub fn options(level: Level) -> WriteOptions {
    WriteOptions {
        level,
        buffer: 128 << 20,
        workers: 2,
        frame_size: FRAME,
    }
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Every second word noise, the others the number of their 32 KiB.
pub fn memory(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = noise(seed, size);
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        if word[0] & 1 == 0 {
            word.copy_from_slice(&(index as u64 >> 12).to_le_bytes());
        }
    }
    bytes
}

/// Writes files, those whose name has `pages` as streams.
pub fn write(
    path: &Path,
    options: WriteOptions,
    files: &[(&str, Vec<u8>)],
) -> Result<Summary, WriteError> {
    fill(Writer::new(File::create(path).unwrap(), options)?, files)
}

/// Fills an archive as [`write`] does.
pub fn fill(mut writer: Writer, files: &[(&str, Vec<u8>)]) -> Result<Summary, WriteError> {
    writer.directory("checkpoint")?;
    for (name, content) in files {
        if name.contains("pages") {
            let mut stream = writer.stream(name)?;
            stream.write_all(content).unwrap();
            assert_eq!(stream.finish()?, content.len() as u64);
        } else {
            writer.bytes(name, content)?;
        }
    }
    writer.finish(Manifest::default())
}

/// Opens and verifies.
pub fn verify(path: &Path) -> Result<Archive, ReadError> {
    let archive = Archive::open(path)?;
    archive.verify(&mut |_| {})?;
    Ok(archive)
}
