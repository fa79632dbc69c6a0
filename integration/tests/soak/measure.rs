//! Memory and descriptors of the programs that are there all the time, while nothing is done.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{Lab, Pod, bench::memory::Memory};

/// What a shim may have grown by between warm-up and end: memory of its own, in bytes.
const SHIM: u64 = 1 << 20;
/// Its heap reaches its size only after some dozens of checkpoints: what may come on top after less
/// than this.
const WARM: Duration = Duration::from_secs(300);
const COLD: u64 = 2 << 20;
/// The same for the hook and the plugin, which serve all pods.
const SERVICE: u64 = 3 << 20;
/// Descriptors that may have come: of a connection that containerd keeps.
const DESCRIPTORS: usize = 3;

/// One program.
#[derive(Debug, Clone)]
struct Program {
    name: String,
    memory: Memory,
    descriptors: usize,
    threads: usize,
    bound: u64,
}

impl Program {
    fn of(lab: &Lab, name: &str, pid: u32, bound: u64) -> Result<Self> {
        let entries = |of: &str| -> Result<usize> {
            Ok(fs::read_dir(lab.path(format!("/proc/{pid}/{of}")))?.count())
        };
        Ok(Self {
            name: name.into(),
            memory: Memory::of(lab, pid).with_context(|| name.to_owned())?,
            descriptors: entries("fd")?,
            threads: entries("task")?,
            bound,
        })
    }
}

/// All of them at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    at: Instant,
    programs: Vec<Program>,
}

impl Sample {
    /// The shims of these pods, and the programs of these names.
    pub fn take(lab: &Lab, pods: &[Pod], services: &[(&str, u32)]) -> Result<Self> {
        let mut programs = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let shims = pod.shims()?;
            ensure!(shims.len() == 1, "pod {} has shims {shims:?}", pod.id);
            let name = format!("shim {number}");
            programs.push(Program::of(lab, &name, shims[0], SHIM)?);
        }
        for (name, pid) in services {
            programs.push(Program::of(lab, name, *pid, SERVICE)?);
        }
        Ok(Self {
            at: Instant::now(),
            programs,
        })
    }

    /// A line for a long run.
    pub fn line(&self, since: Instant) -> String {
        let after = self.at.duration_since(since).as_secs();
        let mut line = format!("after {after} s, own KiB/resident KiB/descriptors/threads:");
        for program in &self.programs {
            let Memory {
                private_dirty,
                resident,
            } = program.memory;
            let (own, resident) = (private_dirty >> 10, resident >> 10);
            let (name, descriptors) = (&program.name, program.descriptors);
            let _ = write!(
                line,
                " {name} {own}/{resident}/{descriptors}/{}",
                program.threads
            );
        }
        line
    }

    /// Fails when a program has grown beyond its bound; says what all have.
    pub fn compare(&self, later: &Self, begun: Instant) -> Result<String> {
        let mut grown = Vec::new();
        let cold = if self.at.duration_since(begun) < WARM {
            COLD
        } else {
            0
        };
        for (before, after) in self.programs.iter().zip(&later.programs) {
            let (own, bound) = (after.memory.private_dirty, before.bound + cold);
            let was = before.memory.private_dirty;
            if own > was + bound {
                grown.push(format!(
                    "{} has {own} bytes of its own, had {was}, and may grow by {bound}",
                    before.name
                ));
            }
            if after.descriptors > before.descriptors + DESCRIPTORS {
                grown.push(format!(
                    "{} has {} descriptors, had {}",
                    before.name, after.descriptors, before.descriptors
                ));
            }
        }
        ensure!(grown.is_empty(), "not flat: {}", grown.join("; "));
        let list = |sample: &Self| {
            let of = |p: &Program| format!("{} {}", p.name, p.memory.private_dirty >> 10);
            let each: Vec<_> = sample.programs.iter().map(of).collect();
            each.join(", ")
        };
        let passed: Duration = later.at.duration_since(self.at);
        Ok(format!(
            "own memory in KiB, before: {}; {} s later: {}",
            list(self),
            passed.as_secs(),
            list(later)
        ))
    }
}
