//! `kybernate-cuda`: the GPU state of processes.

use std::{
    io::{self, stdin, stdout},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};
use kybernate_cuda::{
    args::{Arguments, Command},
    driver::Driver,
    serve,
};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { command, step } = arguments;
    match command {
        Some(Command::Serve { records, place }) => {
            let search = place.search();
            return Ok(serve::run(search, &records, stdin().lock(), stdout())?);
        }
        Some(Command::Revive {
            records,
            place,
            processes,
        }) => {
            serve::revive(place.search(), &records, processes)?;
            println!("{}", serve::REVIVED);
            return Ok(());
        }
        None => {}
    }
    let Some(pid) = step.pid else {
        return Ok(Arguments::command().print_help()?);
    };
    let driver = Driver::load(&step.place.clone().search())?;
    match step.run(&driver, pid)? {
        Some(answer) => Ok(io::Write::write_fmt(
            &mut stdout(),
            format_args!("{answer}\n"),
        )?),
        None => Ok(()),
    }
}
