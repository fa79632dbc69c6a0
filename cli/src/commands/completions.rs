//! `kybernate completions`.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Args, output::Output};

/// Prints the script for `shell`.
pub fn run(shell: Shell) -> anyhow::Result<()> {
    // The generator panics where it can't write; a vector always can.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "kybernate", &mut script);
    let mut out = Output::lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(())
}
