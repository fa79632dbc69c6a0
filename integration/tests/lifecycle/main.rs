//! Lifecycle conformance: what containerd and kubelet expect of a runtime handler.
//!
//! Every case runs against the stock shim too. A case that fails there is wrong, or says
//! something about containerd; a case that fails only on our handlers is a fault of our shim.

mod events;
mod exec;
mod load;
mod logs;
mod mounts;
mod namespaces;
mod pods;
mod recovery;
mod resources;
mod security;
mod signals;
mod tasks;

use std::process::ExitCode;

use kybernate_integration::Suite;

fn main() -> ExitCode {
    let suite = Suite::new("lifecycle");
    let suite = pods::add(suite);
    let suite = logs::add(suite);
    let suite = exec::add(suite);
    let suite = tasks::add(suite);
    let suite = events::add(suite);
    let suite = namespaces::add(suite);
    let suite = security::add(suite);
    let suite = mounts::add(suite);
    let suite = resources::add(suite);
    let suite = signals::add(suite);
    let suite = load::add(suite);
    recovery::add(suite).run()
}
