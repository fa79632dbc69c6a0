//! GPU state of processes, through the checkpoint API of the CUDA driver.
//!
//! ```text
//! shim ── JSON lines ── kybernate-cuda serve ──┬─ libcuda.so.1        lock, checkpoint, restore, unlock
//!                        (one per operation)   ├─ libnvidia-ml.so.1   which GPUs, who uses how much
//!                                              └─ kernel settings     put back whatever happens
//! human ── flags of NVIDIA's cuda-checkpoint ──┘
//! ```
//!
//! The driver's library lives in a process of its own: it maps much memory, and a call of it
//! can hang. Its processes are named by their pids as the caller of this program sees them.
//!
//! State machine of a process (`cuda.h` of CUDA 13.0, `CUprocessState`):
//!
//! ```text
//! running ─lock─> locked ─checkpoint─> checkpointed ─restore─> locked ─unlock─> running
//! ```

#![deny(unsafe_code)]

pub mod args;
pub mod driver;
pub mod library;
pub mod process;
pub mod protocol;
pub mod serve;

mod lever;
mod nvml;
mod session;
