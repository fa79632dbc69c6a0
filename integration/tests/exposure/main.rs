//! What somebody on the node who is not root gets of a checkpoint: nothing.

mod files;
mod logs;
mod page_server;
mod scene;

use std::process::ExitCode;

use kybernate_integration::{Handler, Suite};

const KYBERNATE: &[Handler] = &[Handler::Kybernate];

fn main() -> ExitCode {
    Suite::new("exposure")
        .debug_logs()
        .case("others_see_nothing", files::others_see_nothing)
        .handlers(KYBERNATE)
        .alone()
        .case("plain_images_are_roots", files::plain_images_are_roots)
        .handlers(KYBERNATE)
        .alone()
        .case(
            "only_criu_reaches_the_page_server",
            page_server::only_criu_reaches_it,
        )
        .handlers(KYBERNATE)
        .alone()
        .case("logs_hold_no_secret", logs::hold_no_secret)
        .handlers(KYBERNATE)
        .alone()
        .run()
}
