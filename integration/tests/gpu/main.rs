//! GPU state, with the double of a driver: what is saved, what is refused, what is undone.
//!
//! The double has the driver's state machine and no GPU. The suite shows that the shim takes the
//! right steps in the right order and undoes them; `gpu/run.sh` shows it on real GPUs.

mod back;
mod refused;
mod undone;

use std::{process::ExitCode, time::Duration};

use kybernate_integration::{Distro, Handler, Suite};

const KYBERNATE: &[Handler] = &[Handler::Kybernate];
/// Where CRI `CheckpointContainer` exists.
const FORKY: &[Distro] = &[Distro::Forky];
/// For cases that go through many faults.
const LONG: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    Suite::new("gpu")
        .case("goes_on", back::goes_on)
        .handlers(KYBERNATE)
        .alone()
        .case("three_rounds", back::three_rounds)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("several_processes", back::several_processes)
        .handlers(KYBERNATE)
        .alone()
        .case("paused_stays_paused", back::paused_stays_paused)
        .handlers(KYBERNATE)
        .alone()
        .case("paused_without_gpu_state", back::paused_without_gpu_state)
        .handlers(KYBERNATE)
        .alone()
        .case("cri_checkpoint", back::cri_checkpoint)
        .handlers(KYBERNATE)
        .distros(FORKY)
        .alone()
        .case("what_cannot_work", refused::what_cannot_work)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("no_library", refused::no_library)
        .handlers(KYBERNATE)
        .alone()
        .case("other_gpu_at_restore", refused::other_gpu_at_restore)
        .handlers(KYBERNATE)
        .alone()
        .case("failed_restore", refused::failed_restore)
        .handlers(KYBERNATE)
        .alone()
        .case("helper_killed", undone::helper_killed)
        .handlers(KYBERNATE)
        .alone()
        .case("deadline_while_it_hangs", undone::deadline_while_it_hangs)
        .handlers(KYBERNATE)
        .alone()
        .case("failed_dump", undone::failed_dump)
        .handlers(KYBERNATE)
        .alone()
        .run()
}
