//! Thirty containers in ten pods are checkpointed, restored, killed, paused and recreated for as long
//! as is wanted, while containerd is killed now and then: nothing is lost, nothing leaks, nothing
//! grows.
//!
//! ```text
//! KYBERNATE_SOAK_MINUTES   how long, 3 if not set (`make soak MINUTES=60`)
//! KYBERNATE_SOAK_SEED      which operations on which container, in which order; printed
//! KYBERNATE_SOAK_DISTRO    forky (default) or trixie
//! ```
//!
//! A container counts in memory and in a file. Its count never goes back but to the archive it is
//! restored from; whatever nobody has ended runs; an archive that was published verifies; what
//! fails has a reason that somebody has given it.

mod measure;
mod operations;
mod pods;
mod random;
mod slot;
mod tally;
mod world;

use std::{
    fs,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use kybernate_integration::{
    Case, Distro, Handler, Suite, checkpoint::ARCHIVES, hook::Hook, node, plugin::Plugin,
};

use self::{measure::Sample, pods::PodOfSlots, world::World};

const PODS: u64 = 10;
/// Pods that stay all the time, so that their shims can be compared with themselves.
const LASTING: usize = 5;
/// Time for all that comes before and after.
const AROUND: Duration = Duration::from_secs(300);
/// How often a long run is looked at.
const LOOK: Duration = Duration::from_secs(120);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn lasts() -> Duration {
    Duration::from_secs(60 * number("KYBERNATE_SOAK_MINUTES").unwrap_or(3))
}

fn main() -> ExitCode {
    let trixie = std::env::var("KYBERNATE_SOAK_DISTRO").is_ok_and(|name| name == "trixie");
    let distros: &[Distro] = if trixie {
        &[Distro::Trixie]
    } else {
        &[Distro::Forky]
    };
    Suite::new("soak")
        .case("nothing_is_lost", soak)
        .handlers(&[Handler::Kybernate])
        .distros(distros)
        .limit(lasts() + AROUND)
        .alone()
        .run()
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    number("KYBERNATE_SOAK_SEED").unwrap_or_else(|| now.map_or(1, |now| now.as_secs()))
}

async fn soak(cx: Case) -> Result<()> {
    let lab = cx.lab.clone();
    let (seed, lasts) = (seed(), lasts());
    println!(
        "soak: {} s on {}, KYBERNATE_SOAK_SEED={seed}",
        lasts.as_secs(),
        lab.distro()
    );
    fs::create_dir_all(lab.path(ARCHIVES))?;
    let plugin = Plugin::start(&lab).await?;
    let hook = Hook::start(&lab).await?;
    // The first pod makes what stays: the cgroup of all pods.
    let first = cx.pod().start().await?;
    node::remove(&first, &lab).await?;
    let before = node::Node::look_at_names(&lab).await?;

    let world = Arc::new(World::new(cx.clone(), seed, lasts));
    let begun = Instant::now();
    let mut pods = Vec::new();
    for number in 0..PODS {
        pods.push(PodOfSlots::start(&world, number).await?);
    }
    let lasting: Vec<_> = pods
        .iter()
        .take(LASTING)
        .map(|pod| pod.pod.clone())
        .collect();
    let services = [("hook", hook.pid), ("plugin", plugin.pid()?)];
    let sample = || Sample::take(&lab, &lasting, &services);

    let mut workers = tokio::task::JoinSet::new();
    for (number, mut pod) in pods.into_iter().enumerate() {
        workers.spawn(async move {
            pod.work(number < LASTING).await;
            pod
        });
    }
    let restarting = {
        let world = world.clone();
        tokio::spawn(async move {
            if let Err(error) = world.restart_containerd().await {
                world.fail(&error.context("restart of containerd"));
            }
        })
    };
    // The first third is for warming up.
    let mut samples = Vec::new();
    let mut next = begun + lasts / 3;
    while !world.is_over() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if Instant::now() >= next {
            let _gate = world.gate.write().await;
            // What has just ended goes.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let sample = sample()?;
            println!("soak: {}", sample.line(begun));
            samples.push(sample);
            next += LOOK;
        }
    }
    let mut pods = Vec::new();
    while let Some(pod) = workers.join_next().await {
        pods.push(pod?);
    }
    restarting.await?;
    world.containerd().await?;
    println!("{}", world.tally.summary());
    if let Some(failure) = world.failure() {
        bail!("KYBERNATE_SOAK_SEED={seed}: {failure}");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let last = sample()?;
    println!("soak: {}", last.line(begun));
    let first = samples.first().context("no sample was taken")?;
    let flat = first.compare(&last, begun);

    for pod in pods {
        pod.end().await?;
    }
    clear_archives(&lab)?;
    clear_criu(&lab)?;
    node::nothing_left(&lab)?;
    before.is_unchanged().await?;
    let panics = lab.log().matches("panicked at").count();
    ensure!(panics == 0, "{panics} panics in containerd's log");
    println!("{}", flat?);
    println!(
        "soak: {} operations, {} restarts of containerd, nothing lost, nothing left",
        world.tally.total(),
        world.restarts() / 2
    );
    Ok(())
}

/// A CRIU that is killed in a restore, because containerd has gone, leaves an empty directory.
fn clear_criu(lab: &kybernate_integration::Lab) -> Result<()> {
    for entry in fs::read_dir(lab.path("/tmp"))?.flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(".criu.mntns.")
        {
            fs::remove_dir(entry.path()).context("not empty")?;
        }
    }
    Ok(())
}

/// What killed clients have left has nothing partial in it: their shims have undone that.
fn clear_archives(lab: &kybernate_integration::Lab) -> Result<()> {
    for entry in fs::read_dir(lab.path(ARCHIVES))?.flatten() {
        let path = entry.path();
        let holds = |name: &str| path.join(name).exists();
        let staging = entry
            .file_name()
            .to_string_lossy()
            .starts_with(".kybernate-");
        ensure!(staging, "{} is left", path.display());
        ensure!(
            !holds("archive.tar.zst") || holds("result.json"),
            "{} holds a part of an archive",
            path.display()
        );
        fs::remove_dir_all(&path)?;
    }
    Ok(())
}
