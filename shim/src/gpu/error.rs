//! Why GPU state could not be saved or brought back.

use std::{io, path::PathBuf};

use kybernate_cuda::protocol::{Failure, FailureKind};

use crate::status::Class;

/// `CUDA_ERROR_NOT_SUPPORTED`.
const NOT_SUPPORTED: u32 = kybernate_cuda::driver::NOT_SUPPORTED;

/// Why GPU state could not be saved or brought back.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The helper could not be started.
    #[error(
        "cannot run {program} for the container's GPU state: {source}; install kybernate-cuda beside the shim, or set gpu.helper"
    )]
    Helper {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The helper ended, or said something else than was asked.
    #[error("kybernate-cuda ended while it was to {step}{said}")]
    Ended {
        /// What it was asked for.
        step: &'static str,
        /// What it wrote to its log, with a colon before it.
        said: String,
    },
    /// It did not answer in time.
    #[error(
        "{step} of process {pid} took more than {seconds} s; is the process stopped, or does a GPU call never end?"
    )]
    Slow {
        /// What it was asked for.
        step: &'static str,
        /// For whom.
        pid: u32,
        /// The limit.
        seconds: u64,
    },
    /// The driver's library can't be used.
    #[error("the container uses a GPU, and its state can't be saved: {0}")]
    Library(String),
    /// The driver refused.
    #[error("cannot {step} the GPU state of process {pid} ({name}): {text}{hint}")]
    Driver {
        /// What was tried.
        step: &'static str,
        /// For whom.
        pid: u32,
        /// Its name.
        name: String,
        /// What the driver said.
        text: String,
        /// What usually causes it, and what to do.
        hint: &'static str,
    },
    /// A kernel setting.
    #[error("{0}")]
    Host(String),
    /// A process holds a GPU that the driver does not know of, or does not let go of.
    #[error(
        "process {pid} ({name}) holds {device}, and the driver says that its CUDA state is {state}; its GPU state would be missing from the archive. {remedy}"
    )]
    Holder {
        /// Who.
        pid: u32,
        /// Its name.
        name: String,
        /// The device file.
        device: String,
        /// What the driver says.
        state: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Somebody else has locked it.
    #[error(
        "the CUDA state of process {pid} ({name}) is {state} already; end the checkpoint that somebody else has begun (cuda-checkpoint --toggle)"
    )]
    Taken {
        /// Who.
        pid: u32,
        /// Its name.
        name: String,
        /// The state.
        state: &'static str,
    },
    /// Something that can't work, found before anything was touched.
    #[error("{what}; {remedy}")]
    Unsupported {
        /// What was found.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Too little memory for the copy of the device memory.
    #[error(
        "{needed} bytes of device memory must fit into host memory, and {place} has {free} bytes to spare; {remedy}"
    )]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Where they are missing.
        place: String,
        /// Bytes there.
        free: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// Processes that could not be brought back.
    #[error("{first}; and the GPU state could not be brought back: {left}")]
    Lost {
        /// What went wrong first.
        first: String,
        /// Which processes are in which state, and why.
        left: String,
    },
    /// The manifest and the restored processes differ.
    #[error(
        "the archive has GPU state of the processes {expected}, and after the restore the driver knows it of {found}"
    )]
    Missing {
        /// Pids in the container.
        expected: String,
        /// Pids in the container.
        found: String,
    },
}

impl GpuError {
    /// A failure that the helper reported.
    pub(super) fn of(step: &'static str, pid: u32, failure: Failure) -> Self {
        match failure.kind {
            FailureKind::Library => Self::Library(failure.text),
            FailureKind::Host | FailureKind::Request => Self::Host(failure.text),
            FailureKind::Driver => Self::Driver {
                step,
                pid,
                name: super::evidence::name(pid),
                hint: hint(step, failure.code),
                text: failure.text,
            },
        }
    }

    /// What kind of failure it is for the caller.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Library(_)
            | Self::Holder { .. }
            | Self::Taken { .. }
            | Self::Unsupported { .. } => Class::FailedPrecondition,
            Self::Memory { .. } => Class::ResourceExhausted,
            Self::Driver { .. } if self.is_refusal() => Class::FailedPrecondition,
            _ => Class::Unknown,
        }
    }

    fn is_refusal(&self) -> bool {
        matches!(self, Self::Driver { hint, .. } if !hint.is_empty())
    }
}

/// What usually makes the driver say this.
fn hint(step: &str, code: Option<u32>) -> &'static str {
    match (step, code) {
        ("checkpoint", Some(NOT_SUPPORTED)) => {
            "; the driver can't save what this process uses: managed memory (cudaMallocManaged), \
             memory shared with other processes or GPUs (CUDA IPC, NCCL peer mappings; try \
             NCCL_P2P_DISABLE=1), MPS or MIG. The workload runs on"
        }
        ("lock", Some(kybernate_cuda::driver::NOT_READY)) => {
            "; its GPU work did not end in time: raise gpu.lock_timeout_s, or let the workload \
             pause before the checkpoint"
        }
        _ => "",
    }
}
