//! The lab: a private containerd on real parts, and what the suites share.
//!
//! ```text
//! Suite ── runs cases × Distro × Handler, prints SKIPPED, checks for leaks
//!  └ Case ── cx.pod().start() → Pod ── pod.container("app").start() → Container
//!     └ Lab ── one running lab: containerd in namespaces and cgroups of its own
//!        └ roots, images ── what labs are made of, built once under `.lab/`
//! ```
//!
//! A suite is a test target with `harness = false`:
//!
//! ```no_run
//! use kybernate_integration::{Case, Suite};
//!
//! async fn says_hello(cx: Case) -> anyhow::Result<()> {
//!     let pod = cx.pod().start().await?;
//!     let app = pod.container("app").shell("echo hello").start().await?;
//!     anyhow::ensure!(app.wait_exit().await?.exit_code == 0);
//!     anyhow::ensure!(app.stdout()? == "hello\n");
//!     Ok(()) // what the case has made is removed by the suite
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     Suite::new("greeting").case("says_hello", says_hello).run()
//! }
//! ```
#![forbid(unsafe_code)]

pub mod bench;
pub mod checkpoint;
pub mod cri;
pub mod demo;
pub mod encryption;
pub mod events;
pub mod gpu;
pub mod hook;
pub mod image;
pub mod lab;
pub mod node;
pub mod plugin;
pub mod suite;
pub mod tasks;
mod time;
pub mod workload;

pub use cri::{Container, LogLine, Pod};
pub use lab::{Distro, Handler, Lab, LabOptions};
pub use suite::{Case, Suite, beyond_this_machine, skip};
pub use time::{eventually, within};
