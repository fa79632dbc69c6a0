//! `kybernate-cri-hooks` with real runtimes: what passes through it, the checkpoints that it
//! takes, and what happens when it or containerd goes away.

mod passing;
mod pulling;
mod restarts;
mod taking;

use std::{process::ExitCode, time::Duration};

use kybernate_integration::{Distro, Handler, Suite};

/// The hook tells pods apart by the handler; how the shim is registered makes no difference.
const CLASS: &[Handler] = &[Handler::Kybernate];
/// A class pod and one of another handler.
const BOTH: &[Handler] = &[Handler::Kybernate, Handler::Runc];
/// For cases with much memory or many containers.
const LONG: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    // One hook at a time in a lab, so every case is alone in it.
    Suite::new("hooks")
        .case("whole_life_of_a_pod", passing::whole_life_of_a_pod)
        .handlers(BOTH)
        .alone()
        .case("streaming_addresses", passing::streaming_addresses)
        .handlers(CLASS)
        .alone()
        .case("stream_of_events", passing::stream_of_events)
        .handlers(CLASS)
        .alone()
        .case("a_go_client", passing::a_go_client)
        .handlers(CLASS)
        .alone()
        .case("two_hundred_containers", passing::two_hundred_containers)
        .handlers(CLASS)
        .limit(LONG)
        .alone()
        .case("from_a_registry", pulling::from_a_registry)
        .handlers(CLASS)
        .alone()
        .case("rude_clients", passing::rude_clients)
        .handlers(CLASS)
        .alone()
        .case("thousands_of_calls", passing::thousands_of_calls)
        .handlers(CLASS)
        .alone()
        .case("archive_and_back", taking::archive_and_back)
        .handlers(CLASS)
        .alone()
        .case(
            "another_handlers_container",
            taking::another_handlers_container,
        )
        .handlers(&[Handler::Runc])
        .alone()
        .case("what_it_is_told", taking::what_it_is_told)
        .handlers(CLASS)
        .alone()
        .case("own_type_on_1_7", taking::own_type_on_1_7)
        .handlers(&[Handler::KybernateTyped])
        .distros(&[Distro::Trixie])
        .alone()
        .case("twice_at_once", taking::twice_at_once)
        .handlers(CLASS)
        .alone()
        .case("during_exec", taking::during_exec)
        .handlers(CLASS)
        .alone()
        .case("during_deletion", taking::during_deletion)
        .handlers(CLASS)
        .alone()
        .case("old_ones_make_way", taking::old_ones_make_way)
        .handlers(CLASS)
        .alone()
        .case("encrypted", taking::encrypted)
        .handlers(CLASS)
        .alone()
        .case("no_room", taking::no_room)
        .handlers(CLASS)
        .alone()
        .case("disk_full", taking::disk_full)
        .handlers(CLASS)
        .alone()
        .case(
            "one_second_for_a_gibibyte",
            taking::one_second_for_a_gibibyte,
        )
        .handlers(CLASS)
        .limit(LONG)
        .alone()
        .case("nobody_waits_any_more", taking::nobody_waits_any_more)
        .handlers(CLASS)
        .limit(LONG)
        .alone()
        .case("containerd_killed", restarts::containerd_killed)
        .handlers(CLASS)
        .alone()
        .case("taken_over", restarts::taken_over)
        .handlers(CLASS)
        .alone()
        .case(
            "killed_with_a_socket_unit",
            restarts::killed_with_a_socket_unit,
        )
        .handlers(CLASS)
        .alone()
        .run()
}
