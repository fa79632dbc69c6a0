//! How long a pod takes to start, and what its shim costs while nothing happens.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{median, memory::Memory};
use crate::{Handler, Lab, Pod, cri::PodBuilder};

/// Pods that are started before those that count.
const WARM_UP: usize = 2;
/// After this time nothing of the start goes on any more.
const QUIET: Duration = Duration::from_secs(1);

/// One handler's pods.
#[derive(Debug, Clone)]
pub struct Pods {
    /// From RunPodSandbox to the end of StartContainer, in seconds, sorted.
    pub start: Vec<f64>,
    /// The shim's memory with one idle container; the median pod's.
    pub idle: Memory,
}

impl Pods {
    /// The median start in seconds.
    pub fn median(&self) -> f64 {
        median(self.start.clone())
    }
}

/// Stock and ours.
#[derive(Debug, Clone)]
pub struct Both {
    /// The stock shim's.
    pub stock: Pods,
    /// Ours.
    pub ours: Pods,
}

/// Starts `count` pods of each kind in turn.
pub async fn measure(lab: &Arc<Lab>, count: usize) -> Result<Both> {
    let mut sides = [Handler::Runc, Handler::Kybernate].map(|h| (h, Vec::new(), Vec::new()));
    for round in 0..WARM_UP + count {
        for (handler, start, idle) in &mut sides {
            let begun = Instant::now();
            let pod = start_one(lab, *handler).await?;
            if round >= WARM_UP {
                start.push(begun.elapsed().as_secs_f64());
            }
            // Waiting is slow; the shims differ little from pod to pod.
            if idle.len() < 3 {
                tokio::time::sleep(QUIET).await;
                let shim = shim_of(&pod)?;
                idle.push(Memory::of(lab, shim)?);
            }
            pod.remove().await?;
        }
        eprint!("\rpods: {} of {}   ", round + 1, WARM_UP + count);
    }
    eprintln!();
    let [stock, ours] = sides.map(|(_, mut start, mut idle)| {
        start.sort_by(f64::total_cmp);
        idle.sort_by_key(|memory: &Memory| memory.resident);
        Pods {
            start,
            idle: idle[idle.len() / 2],
        }
    });
    Ok(Both { stock, ours })
}

async fn start_one(lab: &Arc<Lab>, handler: Handler) -> Result<Pod> {
    let pod = PodBuilder::new(lab, handler).start().await?;
    pod.container("idle")
        .command(["sleep", "1000"])
        .start()
        .await?;
    Ok(pod)
}

/// The pid of a pod's only shim.
pub fn shim_of(pod: &Pod) -> Result<u32> {
    pod.shims()?.first().copied().context("the pod has no shim")
}
