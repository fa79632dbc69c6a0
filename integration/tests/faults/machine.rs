//! What a machine does to a checkpoint: files that can't be written or only slowly, no room, no
//! descriptors, no memory, and a wall clock that is set.
//!
//! Files and clock are faulted by `doubles/faults.c`, between the programs and the kernel; what is
//! lacking is really lacking.

use std::{
    fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use kybernate_config::request::CheckpointRequest;
use kybernate_integration::{
    Case,
    checkpoint::{ARCHIVES, Archive, Finished, Staging, run},
    node::Node,
    workload::Workload,
};

use crate::{
    fault::{Fault, Kind, Preload, Rule},
    table::Run,
    world::{Has, World, look, no_archive, nothing_left, remove},
};

const FILES: &str = "checkpoint, a file";
const LACKS: &str = "checkpoint, a lack";
const CLOCK: &str = "checkpoint, the clock";
/// MiB: several writes of an archive.
const MEMORY: u32 = 24;

/// Files, and what their paths have in them.
const PLACES: [(&str, &str); 4] = [
    ("record", "kybernate/journal/"),
    ("CRIU's images", "/images/"),
    ("archive", "archive.tar.zst"),
    ("result", "result.json"),
];

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Eio,
    Full,
    Half,
    Slow,
    TooSlow,
    Unsynced,
}

impl Trouble {
    fn name(self) -> &'static str {
        match self {
            Self::Eio => "EIO",
            Self::Full => "ENOSPC",
            Self::Half => "short writes",
            Self::Slow => "slow",
            Self::TooSlow => "slower than the deadline",
            Self::Unsynced => "sync fails",
        }
    }

    fn rule(self, part: &str) -> String {
        match self {
            Self::Eio => format!("write {part} error 5"),
            Self::Full => format!("write {part} error 28"),
            Self::Half => format!("write {part} half 0"),
            Self::Slow => format!("write {part} delay 150"),
            Self::TooSlow => format!("write {part} delay 4000"),
            Self::Unsynced => format!("sync {part} error 5"),
        }
    }

    /// What the failure says; `None` for none.
    fn cause(self, place: &str) -> Option<&'static str> {
        match self {
            // In its own words.
            Self::Eio | Self::Full if place == "CRIU's images" => Some("CRIU"),
            Self::Eio | Self::Unsynced => Some("os error 5"),
            Self::Full => Some("os error 28"),
            Self::TooSlow => Some("not done within"),
            Self::Half | Self::Slow => None,
        }
    }
}

fn file_cells(all: bool) -> Vec<(&'static str, &'static str, Trouble)> {
    use Trouble::{Eio, Full, Half, Slow, TooSlow, Unsynced};
    let mut cells = Vec::new();
    for (name, part) in PLACES {
        let troubles: &[Trouble] = match name {
            // In memory, wherever it is: it is neither slow nor anything else.
            "record" => &[Eio, Full, Half, Unsynced],
            "CRIU's images" => &[Eio, Full, Half, Slow, TooSlow],
            "archive" => &[Eio, Full, Half, Slow, TooSlow, Unsynced],
            _ => &[Eio, Full, Half, Slow, TooSlow],
        };
        cells.extend(troubles.iter().map(|trouble| (name, part, *trouble)));
    }
    if !all {
        cells.retain(|(name, _, trouble)| *name == "archive" && matches!(trouble, Eio | Half));
    }
    cells
}

/// A container with more memory than one write, whose shim is loaded with faults.
async fn world(cx: &Case) -> Result<World> {
    let (work, pod) = (Workload::ledger(MEMORY), cx.pod().start().await?);
    let container = crate::world::container(Has::Cpu, &work, &pod, &cx.lab)?;
    let container = container.start().await?;
    work.is_well(&container, 0).await?;
    Ok(World {
        has: Has::Cpu,
        work,
        pod,
        container,
    })
}

async fn verified(cx: &Case, archive: &Archive, finished: Finished) -> Result<()> {
    finished.ok()?;
    let verified = run(&cx.lab, &["kybernate", "verify", &archive.path]).await?;
    verified.ok().context("an archive that was reported good")?;
    Ok(fs::remove_file(archive.file())?)
}

fn refused(cx: &Case, archive: &Archive, finished: Finished, cause: &str) -> Result<()> {
    let said = finished.refused()?;
    ensure!(said.contains(cause), "no cause {cause:?} in: {said}");
    no_archive(archive, &cx.lab)
}

pub async fn faults(cx: Case, all: bool) -> Result<()> {
    let preload = Preload::new(&cx.lab)?;
    let mut table = Run::default();
    let mut at = world(&cx).await?;
    for (place, part, trouble) in file_cells(all) {
        let begun = Instant::now();
        let result = file(&cx, &at, (place, part), trouble).await;
        if !table.note(FILES, (place, trouble.name()), begun, result) {
            at = world(&cx).await?;
        }
    }
    let clocks = [("an hour back", -3600), ("an hour ahead", 3600)];
    for (name, seconds) in clocks.into_iter().take(if all { 2 } else { 1 }) {
        let begun = Instant::now();
        let result = goes_on(&cx, &at, seconds).await;
        table.note(CLOCK, ("no deadline passed", name), begun, result);
        let begun = Instant::now();
        let result = ends_in_time(&cx, &at, seconds).await;
        table.note(CLOCK, ("a deadline passed", name), begun, result);
    }
    drop(preload);
    for lack in lacks(all) {
        let begun = Instant::now();
        let result = lacking(&cx, &at, lack).await;
        let (what, how) = lack.name();
        if !table.note(LACKS, (what, how), begun, result) {
            at = world(&cx).await?;
        }
    }
    remove(&at.pod, &cx.lab).await?;
    table.end()
}

async fn file(
    cx: &Case,
    world: &World,
    (place, part): (&str, &str),
    trouble: Trouble,
) -> Result<()> {
    let node = Node::look(&cx.lab)?;
    let before = world.work.count(&world.container)?;
    let archive = Archive::new(&cx.lab)?;
    let limit = if trouble == Trouble::TooSlow {
        "2"
    } else {
        "60"
    };
    let rule = Rule::set(&cx.lab, &trouble.rule(part))?;
    let arguments = ["--timeout", limit];
    let finished = archive.try_take(&world.container.id, &arguments).await?;
    drop(rule);
    match trouble.cause(place) {
        None => verified(cx, &archive, finished).await?,
        Some(cause) => refused(cx, &archive, finished, cause)?,
    }
    world.is_unharmed(before, &node).await
}

/// The clock is set in the middle of a dump that has time left: nothing comes of it.
async fn goes_on(cx: &Case, world: &World, seconds: i64) -> Result<()> {
    let node = Node::look(&cx.lab)?;
    let before = world.work.count(&world.container)?;
    let archive = Archive::new(&cx.lab)?;
    let fault = Fault::set(&cx.lab, "pages", Kind::KillContainerd)?;
    let taking = {
        let (archive, id) = (archive.clone(), world.container.id.clone());
        tokio::spawn(async move { archive.try_take(&id, &["--timeout", "60"]).await })
    };
    fault.reached().await?;
    let rule = Rule::set(&cx.lab, &format!("clock - step {seconds}"))?;
    drop(fault);
    let finished = taking.await??;
    drop(rule);
    verified(cx, &archive, finished).await?;
    world.is_unharmed(before, &node).await
}

/// The clock is set in the middle of a dump that hangs: its deadline holds all the same.
async fn ends_in_time(cx: &Case, world: &World, seconds: i64) -> Result<()> {
    let node = Node::look(&cx.lab)?;
    let before = world.work.count(&world.container)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let deadline = now + 5;
    let request = CheckpointRequest {
        version: kybernate_config::request::REQUEST_VERSION,
        level: None,
        buffer: None,
        deadline: Some(deadline),
        include: Vec::new(),
        encrypt_to: Vec::new(),
        requester: None,
    };
    let fault = Fault::set(&cx.lab, "rootfs", Kind::Hang)?;
    let staging = Staging::new(&cx.lab, ARCHIVES, &request)?;
    let begun = Instant::now();
    let taking = staging.checkpoint(&world.container.id, Duration::from_secs(40));
    let setting = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        Rule::set(&cx.lab, &format!("clock - step {seconds}"))
    };
    let (taken, rule) = tokio::join!(taking, setting);
    let took = begun.elapsed();
    drop((fault, rule?));
    let status = taken.err().context("taken all the same")?;
    let said = status.message();
    ensure!(said.contains("its deadline passed"), "{said}");
    let bounds = Duration::from_secs(4)..Duration::from_secs(9);
    ensure!(bounds.contains(&took), "its deadline passed after {took:?}");
    drop(staging);
    world.is_unharmed(before, &node).await
}

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// Descriptors of the shim: so many are left.
    Descriptors(u64),
    /// MiB of memory that the shim may map.
    Memory(u64),
    /// A file system of one MiB: for the archive.
    Archive,
    /// For CRIU's images.
    Work,
    /// For the record, and it is full.
    Record,
}

impl Lack {
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Descriptors(0) => ("descriptors", "none left"),
            Self::Descriptors(4) => ("descriptors", "4 left"),
            Self::Descriptors(8) => ("descriptors", "8 left"),
            Self::Descriptors(_) => ("descriptors", "16 left"),
            Self::Memory(1) => ("memory", "1 MiB left"),
            Self::Memory(8) => ("memory", "8 MiB left"),
            Self::Memory(32) => ("memory", "32 MiB left"),
            Self::Memory(_) => ("memory", "128 MiB left"),
            Self::Archive => ("archive's disk", "full"),
            Self::Work => ("work directory", "full"),
            Self::Record => ("records", "full"),
        }
    }
}

fn lacks(all: bool) -> Vec<Lack> {
    let descriptors = [0, 4, 8, 16].map(Lack::Descriptors);
    let memory = [1, 8, 32, 128].map(Lack::Memory);
    if all {
        let rest = [Lack::Archive, Lack::Work, Lack::Record];
        [&descriptors[..], &memory, &rest].concat()
    } else {
        vec![Lack::Descriptors(8), Lack::Memory(8), Lack::Archive]
    }
}

/// A clear error, or an archive: nothing between.
async fn lacking(cx: &Case, world: &World, lack: Lack) -> Result<()> {
    let node = Node::look(&cx.lab)?;
    let before = world.work.count(&world.container)?;
    let shim = *world.pod.shims()?.first().context("no shim")?;
    let mut archive = Archive::new(&cx.lab)?;
    let mut limit = None;
    let mut disk = None;
    match lack {
        Lack::Descriptors(left) => {
            let open = fs::read_dir(cx.lab.path(format!("/proc/{shim}/fd")))?.count();
            limit = Some(Limited::set(cx, shim, "nofile", open as u64 + left)?);
        }
        Lack::Memory(left) => {
            let statm = fs::read_to_string(cx.lab.path(format!("/proc/{shim}/statm")))?;
            let pages: u64 = statm.split(' ').next().context("statm")?.parse()?;
            let most = pages * 4096 + (left << 20);
            limit = Some(Limited::set(cx, shim, "as", most)?);
        }
        Lack::Archive => {
            let place = format!("{ARCHIVES}/small");
            archive = Archive::at(&cx.lab, format!("{place}/a.tar.zst"));
            disk = Some(Disk::mount(cx, &place, "1m")?);
        }
        Lack::Work => disk = Some(Disk::mount(cx, "/run/kybernate/dump", "16k")?),
        Lack::Record => disk = Some(Disk::mount(cx, "/run/kybernate/journal", "4k")?),
    }
    if lack == Lack::Record {
        // One page, and it is taken.
        let taken = cx.lab.path("/run/kybernate/journal/other");
        fs::write(taken, [1; 4096])?;
    }
    let arguments = ["--no-space-check", "--timeout", "60"];
    let taken = archive.try_take(&world.container.id, &arguments).await;
    // The container must not need what is lacking, either.
    world.work.is_well(&world.container, before).await?;
    drop(limit);
    let finished = taken?;
    let causes: &[&str] = match lack {
        // CRIU has no more of them than the shim, and its own words.
        Lack::Descriptors(_) => &["Too many open files", "CRIU"],
        // The shim's own words, those of a thread that could not be started, and runc's.
        Lack::Memory(_) => &["os error 12", "os error 11", "runc"],
        Lack::Work => &["CRIU"],
        Lack::Archive | Lack::Record => &["os error 28"],
    };
    if finished.code == 0 && matches!(lack, Lack::Descriptors(_) | Lack::Memory(_)) {
        verified(cx, &archive, finished).await?;
    } else {
        ensure!(
            !archive.file().exists(),
            "an archive of a failed checkpoint"
        );
        let said = finished.refused()?;
        let is_told = causes.iter().any(|cause| said.contains(cause));
        ensure!(is_told, "none of {causes:?} in: {said}");
    }
    drop(disk);
    nothing_left(&cx.lab)?;
    world.is_unharmed(before, &node).await
}

/// A limit of a process, until this is dropped.
struct Limited<'a> {
    cx: &'a Case,
    pid: u32,
    what: &'static str,
}

impl<'a> Limited<'a> {
    fn set(cx: &'a Case, pid: u32, what: &'static str, most: u64) -> Result<Self> {
        let limited = Self { cx, pid, what };
        limited.prlimit(&most.to_string())?;
        Ok(limited)
    }

    /// The soft limit alone: the hard one could not be raised again.
    fn prlimit(&self, soft: &str) -> Result<()> {
        let (pid, limit) = (self.pid.to_string(), format!("--{}={soft}:", self.what));
        self.cx.lab.exec(&["prlimit", "--pid", &pid, &limit])?;
        Ok(())
    }
}

impl Drop for Limited<'_> {
    fn drop(&mut self) {
        let most = match self.what {
            "as" => "unlimited",
            _ => "1024",
        };
        if let Err(error) = self.prlimit(most) {
            eprintln!("a limit stays: {error:#}");
        }
    }
}

/// A small file system in memory, until this is dropped.
struct Disk<'a> {
    cx: &'a Case,
    place: String,
}

impl<'a> Disk<'a> {
    fn mount(cx: &'a Case, place: &str, size: &str) -> Result<Self> {
        let options = format!("size={size},mode=0700");
        cx.lab.exec(&["mkdir", "-p", place])?;
        let mount = ["mount", "-t", "tmpfs", "-o", &options, "small", place];
        cx.lab.exec(&mount)?;
        let place = place.to_owned();
        Ok(Self { cx, place })
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.cx.lab.exec(&["umount", &self.place]) {
            eprintln!("a mount stays: {error:#}");
        }
        if self.place.starts_with(ARCHIVES) {
            let _ = fs::remove_dir(self.cx.lab.path(&self.place));
        }
    }
}

/// A restore for which there is no room, in memory or on disk.
pub async fn no_room_to_restore(cx: Case) -> Result<()> {
    let at = world(&cx).await?;
    let archive = kybernate_integration::checkpoint::take(&at.container, &["--exit"]).await?;
    at.container.wait_exit().await?;
    let counted = at.work.count(&at.container)?;
    remove(&at.pod, &cx.lab).await?;
    let node = look(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    {
        let _memory = Disk::mount(&cx, "/run/kybernate/restore", "1m")?;
        let _disk = Disk::mount(&cx, "/var/lib/kybernate/restore", "1m")?;
        let error = at.work.restore(&pod, &archive).await.err();
        let said = format!("{:#}", error.context("restored without room")?);
        ensure!(said.contains("make room or set restore.disk_dir"), "{said}");
    }
    remove(&pod, &cx.lab).await?;
    node.is_unchanged().await?;
    let next = cx.pod().start().await?;
    let restored = at.work.restore(&next, &archive).await?;
    at.work.went_on(&restored, counted).await?;
    fs::remove_file(archive.file())?;
    remove(&next, &cx.lab).await
}
