//! Checkpoints of the same program in the same lab, each way in turn.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::CheckpointContainerRequest;

use super::{
    median,
    memory::{self, Memory},
    pods::shim_of,
};
use crate::{
    Container, Handler, Lab, Pod,
    checkpoint::{ARCHIVES, Archive, run},
    cri::PodBuilder,
    workload::Workload,
};

/// A way to take a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// CRI `CheckpointContainer`, containerd's shim.
    Stock,
    /// `runc checkpoint --leave-running` into memory: how short a pause could be.
    RuncToMemory,
    /// `kybernate checkpoint` with these arguments.
    Ours(&'static [&'static str]),
}

const DEFAULT: Way = Way::Ours(&["--level", "default", "--buffer", "auto"]);
const FAST: Way = Way::Ours(&["--level", "fast", "--buffer", "auto"]);
const BOUNDED: Way = Way::Ours(&["--level", "default", "--buffer", "256MiB"]);
const FAST_BOUNDED: Way = Way::Ours(&["--level", "fast", "--buffer", "256MiB"]);

/// All ways, in the order in which they take turns.
pub const WAYS: [Way; 6] = [
    Way::Stock,
    DEFAULT,
    FAST,
    Way::RuncToMemory,
    BOUNDED,
    FAST_BOUNDED,
];

impl Way {
    /// What tables call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Stock => "stock containerd",
            Self::RuncToMemory => "runc to tmpfs, no archive",
            DEFAULT => "default, buffer auto",
            FAST => "fast, buffer auto",
            BOUNDED => "default, buffer 256MiB",
            Self::Ours(_) => "fast, buffer 256MiB",
        }
    }
}

/// One checkpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// From the call to its end, in seconds.
    pub wall: f64,
    /// Longest time the program stood still, in seconds, as it saw it.
    pub pause: f64,
    /// Pause that we report, in seconds; 0 for the others.
    pub reported: f64,
    /// Bytes that containerd and the shim wrote to disk files.
    pub written: f64,
    /// Bytes of the result.
    pub size: f64,
    /// Most memory of the shim beyond what it had when its pod was new, in bytes.
    pub shim: f64,
    /// The same of containerd.
    pub containerd: f64,
}

/// The samples of one size.
#[derive(Debug, Clone)]
pub struct Size {
    /// MiB of memory of the program.
    pub mib: u32,
    /// Samples of each way.
    pub ways: Vec<(Way, Vec<Sample>)>,
    /// Resident memory of our shim some seconds after its last checkpoint, in bytes.
    pub afterwards: u64,
}

impl Size {
    /// The median of one figure of one way.
    pub fn median(&self, way: Way, figure: impl Fn(&Sample) -> f64) -> f64 {
        let samples = self
            .ways
            .iter()
            .find(|(w, _)| *w == way)
            .map(|(_, s)| s.iter());
        median(samples.into_iter().flatten().map(figure).collect())
    }

    /// The default level with memory for everything.
    pub const DEFAULT: Way = DEFAULT;
    /// Level `fast` with memory for everything.
    pub const FAST: Way = FAST;
    /// The default level with bounded memory.
    pub const BOUNDED: Way = BOUNDED;
}

struct Side {
    pod: Pod,
    container: Container,
    shim: u32,
    idle: Memory,
}

impl Side {
    async fn start(lab: &Arc<Lab>, handler: Handler, work: &Workload) -> Result<Self> {
        let pod = PodBuilder::new(lab, handler).start().await?;
        let container = work.start(&pod).await?;
        let shim = shim_of(&pod)?;
        let idle = Memory::of(lab, shim)?;
        Ok(Self {
            pod,
            container,
            shim,
            idle,
        })
    }
}

/// Takes `rounds` checkpoints in each way of a program with `mib` MiB, half compressible.
pub async fn measure(lab: &Arc<Lab>, mib: u32, rounds: usize) -> Result<Size> {
    let work = Workload::memory_checked(mib, 0);
    let stock = Side::start(lab, Handler::Runc, &work).await?;
    let ours = Side::start(lab, Handler::Kybernate, &work).await?;
    let mut ways: Vec<(Way, Vec<Sample>)> = WAYS.map(|way| (way, Vec::new())).into();
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let way = turn_of(round, turn, ways.len());
            let (way, samples) = &mut ways[way];
            eprint!(
                "\r{mib} MiB: round {} of {rounds}: {:<28}",
                round + 1,
                way.title()
            );
            let side = if matches!(way, Way::Ours(_)) {
                &ours
            } else {
                &stock
            };
            samples.push(once(lab, *way, &work, side).await.context(way.title())?);
        }
    }
    eprintln!();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let afterwards = Memory::of(lab, ours.shim)?.resident;
    for side in [&stock, &ours] {
        side.container.shell("kill -USR1 1").await?;
        let log = side.container.wait_stdout("sum=").await?;
        ensure!(!log.contains("CORRUPT"), "the program's memory has changed");
        side.container
            .wait_stdout(" OK")
            .await
            .context("the program's check")?;
        side.pod.remove().await?;
    }
    Ok(Size {
        mib,
        ways,
        afterwards,
    })
}

/// Which of `count` ways, an even number, has its turn: in `count` rounds every way comes after
/// every other way just once, since what one leaves behind in disks and memory slows the next one.
fn turn_of(round: usize, turn: usize, count: usize) -> usize {
    let step = if turn % 2 == 1 {
        turn.div_ceil(2)
    } else {
        count - turn / 2
    };
    (round + step) % count
}

async fn once(lab: &Arc<Lab>, way: Way, work: &Workload, side: &Side) -> Result<Sample> {
    // What earlier ones left behind, in the page cache and to containerd's garbage collector, is
    // not this one's to carry.
    tokio::time::sleep(Duration::from_secs(1)).await;
    lab.exec(&["sync"])?;
    let before = work
        .is_well(&side.container, work.count(&side.container)?)
        .await?;
    let containerd = lab.containerd_pid()?;
    let pids = [containerd, side.shim];
    let daemon = Memory::of(lab, containerd)?.resident;
    for pid in pids {
        memory::forget_peak(lab, pid)?;
    }
    let written = || -> Result<u64> { pids.iter().map(|pid| memory::written(lab, *pid)).sum() };
    let written_before = written()?;

    let begun = Instant::now();
    let (size, reported) = take(lab, way, &side.container).await?;
    let wall = begun.elapsed().as_secs_f64();

    let peak = |pid, idle: u64| memory::peak(lab, pid).map(|p| p.saturating_sub(idle) as f64);
    let sample = Sample {
        wall,
        reported,
        size,
        written: (written()? - written_before) as f64,
        shim: peak(side.shim, side.idle.resident)?,
        containerd: peak(containerd, daemon)?,
        pause: 0.0,
    };
    // The program tells its gap with the next line after it.
    let count = work.count(&side.container)?;
    work.is_well(&side.container, count).await?;
    Ok(Sample {
        pause: longest_gap(&side.container.stdout()?, before),
        ..sample
    })
}

/// Size of the result in bytes, and the pause that was reported in seconds.
async fn take(lab: &Arc<Lab>, way: Way, container: &Container) -> Result<(f64, f64)> {
    let archive = Archive::new(lab)?;
    let taken = match way {
        Way::Ours(arguments) => {
            archive.try_take(&container.id, arguments).await?.ok()?;
            (
                archive.size()? as f64,
                archive.manifest()?.pause_ms as f64 / 1000.0,
            )
        }
        Way::Stock => {
            let request = CheckpointContainerRequest {
                container_id: container.id.clone(),
                location: archive.path.clone(),
                timeout: 0,
            };
            lab.cri()
                .checkpoint_container(request)
                .await
                .context("CheckpointContainer")?;
            (archive.size()? as f64, 0.0)
        }
        Way::RuncToMemory => {
            let images = format!("/run/bench-{}", container.id);
            fs::create_dir(lab.path(&images))?;
            let command = [
                "runc",
                "--root",
                "/run/containerd/runc/k8s.io",
                "checkpoint",
            ];
            let options = [
                "--leave-running",
                "--image-path",
                &images,
                "--work-path",
                &images,
            ];
            let argv = [&command[..], &options, &[&container.id]].concat();
            run(lab, &argv).await?.ok()?;
            let size: u64 = fs::read_dir(lab.path(&images))?
                .map(|entry| entry?.metadata().map(|m| m.len()))
                .sum::<std::io::Result<_>>()?;
            fs::remove_dir_all(lab.path(&images))?;
            return Ok((size as f64, 0.0));
        }
    };
    fs::remove_file(archive.file())?;
    fs::create_dir_all(lab.path(ARCHIVES))?;
    Ok(taken)
}

/// The largest gap that the program has told after line `t`, in seconds.
fn longest_gap(log: &str, t: u64) -> f64 {
    let gap = |line: &str| -> Option<(u64, u64)> {
        let (number, rest) = line.strip_prefix("t=")?.split_once(" gap_us=")?;
        let gap = rest.split(' ').next()?;
        Some((number.parse().ok()?, gap.parse().ok()?))
    };
    let after = log
        .lines()
        .filter_map(gap)
        .filter(|(number, _)| *number > t);
    after.map(|(_, gap)| gap).max().unwrap_or(0) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{longest_gap, turn_of};

    #[test]
    fn every_way_comes_after_every_other_once() {
        const COUNT: usize = 6;
        let mut pairs = BTreeSet::new();
        for round in 0..COUNT {
            for turn in 1..COUNT {
                pairs.insert([turn - 1, turn].map(|turn| turn_of(round, turn, COUNT)));
            }
        }
        assert_eq!(pairs.len(), COUNT * (COUNT - 1));
        assert!(pairs.iter().all(|[before, after]| before != after));
    }

    #[test]
    fn gaps_count_after_the_line_alone() {
        let log = "t=1 gap_us=9000000\nt=2 gap_us=1200\nt=3 gap_us=850000 sum=1 OK\n";
        assert!((longest_gap(log, 1) - 0.85).abs() < 1e-9);
        assert!(longest_gap(log, 3).abs() < 1e-9);
    }
}
