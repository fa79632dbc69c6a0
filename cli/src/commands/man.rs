//! `kybernate man`.

use std::{io::Write, path::Path};

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;

use crate::{args::Args, output::Output};

/// Writes a page per command to `directory`, or the main page to standard output.
pub fn run(directory: Option<&Path>) -> anyhow::Result<()> {
    if let Some(directory) = directory {
        return clap_mangen::generate_to(Args::command(), directory).with_context(|| {
            format!(
                "cannot write manual pages to {}; it must be a directory",
                directory.display()
            )
        });
    }
    let mut out = Output::lock();
    Man::new(Args::command()).render(&mut out)?;
    out.flush()?;
    Ok(())
}
