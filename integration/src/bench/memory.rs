//! What a process of the lab takes: memory, and bytes written to disks.

use std::fs;

use anyhow::{Context, Result};

use crate::Lab;

/// Memory of a process in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Resident.
    pub resident: u64,
    /// Private and written to: what the process costs however many of its kind there are.
    pub private_dirty: u64,
}

impl Memory {
    /// Reads it from `/proc/<pid>/smaps_rollup`.
    pub fn of(lab: &Lab, pid: u32) -> Result<Self> {
        let text = read(lab, pid, "smaps_rollup")?;
        Ok(Self {
            resident: kib(&text, "Rss:").context("no Rss")? << 10,
            private_dirty: kib(&text, "Private_Dirty:").context("no Private_Dirty")? << 10,
        })
    }
}

/// Most memory that the process has had resident since [`forget_peak`], in bytes.
pub fn peak(lab: &Lab, pid: u32) -> Result<u64> {
    Ok(kib(&read(lab, pid, "status")?, "VmHWM:").context("no VmHWM")? << 10)
}

/// Lets [`peak`] start from what is resident now.
pub fn forget_peak(lab: &Lab, pid: u32) -> Result<()> {
    fs::write(lab.path(format!("/proc/{pid}/clear_refs")), "5").context("clear_refs")
}

/// Bytes that the process has sent to disks, including those that still wait in the page
/// cache; memory file systems do not count.
pub fn written(lab: &Lab, pid: u32) -> Result<u64> {
    let text = read(lab, pid, "io")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    line.context("no write_bytes")?
        .parse()
        .context("write_bytes")
}

fn read(lab: &Lab, pid: u32, file: &str) -> Result<String> {
    let path = lab.path(format!("/proc/{pid}/{file}"));
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().strip_suffix(" kB")?.parse().ok()
}
