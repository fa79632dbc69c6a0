//! `make bench`: measures, prints the targets, writes `docs/benchmarks.md`. `kybernate-bench [ROUNDS]`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context as _;
use kybernate_integration::bench::{self, Report};

#[tokio::main]
async fn main() -> ExitCode {
    match measure().await {
        Ok(report) if report.passed() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kybernate-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> anyhow::Result<Report> {
    let rounds = match std::env::args().nth(1) {
        Some(rounds) => rounds.parse().context("ROUNDS is no number")?,
        None => bench::ROUNDS,
    };
    let report = bench::run(rounds).await?;
    std::fs::write(bench::document(), report.markdown())?;
    print!("{}", report.text());
    Ok(report)
}
