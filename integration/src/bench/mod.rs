//! The benchmark: the stock shim and ours in one lab, in one run, alternating.
//!
//! ```text
//! checkpoints   CRI CheckpointContainer (stock) │ kybernate checkpoint │ runc to tmpfs
//! restores      zstd | tar, then runc restore   │ a container with the annotation
//! pods          RunPodSandbox to StartContainer │ the same, other handler
//!      └────> samples ── medians ── targets ──> text for people, docs/benchmarks.md
//! ```

mod checkpoints;
pub mod hooks;
mod machine;
pub mod memory;
mod pods;
mod report;
mod restores;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Result, ensure};

use crate::{Distro, Handler, Lab, LabOptions};

pub use report::{Report, Target};

/// Sizes that are measured, in MiB.
const SIZES: [u32; 2] = [64, 1024];
/// How often each of them is: as often as there are ways.
pub const ROUNDS: usize = 6;
/// How often each kind of pod is started.
const PODS: usize = 24;
/// How often the largest container is restored in each way.
const RESTORES: usize = 4;

/// Measures everything, each way of a checkpoint so many times; takes some minutes. The machine
/// should have nothing else to do.
pub async fn run(rounds: usize) -> Result<Report> {
    let options = LabOptions {
        log_level: "warn".into(),
        ..LabOptions::default()
    };
    let program = options.binaries.join("kybernate");
    ensure!(
        program.is_file(),
        "{} is missing: run `make build`",
        program.display()
    );
    let lab: Arc<Lab> = Lab::start(Distro::Forky, options).await?;
    ensure!(
        lab.has(Handler::Kybernate),
        "the shim is missing: run `make build`"
    );
    let measured = measure(&lab, rounds).await;
    let closed = lab.close();
    let report = measured?;
    closed?;
    Ok(report)
}

async fn measure(lab: &Arc<Lab>, rounds: usize) -> Result<Report> {
    let machine = machine::Machine::look(lab)?;
    let pods = pods::measure(lab, PODS).await?;
    let mut sizes = Vec::new();
    for mib in SIZES {
        sizes.push(checkpoints::measure(lab, mib, rounds).await?);
    }
    let restores = restores::measure(lab, SIZES[SIZES.len() - 1], RESTORES).await?;
    Ok(Report {
        machine,
        pods,
        sizes,
        restores,
    })
}

/// Where the results are written: `docs/benchmarks.md` of the workspace.
pub fn document() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/benchmarks.md"
    ))
}

/// The middle of some numbers, or 0 when there are none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median(vec![]).abs() < 1e-9);
        assert!((median(vec![9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
