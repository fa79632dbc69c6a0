//! The NRI plugin with real runtimes: what it changes, what it leaves alone, and what happens
//! when it or containerd is away.

mod absent;
mod plugin;
mod prepared;
mod trigger;
mod wishes;

use std::{process::ExitCode, time::Duration};

use kybernate_integration::{Handler, Suite, image::catalog};

/// The plugin tells pods apart by the handler; how the shim is registered makes no difference.
const CLASS: &[Handler] = &[Handler::Kybernate];

fn main() -> ExitCode {
    // One plugin at a time in a lab, so every case is alone in it.
    Suite::new("nri")
        .image(catalog::APPS)
        .case("class_and_foreign_specs", prepared::class_and_foreign_specs)
        .handlers(CLASS)
        .alone()
        .case("restored_by_annotation", prepared::restored_by_annotation)
        .handlers(CLASS)
        .alone()
        .case(
            "wrong_annotations_refuse",
            prepared::wrong_annotations_refuse,
        )
        .handlers(CLASS)
        .alone()
        .case("launched_by_containerd", prepared::launched_by_containerd)
        .handlers(CLASS)
        .alone()
        .case("gpu_specs", prepared::gpu_specs)
        .handlers(CLASS)
        .alone()
        .case("granted_wishes_are_done", wishes::granted_wishes_are_done)
        .handlers(CLASS)
        .alone()
        .case("others_refuse", wishes::others_refuse)
        .handlers(CLASS)
        .alone()
        .case(
            "passed_on_annotations_refuse",
            wishes::passed_on_annotations_refuse,
        )
        .handlers(CLASS)
        .alone()
        .case("unprepared_is_told", wishes::unprepared_is_told)
        .handlers(CLASS)
        .alone()
        .case("trigger", trigger::asks_and_comes_back)
        .handlers(CLASS)
        .alone()
        .case("trigger_never_ready", trigger::never_ready)
        .handlers(CLASS)
        .alone()
        .case("plugin_killed", absent::plugin_killed)
        .handlers(CLASS)
        .alone()
        .case("plugin_hung", absent::plugin_hung)
        .handlers(CLASS)
        .alone()
        .case("containerd_restarted", absent::containerd_restarted)
        .handlers(CLASS)
        .alone()
        .case("killed_every_second", absent::killed_every_second)
        .handlers(CLASS)
        .alone()
        .limit(Duration::from_secs(900))
        .run()
}
