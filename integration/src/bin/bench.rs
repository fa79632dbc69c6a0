//! `make bench`: measures, prints the targets, writes `docs/benchmarks.md`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

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
    let report = bench::run().await?;
    std::fs::write(bench::document(), report.markdown())?;
    print!("{}", report.text());
    Ok(report)
}
