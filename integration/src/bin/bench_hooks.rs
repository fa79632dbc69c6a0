//! `kybernate-bench-hooks`: what `kybernate-cri-hooks` costs the calls that pass through it.

use std::process::ExitCode;

use kybernate_integration::bench::hooks::{self, Sockets};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let sockets = match &arguments[2.min(arguments.len())..] {
        [] => Ok(None),
        [direct, hooked] => Ok(Some(Sockets {
            direct: direct.into(),
            hooked: hooked.into(),
        })),
        _ => Err(()),
    };
    let (Ok(rounds), Ok(soak), Ok(sockets)) = (number(0, 5), number(1, 0), sockets) else {
        eprintln!(
            "usage: kybernate-bench-hooks [ROUNDS [CALLS OF THE SOAK [CONTAINERD_SOCKET HOOK_SOCKET]]]"
        );
        return ExitCode::FAILURE;
    };
    match hooks::run(rounds, soak, sockets) {
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
