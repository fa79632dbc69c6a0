//! `kybernate doctor`: what this node can and can't do.

use std::{io::Write, process::ExitCode};

use kybernate_config::Settings;

use super::runtime;
use crate::{
    args::Doctor,
    doctor,
    output::{Output, json},
};

/// Looks at everything and prints what was found. Fails where something does.
pub fn run(args: &Doctor, settings: &Settings) -> anyhow::Result<ExitCode> {
    let report = runtime()?.block_on(doctor::examine(settings, args.repair));
    if args.json {
        json(&report)?;
    } else {
        let mut out = Output::lock();
        out.write_all(report.render().as_bytes())?;
        out.flush()?;
    }
    Ok(if report.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
