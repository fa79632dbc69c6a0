//! What can go wrong with an archive.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kybernate_age::ChunkFault;
use thiserror::Error;

use super::source::Envelope;

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
    #[error("cannot map memory for the archive's buffers")]
    Memory {
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
    /// Encryption could not begin.
    #[error("cannot encrypt the archive")]
    Encryption {
        /// Why not.
        source: Arc<kybernate_age::HeaderError>,
    },
    /// What was to be replaced is encrypted already: a bug.
    #[error("byte {offset} of the archive is encrypted already and can't be replaced")]
    Sealed {
        /// Where in the archive.
        offset: u64,
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

impl WriteError {
    pub(super) fn memory(source: io::Error) -> Self {
        Self::Memory {
            source: Arc::new(source),
        }
    }

    /// The error for an `action` at byte `offset` of the file that failed.
    pub(super) fn io(action: &'static str, offset: u64, source: io::Error) -> Self {
        Self::Io {
            action,
            offset,
            source: Arc::new(source),
        }
    }
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        Self::other(error)
    }
}

/// What is wrong with one entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EntryFault {
    /// Its name.
    #[error("its name {0}")]
    Name(NameFault),
    /// It is not where the entry before it ends.
    #[error(
        "the manifest has it at byte {found} of the tar, the entry before it ends at {expected}"
    )]
    Offset {
        /// End of the entry before.
        expected: u64,
        /// What the manifest says.
        found: u64,
    },
    /// No file can have this size.
    #[error("its size {size} is impossible here")]
    Size {
        /// The size in bytes.
        size: u64,
    },
    /// The manifest's digest is not the hex sha256 that this entry can have.
    #[error("the manifest has no sha256 that fits it: {found:?}")]
    DigestForm {
        /// What the manifest says.
        found: String,
    },
    /// Its tar header is not the one that follows from name and size.
    #[error("its tar header is damaged, or entries were exchanged")]
    Header,
    /// Bytes other than zero after its content.
    #[error("the padding after its content is not zero")]
    Padding,
    /// Content and digest differ.
    #[error("its content has sha256 {found}, the manifest says {expected}")]
    Digest {
        /// From the manifest.
        expected: String,
        /// From the content.
        found: String,
    },
    /// A frame that holds part of it does not decode.
    #[error("frame {frame} at byte {offset} of the archive is damaged: {reason}")]
    Frame {
        /// Number of the frame, from 0.
        frame: usize,
        /// Where it starts in the file.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Why an archive could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file did not open.
    #[error("cannot open archive {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else than a regular file.
    #[error("{} is not a regular file", path.display())]
    NotFile {
        /// Its path.
        path: PathBuf,
    },
    /// The file did not yield its bytes.
    #[error("cannot read the archive at byte {offset}")]
    Io {
        /// Where in the archive file.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// It is encrypted, and nothing to open it with was given.
    #[error(
        "it is encrypted to {}, and no identity was given: name the file of one with --identity, \
         or in restore.identities of the node's settings",
        Envelope::readers(.envelope.recipients)
    )]
    Encrypted {
        /// What it says to everybody.
        envelope: Box<Envelope>,
    },
    /// It is encrypted and does not open.
    #[error("{source}")]
    Locked {
        /// Why not.
        source: kybernate_age::OpenError,
    },
    /// It is encrypted, and part of it is not what was encrypted.
    #[error("{fault}")]
    Chunk {
        /// Which part, and what is wrong with it.
        fault: ChunkFault,
    },
    /// The end of the file is not the seek table of a checkpoint archive.
    #[error(
        "seek table: {fault}; the file is no checkpoint archive, or was cut short, or something \
         was appended"
    )]
    SeekTable {
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The last frame does not hold the manifest as the writer puts it.
    #[error("manifest: {fault}")]
    Manifest {
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The manifest is no manifest.
    #[error("manifest: not the expected JSON")]
    Json {
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Another version of the format.
    #[error(
        "the archive has format {found}, this program reads format {expected}: use the version that wrote it"
    )]
    Format {
        /// In the archive.
        found: u64,
        /// Known here.
        expected: u32,
    },
    /// An entry is wrong.
    #[error("archive entry {name:?}: {fault}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong with it.
        fault: EntryFault,
    },
    /// All contents are right, the stored bytes are not those that were written.
    #[error("frames: their stored bytes have digest {found}, the manifest says {expected}")]
    Frames {
        /// From the manifest.
        expected: String,
        /// From the file.
        found: String,
    },
    /// No such entry.
    #[error("the archive has no file {name:?}")]
    Missing {
        /// The name asked for.
        name: String,
    },
    /// An entry is larger than its reader wants.
    #[error("archive entry {name:?} has {size} bytes, more than the {max} expected at most")]
    TooLarge {
        /// The entry.
        name: String,
        /// Its size in bytes.
        size: u64,
        /// The bound in bytes.
        max: u64,
    },
    /// Extracting would leave the directory.
    #[error("cannot extract {name:?} to {}: not a plain relative path", path.display())]
    Target {
        /// The entry.
        name: String,
        /// Where it was to go.
        path: PathBuf,
    },
    /// A file could not be written.
    #[error("cannot extract to {}", path.display())]
    Extract {
        /// Path in the target directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The caller gave up.
    #[error("reading the archive was cancelled")]
    Cancelled,
    /// No memory for buffers.
    #[error("cannot map memory to decode the archive")]
    Memory {
        /// What the system said.
        source: io::Error,
    },
    /// No thread.
    #[error("cannot start a thread to decode the archive")]
    Thread {
        /// What the system said.
        source: io::Error,
    },
}

impl ReadError {
    /// The error for a read at byte `offset` of the archive that failed.
    pub(super) fn io(offset: u64, source: io::Error) -> Self {
        let fault = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<ChunkFault>());
        match fault {
            Some(fault) => Self::Chunk {
                fault: fault.clone(),
            },
            None => Self::Io { offset, source },
        }
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}
