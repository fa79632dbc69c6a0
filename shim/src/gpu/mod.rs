//! GPU state: into host memory before a dump, back onto the GPU after it and after a restore.
//!
//! ```text
//! checkpoint  evidence ─> states of all processes ─> preflight ─> lock all ─> checkpoint all
//!             ─> all checkpointed, no GPU device open any more ─> (freeze, dump, thaw)
//!             ─> restore all ─> unlock all ─> all running
//! restore     (runc restore) ─> device nodes ─> restore all ─> unlock all ─> all running ─> (started)
//! ```
//!
//! The driver is asked about every process of a container that can see a GPU. A process that
//! holds a GPU and is not known to the driver, or does not let go of it, fails the checkpoint by
//! name: its state would be missing from the archive.
//!
//! The driver needs threads that run: frozen processes neither lock nor tell their state.

mod error;
mod evidence;
mod helper;
mod huge;
mod nodes;
mod place;
mod preflight;
mod suspend;
mod wake;

pub use self::{
    error::GpuError,
    evidence::sees_gpu,
    suspend::{Suspended, suspend},
    wake::Wake,
};
