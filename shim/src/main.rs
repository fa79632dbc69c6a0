//! `containerd-shim-kybernate-v1`, run by containerd; see the library.

use std::{error::Error, io, io::Write, process::ExitCode};

use kybernate_shim::{
    args::{Action, Args},
    daemon, delete, info,
    journal::guardian,
    mount::idmap,
    repair, start,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // stderr may be closed; there is nobody else to tell.
            let _ = write!(
                io::stderr(),
                "{}: {error}",
                kybernate_config::names::SHIM_BINARY
            );
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    match std::env::args_os().nth(1) {
        Some(arg) if arg == idmap::HOLD => return Ok(idmap::hold()?),
        Some(arg) if arg == guardian::GUARD => {
            return Ok(guardian::run(std::env::args_os().skip(2))?);
        }
        _ => {}
    }
    let args = Args::parse(
        std::env::args_os()
            .skip(1)
            .map(|a| a.to_string_lossy().into_owned()),
    )?;
    if args.version {
        let name = kybernate_config::names::SHIM_BINARY;
        writeln!(
            io::stdout(),
            "{name}:\n  Version: {}",
            env!("CARGO_PKG_VERSION")
        )?;
    } else if args.info {
        info::run()?;
    } else {
        match args.action {
            Action::Start => start::run(&args)?,
            Action::Delete => delete::run(&args)?,
            Action::Repair => repair::run()?,
            Action::Serve => daemon::serve(&args)?,
        }
    }
    Ok(())
}
