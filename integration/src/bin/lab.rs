//! `make lab`: a shell in a lab, for looking around. `kybernate-lab [forky|trixie]`.
#![forbid(unsafe_code)]

use std::process::{ExitCode, Stdio};

use anyhow::{Result, bail};
use kybernate_integration::{Distro, Lab, LabOptions, lab};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    match shell() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kybernate-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn shell() -> Result<()> {
    let distro = match std::env::args().nth(1).as_deref() {
        None | Some("forky") => Distro::Forky,
        Some("trixie") => Distro::Trixie,
        Some(other) => bail!("no such lab: {other} (forky or trixie)"),
    };
    if let Some(reason) = lab::missing() {
        bail!(reason);
    }
    let lab = Runtime::new()?.block_on(Lab::start(distro, LabOptions::default()))?;
    print!("{}", lab.versions());
    println!("The images: kybernate.test/tools:1. Leave with ^D; the lab goes with you.");
    lab.command("bash").stdin(Stdio::inherit()).status()?;
    lab.close()
}
