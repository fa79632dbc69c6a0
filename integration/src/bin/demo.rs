//! `make demo`: a container is checkpointed, deleted, and goes on where it was.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use kybernate_integration::demo;

fn main() -> ExitCode {
    match demo::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo did not get through: {error:#}");
            ExitCode::FAILURE
        }
    }
}
