//! Faults at every step of checkpoint and restore: what was promised holds after each.
//!
//! Every run of the tests takes a few cells of the matrix; `KYBERNATE_FAULTS=all` takes all of
//! them (`make faults`), and a table is printed. The faults are in debug builds alone.

mod checkpoint;
mod fault;
mod hook;
mod machine;
mod plain;
mod restore;
mod resume;
mod shims;
mod table;
mod world;

use std::{process::ExitCode, time::Duration};

use kybernate_integration::{Distro, Handler, Suite};

use self::world::Has;

const KYBERNATE: &[Handler] = &[Handler::Kybernate];
/// Where a few cells are enough.
const FORKY: &[Distro] = &[Distro::Forky];
/// For one of several long rows of cells.
const LONG: Duration = Duration::from_secs(900);

/// Whether the whole matrix is wanted.
fn all() -> bool {
    std::env::var("KYBERNATE_FAULTS").is_ok_and(|which| which == "all")
}

fn main() -> ExitCode {
    let distros = if all() { &Distro::ALL[..] } else { FORKY };
    let mut suite = Suite::new("faults")
        .case("released_programs_have_no_faults", shims::released)
        .handlers(KYBERNATE)
        .distros(FORKY)
        .case("doctor_repairs", shims::doctor_repairs)
        .handlers(KYBERNATE)
        .distros(distros)
        .alone()
        .case("late_freeze", shims::late_freeze)
        .handlers(KYBERNATE)
        .distros(distros)
        .alone()
        .case("resume_deadline", |cx| resume::deadline(cx, Has::Cpu))
        .handlers(KYBERNATE)
        .distros(distros)
        .alone()
        .case("resume_deadline_gpu", |cx| resume::deadline(cx, Has::Gpu))
        .handlers(KYBERNATE)
        .distros(distros)
        .alone()
        .case("resume_no_deadline", resume::no_deadline)
        .handlers(KYBERNATE)
        .distros(distros)
        .alone()
        .case("resume_in_time", resume::in_time)
        .handlers(KYBERNATE)
        .distros(distros)
        .alone()
        .case("resume_containerd_died", |cx| {
            resume::containerd_died(cx, Has::Gpu)
        })
        .handlers(KYBERNATE)
        .distros(distros)
        .alone();
    suite = suite
        .case("plain_cpu", |cx| plain::faults(cx, all()))
        .handlers(KYBERNATE)
        .distros(distros)
        .limit(LONG)
        .alone()
        .case("machine", |cx| machine::faults(cx, all()))
        .handlers(KYBERNATE)
        .distros(distros)
        .limit(LONG)
        .alone()
        .case("no_room_to_restore", machine::no_room_to_restore)
        .handlers(KYBERNATE)
        .distros(distros)
        .alone();
    suite = rows(
        suite,
        distros,
        Has::Cpu,
        [
            "checkpoint_cpu",
            "shim_killed_cpu",
            "hook_killed_cpu",
            "restore_cpu",
        ],
    );
    suite = rows(
        suite,
        distros,
        Has::Gpu,
        [
            "checkpoint_gpu",
            "shim_killed_gpu",
            "hook_killed_gpu",
            "restore_gpu",
        ],
    );
    let code = suite.run();
    table::print();
    code
}

/// The rows of the matrix for one kind of workload.
fn rows(suite: Suite, distros: &'static [Distro], has: Has, names: [&'static str; 4]) -> Suite {
    let [survived, killed, hook, restore] = names;
    suite
        .case(survived, move |cx| {
            checkpoint::survived_faults(cx, has, all())
        })
        .handlers(KYBERNATE)
        .distros(distros)
        .limit(LONG)
        .alone()
        .case(killed, move |cx| checkpoint::shim_killed(cx, has, all()))
        .handlers(KYBERNATE)
        .distros(distros)
        .limit(LONG)
        .alone()
        .case(hook, move |cx| hook::killed(cx, has, all()))
        .handlers(KYBERNATE)
        .distros(distros)
        .limit(LONG)
        .alone()
        .case(restore, move |cx| restore::faults(cx, has, all()))
        .handlers(KYBERNATE)
        .distros(distros)
        .limit(LONG)
        .alone()
}
