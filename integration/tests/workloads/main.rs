//! Programs of many kinds, from a pod into an archive and back into another pod.

mod programs;
mod servers;

use std::{process::ExitCode, time::Duration};

use kybernate_integration::{Handler, Suite, checkpoint::can_checkpoint, image::catalog};

/// The stock registration runs everything, the other one what tells them apart.
const KYBERNATE: &[Handler] = &[Handler::Kybernate];
/// Servers start slowly on a busy machine.
const LONG: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    Suite::new("workloads")
        .image(catalog::APPS)
        .case("process_tree", programs::process_tree)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("threads", programs::threads)
        .handlers(KYBERNATE)
        .case("filesystem", programs::filesystem)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("python", programs::python)
        .handlers(KYBERNATE)
        .case("shared_memory_files", programs::shared_memory_files)
        .handlers(KYBERNATE)
        .case("terminal", programs::terminal)
        .handlers(KYBERNATE)
        .case("ordinary_user", programs::ordinary_user)
        .handlers(KYBERNATE)
        .case("read_only_root", programs::read_only_root)
        .handlers(KYBERNATE)
        .case("connections", servers::connections)
        .handlers(KYBERNATE)
        .case("redis", servers::redis)
        .handlers(KYBERNATE)
        .limit(LONG)
        .case("nginx", servers::nginx)
        .handlers(KYBERNATE)
        .limit(LONG)
        .run()
}
