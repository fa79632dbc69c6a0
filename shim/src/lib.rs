//! A containerd shim over runc that checkpoints and restores.
//!
//! ```text
//! containerd --exec--> start ---- binds the socket, spawns the daemon, prints the address
//!            --exec--> delete --- cleans up behind a daemon that died
//!            --exec--> -info ---- what the runtime can do
//!            repair ------------- brings back what dead shims have left; a human runs it
//!            guard -------------- does so when a shim dies in the middle of an operation
//!            --ttrpc-> daemon     server -> task -> pod -> container -> process -> runc, io
//!                                                              |-> checkpoint, restore
//!            <-ttrpc-- daemon     events
//! ```
#![deny(unsafe_code)]

pub mod args;
pub mod bootstrap;
pub mod cgroup;
pub mod checkpoint;
pub mod container;
pub mod criu;
pub mod daemon;
pub mod delete;
pub mod events;
pub mod fault;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod gpu;
pub mod info;
pub mod injected;
pub mod io;
pub mod journal;
pub mod log;
pub mod mount;
pub mod options;
pub mod pod;
pub mod process;
pub mod reaper;
pub mod repair;
pub mod restore;
pub mod runc;
pub mod server;
pub mod socket;
pub mod spec;
pub mod start;
pub mod status;
pub mod sys;
pub mod task;
pub mod trigger;
pub mod wishes;
