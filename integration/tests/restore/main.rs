//! Restores from an archive, by the annotation on an ordinary CRI container.

mod encrypted;
mod hostile;
mod injected;
mod lives_on;
mod refused;
mod rounds;
mod signed;

use std::{process::ExitCode, time::Duration};

use kybernate_integration::{Handler, Suite, checkpoint::can_checkpoint};

/// One registration of ours is enough for what does not depend on it.
const KYBERNATE: &[Handler] = &[Handler::Kybernate];
/// For cases with much memory.
const LONG: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    Suite::new("restore")
        .case("same_pod", rounds::same_pod)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("new_pod", rounds::new_pod)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("three_rounds", rounds::three_rounds)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .limit(LONG)
        .case("one_archive_twice", rounds::one_archive_twice)
        .handlers(KYBERNATE)
        .case("half_a_gibibyte", rounds::half_a_gibibyte)
        .handlers(KYBERNATE)
        .limit(LONG)
        .case("by_the_command", rounds::by_the_command)
        .handlers(KYBERNATE)
        .case("is_a_container_like_any", lives_on::is_a_container_like_any)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("exit_code_is_reported", lives_on::exit_code_is_reported)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("survives_containerd", lives_on::survives_containerd)
        .handlers(KYBERNATE)
        .alone()
        .case("its_pod_rules", lives_on::its_pod_rules)
        .handlers(KYBERNATE)
        .case("damaged_archive", refused::damaged_archive)
        .handlers(KYBERNATE)
        .alone()
        .case("foreign_archive", refused::foreign_archive)
        .handlers(KYBERNATE)
        .alone()
        .case("no_archive", refused::no_archive)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .alone()
        .case("criu_fails", refused::criu_fails)
        .handlers(KYBERNATE)
        .alone()
        .case("mounts_of_hooks", injected::mounts_of_hooks)
        .handlers(&[Handler::KybernateHooked])
        .alone()
        .limit(LONG)
        .case(
            "cve_2026_53492_records_grant_nothing",
            hostile::cve_2026_53492_records_grant_nothing,
        )
        .handlers(KYBERNATE)
        .case(
            "cve_2026_50195_images_stay",
            hostile::cve_2026_50195_images_stay,
        )
        .handlers(KYBERNATE)
        .case(
            "cve_2026_53489_files_of_the_host_stay",
            hostile::cve_2026_53489_files_of_the_host_stay,
        )
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("bombs_meet_their_bounds", hostile::bombs_meet_their_bounds)
        .handlers(KYBERNATE)
        .alone()
        .case("only_what_is_signed", signed::only_what_is_signed)
        .handlers(KYBERNATE)
        .alone()
        .case("encrypted", encrypted::encrypted)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("recipients_and_places", encrypted::recipients_and_places)
        .handlers(KYBERNATE)
        .alone()
        .run()
}
