//! `kybernate-bench-hooks`: what `kybernate-cri-hooks` costs the calls that pass through it.

use std::process::ExitCode;

use kybernate_integration::bench::hooks;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse());
    let (Ok(rounds), Ok(soak)) = (
        numbers.next().unwrap_or(Ok(5)),
        numbers.next().unwrap_or(Ok(0)),
    ) else {
        eprintln!("usage: kybernate-bench-hooks [ROUNDS [CALLS OF THE SOAK]]");
        return ExitCode::FAILURE;
    };
    match hooks::run(rounds, soak) {
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
