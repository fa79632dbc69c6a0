//! What the machine is, as far as it explains the numbers.

use std::{fs, time::Instant};

use anyhow::Result;

use crate::Lab;

/// Bytes written to learn how fast the disk is.
const PROBE: u64 = 512 << 20;

/// The machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// Kernel release.
    pub kernel: String,
    /// File system that the lab's disk is.
    pub filesystem: String,
    /// Bytes per second of a sequential write past the page cache.
    pub disk: f64,
    /// Versions of containerd, runc and CRIU.
    pub versions: String,
    /// Control groups: `v1` or `v2`.
    pub cgroup: &'static str,
}

impl Machine {
    /// Looks at the machine and at its disk.
    pub fn look(lab: &Lab) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = field(&read("/proc/cpuinfo"), "model name");
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        let mounts = fs::read_to_string(lab.path("/proc/1/mountinfo"))?;
        let v2 = lab.path("/sys/fs/cgroup/cgroup.controllers").exists();
        Ok(Self {
            cpu,
            cores: std::thread::available_parallelism()?.get(),
            memory: kib << 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            filesystem: filesystem(&mounts, "/var/lib/kybernate"),
            disk: disk(lab)?,
            versions: versions(lab.versions()),
            cgroup: if v2 { "v2" } else { "v1" },
        })
    }
}

fn field(text: &str, name: &str) -> String {
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_once(':'));
    found
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

/// The type of what is mounted on `target`.
fn filesystem(mountinfo: &str, target: &str) -> String {
    let mounted = mountinfo
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(target));
    let kind = mounted.and_then(|line| line.split_once(" - ")?.1.split(' ').next());
    kind.unwrap_or_default().to_owned()
}

fn disk(lab: &Lab) -> Result<f64> {
    let to = "of=/var/lib/kybernate/probe";
    let count = format!("count={}", PROBE >> 22);
    let begun = Instant::now();
    lab.exec(&[
        "dd",
        "if=/dev/zero",
        to,
        "bs=4M",
        &count,
        "oflag=direct",
        "conv=fsync",
    ])?;
    let speed = PROBE as f64 / begun.elapsed().as_secs_f64();
    lab.exec(&["rm", "/var/lib/kybernate/probe"])?;
    Ok(speed)
}

/// `containerd 2.1.9, runc 1.3.6, criu 4.2.1` out of what the programs say about themselves.
fn versions(text: &str) -> String {
    let mut found: Vec<String> = Vec::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let version = words.iter().skip(1).find(|word| {
            word.trim_start_matches('v')
                .starts_with(|c: char| c.is_ascii_digit())
        });
        let name = words
            .first()
            .map(|w| w.trim_end_matches(':').to_lowercase());
        if let (Some(name), Some(version)) = (name, version) {
            let name = if name == "version" {
                "criu".into()
            } else {
                name
            };
            if ["containerd", "runc", "criu"].contains(&name.as_str()) {
                found.push(format!("{name} {version}"));
            }
        }
    }
    found.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let text = "containerd github.com/containerd/containerd/v2 2.1.9~ds1-1 abc\n\
                    runc version 1.3.6\ncommit: 1\nspec: 1.2.1\nVersion: 4.2.1\n";
        assert_eq!(
            versions(text),
            "containerd 2.1.9~ds1-1, runc 1.3.6, criu 4.2.1"
        );
    }
}
