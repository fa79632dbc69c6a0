//! Checkpoints of running containers: what they leave alone, what they write, how they fail.

mod concurrent;
mod containerd;
mod interrupted;
mod leave_running;
mod readers;
mod refused;

use std::{process::ExitCode, time::Duration};

use kybernate_integration::{Distro, Handler, Suite, checkpoint::can_checkpoint};

/// One registration of ours is enough for what does not depend on it.
const KYBERNATE: &[Handler] = &[Handler::Kybernate];
/// Where CRI `CheckpointContainer` exists.
const FORKY: &[Distro] = &[Distro::Forky];
/// For cases with a gibibyte of memory.
const LONG: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    Suite::new("checkpoint")
        .case("container_goes_on", leave_running::goes_on)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("container_ends_with_exit", leave_running::ends_with_exit)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("paused_stays_paused", leave_running::paused_stays_paused)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("by_pod_and_name", leave_running::by_pod_and_name)
        .handlers(KYBERNATE)
        .case("answers_during_a_dump", concurrent::answers_during_a_dump)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case(
            "containers_of_a_pod_at_once",
            concurrent::containers_of_a_pod_at_once,
        )
        .handlers(KYBERNATE)
        .case(
            "one_container_twice_at_once",
            concurrent::one_container_twice_at_once,
        )
        .handlers(KYBERNATE)
        .case("readers_of_others", readers::readers_of_others)
        .handlers(KYBERNATE)
        .case("readers_of_ours", readers::readers_of_ours)
        .handlers(KYBERNATE)
        .case("levels_and_buffers", readers::levels_and_buffers)
        .handlers(KYBERNATE)
        .limit(LONG)
        .case(
            "plain_images_restore_with_runc",
            containerd::plain_images_restore_with_runc,
        )
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case(
            "plain_images_where_archives_are_encrypted",
            containerd::plain_images_where_archives_are_encrypted,
        )
        .handlers(KYBERNATE)
        .alone()
        .case("cri_checkpoint", containerd::cri_checkpoint)
        .distros(FORKY)
        .case(
            "cri_checkpoint_is_not_in_1_7",
            containerd::cri_checkpoint_is_not_in_1_7,
        )
        .distros(&[Distro::Trixie])
        .handlers(KYBERNATE)
        .case("container_without_cri", containerd::container_without_cri)
        .handlers(&[Handler::KybernateTyped])
        .when(can_checkpoint)
        .case(
            "deadline_of_the_command",
            interrupted::deadline_of_the_command,
        )
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("deadline_of_the_call", interrupted::deadline_of_the_call)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("client_killed", interrupted::client_killed)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("client_lets_go", interrupted::client_lets_go)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("criu_killed", interrupted::criu_killed)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("container_killed", interrupted::container_killed)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case("containerd_restarted", interrupted::containerd_restarted)
        .handlers(KYBERNATE)
        .limit(LONG)
        .alone()
        .case(
            "deadline_of_a_plain_dump",
            interrupted::deadline_of_a_plain_dump,
        )
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .limit(LONG)
        .alone()
        .case("not_running_or_unknown", refused::not_running_or_unknown)
        .handlers(&Handler::OURS)
        .when(can_checkpoint)
        .case("stock_container", refused::stock_container)
        .handlers(&[Handler::Runc])
        .case("disk_full", refused::disk_full)
        .handlers(KYBERNATE)
        .alone()
        .case("criu_missing", refused::criu_missing)
        .handlers(KYBERNATE)
        .alone()
        .case("own_type_on_1_7", refused::own_type_on_1_7)
        .handlers(&[Handler::KybernateTyped])
        .distros(&[Distro::Trixie])
        .case("output_exists", refused::output_exists)
        .handlers(KYBERNATE)
        .run()
}
