//! What can go wrong with an archive.

use std::io;
use std::sync::Arc;

use thiserror::Error;

/// Why a name is no entry's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameFault {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// More than 100 bytes.
    #[error("is longer than 100 bytes")]
    TooLong,
    /// Starts with `/`.
    #[error("is absolute")]
    Absolute,
    /// `.`, `..` or an empty component.
    #[error("has an empty component, `.` or `..`")]
    Component,
    /// Control characters or anything but ASCII.
    #[error("has characters other than printable ASCII")]
    Characters,
    /// Another entry has it.
    #[error("occurs twice")]
    Duplicate,
    /// Its directory has no entry, or a later one.
    #[error("lies in a directory that has no entry before it")]
    Orphan,
    /// The manifest's own name.
    #[error("is reserved for the manifest")]
    Reserved,
}

/// Why an archive could not be written.
#[derive(Debug, Clone, Error)]
pub enum WriteError {
    /// [`Control::cancel`](super::Control::cancel) was called.
    #[error("writing the archive was cancelled")]
    Cancelled,
    /// The file refused.
    #[error("cannot {action} the archive at byte {offset}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where in the archive file.
        offset: u64,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The source of an entry failed.
    #[error("cannot read the content of archive entry {name:?}")]
    Source {
        /// The entry.
        name: String,
        /// What its reader said.
        source: Arc<io::Error>,
    },
    /// The source of an entry gave more or less than announced.
    #[error(
        "archive entry {name:?} was announced with {expected} bytes, its source gave {found}: \
         it must not change while it is read"
    )]
    Length {
        /// The entry.
        name: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes read, at most one more than announced.
        found: u64,
    },
    /// Not a name for an entry.
    #[error("archive entry name {name:?} {fault}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        fault: NameFault,
    },
    /// A stream was dropped before its end; the archive can't go on.
    #[error("archive entry {name:?} was left unfinished")]
    Unfinished {
        /// The entry.
        name: String,
    },
    /// The options contradict each other.
    #[error(
        "frames of {frame_size} bytes with {workers} workers need a buffer of at least {needed} \
         bytes, it has {buffer}: raise the buffer or use smaller frames"
    )]
    Buffer {
        /// Content per frame, in bytes.
        frame_size: usize,
        /// Compressing threads.
        workers: usize,
        /// Smallest buffer that works, in bytes.
        needed: u64,
        /// The buffer asked for, in bytes.
        buffer: u64,
    },
    /// Frame size out of bounds.
    #[error("frame size {frame_size} is not between 65536 and 67108864 bytes")]
    FrameSize {
        /// The size asked for, in bytes.
        frame_size: usize,
    },
    /// No memory for a buffer.
    #[error("cannot map {bytes} bytes of memory for the archive's buffers")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// No thread.
    #[error("cannot start a thread for the archive")]
    Thread {
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A thread of the writer panicked: a bug.
    #[error("the archive's {thread} thread panicked")]
    Panic {
        /// Which one.
        thread: &'static str,
    },
    /// zstd refused.
    #[error("zstd cannot compress: {reason}")]
    Compress {
        /// What it said.
        reason: &'static str,
    },
    /// The manifest does not become JSON.
    #[error("cannot write the manifest as JSON")]
    Manifest {
        /// What the serializer said.
        source: Arc<serde_json::Error>,
    },
    /// The manifest is too large.
    #[error("the manifest has {size} bytes, more than {max}")]
    ManifestSize {
        /// Its size in bytes.
        size: usize,
        /// The bound in bytes.
        max: usize,
    },
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        Self::other(error)
    }
}
