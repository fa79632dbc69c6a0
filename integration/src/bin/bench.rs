//! `make bench`: measures, prints the targets, writes `docs/benchmarks.md`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use kybernate_integration::bench;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let report = bench::run().await?;
    std::fs::write(bench::document(), report.markdown())?;
    print!("{}", report.text());
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
