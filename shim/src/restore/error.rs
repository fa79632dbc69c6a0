//! Why a restore failed. Nothing of it stays, and the archive is as it was.

use std::{io, path::PathBuf};

use kybernate_age::KeyFileError;
use kybernate_config::settings::SettingsError;
use kybernate_oci::{archive::ReadError, rootfs::ApplyError, signature::SignatureError};

use crate::{
    gpu::GpuError, injected::RehearsalError, runc::RuncError, spec::SpecError, status::Class,
};

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The annotation names no file.
    #[error("annotation kybernate.io/restore-from is {}; it must be the absolute path of an archive on this node", value.display())]
    Annotation {
        /// What it says.
        value: PathBuf,
    },
    /// The settings are not understood.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The spec can't be read.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What the node's runtime makes of the container.
    #[error(transparent)]
    Rehearsal(#[from] RehearsalError),
    /// runc or CRIU failed.
    #[error("cannot restore the processes of container {id}: {runc}; CRIU: {criu}")]
    Processes {
        /// The container.
        id: String,
        /// What runc said.
        runc: RuncError,
        /// What CRIU's log says.
        criu: String,
    },
    /// The GPU state.
    #[error("cannot restore the GPU state of the archive: {0}")]
    Gpu(#[from] GpuError),
    /// A thread of the restore ended in a panic: a bug.
    #[error("internal error during a restore: {0}")]
    Panic(#[source] tokio::task::JoinError),
    /// The archive is missing, damaged or none.
    #[error("cannot restore from {path}: {source}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// Nobody who is trusted has signed it.
    #[error("restore.require_signature is set, and {path} can't be trusted: {source}")]
    Signature {
        /// The archive.
        path: PathBuf,
        /// Why not.
        source: SignatureError,
    },
    /// Plain images have no signature.
    #[error(
        "restore.require_signature is set, and the plain CRIU images in {path} can't be signed; \
         restore an archive"
    )]
    Unsigned {
        /// The images.
        path: PathBuf,
    },
    /// Taken on another architecture.
    #[error(
        "the archive was taken on {archive}, this node is {here}; restore it on a node of the same architecture"
    )]
    Arch {
        /// The archive's.
        archive: String,
        /// This node's.
        here: String,
    },
    /// Instructions are missing.
    #[error(
        "this node's CPU lacks {missing}, which the archived processes may use; restore on a node with the same CPU features"
    )]
    Cpu {
        /// Which.
        missing: String,
    },
    /// CRIU is too old for the images.
    #[error(
        "the archive was taken with CRIU {archive}, this node has CRIU {here}, which misreads newer images; update CRIU"
    )]
    Criu {
        /// The archive's.
        archive: String,
        /// This node's.
        here: String,
    },
    /// No room for the images.
    #[error(
        "the archive's images need {needed} bytes; {memory} has {memory_free} bytes to spare and {disk} has {disk_free} free: make room or set restore.disk_dir"
    )]
    Space {
        /// Bytes needed.
        needed: u64,
        /// Directory in memory.
        memory: PathBuf,
        /// Bytes it may take.
        memory_free: u64,
        /// Directory on disk.
        disk: PathBuf,
        /// Bytes free there.
        disk_free: u64,
    },
    /// No room in memory for what must not be on disk.
    #[error(
        "the archive is encrypted and its images need {needed} bytes of memory; {memory} is not in \
         memory, or has only {memory_free} bytes to spare: set restore.memory_dir or free memory; \
         restore.decrypt_to_disk = true lets them lie in plain text in restore.disk_dir while the \
         container is restored"
    )]
    Plaintext {
        /// Bytes needed.
        needed: u64,
        /// Directory in memory.
        memory: PathBuf,
        /// Bytes it may take.
        memory_free: u64,
    },
    /// The settings' identities can't be had.
    #[error("{path} is encrypted, and restore.identities are of no use: {source}")]
    Identity {
        /// The archive.
        path: PathBuf,
        /// Why not.
        source: KeyFileError,
    },
    /// The file system changes can't be put back.
    #[error("cannot put the container's file system changes back: {source}")]
    Rootfs {
        /// Why not.
        source: ApplyError,
    },
    /// The shared memory files can't be put back.
    #[error("cannot put the container's shared memory files back into {path}: {source}")]
    SharedMemory {
        /// The pod's shared memory directory.
        path: PathBuf,
        /// Why not.
        source: ApplyError,
    },
    /// The archive has shared memory files and the pod no place for them.
    #[error(
        "the archive holds files of /dev/shm, but the new container has no /dev/shm of its pod mounted"
    )]
    NoSharedMemory,
    /// `deleted.files` is not what this build writes.
    #[error("deleted.files of the archive does not parse: {0}")]
    Deleted(#[source] serde_json::Error),
    /// A step could not be begun.
    #[error("cannot begin the step {step} of the restore: {source}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What an earlier operation has left stands in the way.
    #[error("cannot begin a restore of container {id}: {left}")]
    Unsettled {
        /// The container.
        id: String,
        /// What is left, and what to do.
        left: String,
    },
    /// Nobody waits for it any more.
    #[error("the restore was undone: the call that asked for it ended (deadline or disconnect)")]
    Stopped,
    /// Something on the host.
    #[error("cannot {action} {path}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl RestoreError {
    /// What kind of failure it is for the caller.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Annotation { .. } | Self::Settings(_) | Self::Deleted(_) => {
                Class::InvalidArgument
            }
            Self::Signature { .. }
            | Self::Unsigned { .. }
            | Self::Arch { .. }
            | Self::Cpu { .. }
            | Self::Criu { .. }
            | Self::NoSharedMemory
            | Self::Rehearsal(RehearsalError::Missing { .. }) => Class::FailedPrecondition,
            Self::Space { .. } => Class::ResourceExhausted,
            Self::Step { source, .. }
            | Self::Host { source, .. }
            | Self::Spec(SpecError::Write { source, .. })
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                Class::ResourceExhausted
            }
            Self::Stopped => Class::Cancelled,
            Self::Gpu(error) => error.class(),
            _ => Class::Unknown,
        }
    }
}
