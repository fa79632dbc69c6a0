//! The checkpoint archive: one tar in independent zstd frames, with a seek table.
//!
//! ```text
//! frame  checkpoint/ …                     tar, cut every `frame_size` bytes
//! frame  header of checkpoint/pages-1.img  alone: raw block of 512 bytes, patched in place
//! frame  content, content, …               compressed, stored or run-length
//! …
//! frame  kybernate.json                    its header, content, padding, end of archive; stored
//! skippable frame                          seek table: sizes and checksum of every frame
//! ```
//!
//! Any zstd reader decodes the concatenated frames into one ustar stream that ends with two
//! zero blocks. Only directories and regular files occur, owned by 0:0, modes 0700 and 0600,
//! modification time 0: a header follows from an entry's name and size alone, so a reader
//! compares it byte by byte instead of interpreting it. Sizes of 8 GiB and more are in base
//! 256, as GNU tar and Go write them.
//!
//! Every frame declares its content size and carries zstd's content checksum. The seek table is
//! that of zstd's `contrib/seekable_format` (v0.1.0) with checksums. The manifest lists all other
//! entries with their digests (see `digest`) and holds a digest over the stored bytes of all frames before its
//! own: no bit can change unnoticed, not even one that decodes to the same content.
//!
//! All of it may be the content of an age file (see [`kybernate_age`]), which is then the archive:
//! `age -d -i KEY ARCHIVE | zstd -d | tar t`. Offsets are those of the content.

mod control;
mod convert;
mod decode;
mod digest;
mod disk;
mod encode;
mod entry;
mod error;
mod extract;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod header;
mod label;
mod layout;
mod level;
mod name;
mod options;
mod pass;
mod pipeline;
mod pool;
mod priority;
mod reader;
mod seal;
mod seek;
mod sink;
mod source;
mod stages;
mod stream;
mod thread;
mod words;
mod writer;

pub use control::Control;
pub use convert::{ConvertError, decrypt, encrypt};
pub use entry::EntryReader;
pub use error::{EntryFault, NameFault, ReadError, WriteError};
pub use label::{Label, LabelPod};
pub use level::{Level, LevelError};
pub use options::WriteOptions;
pub use reader::Archive;
pub use seal::Encryption;
pub use source::Envelope;
pub use stream::EntryStream;
pub use writer::{Summary, Writer};

/// Size of a tar block in bytes.
const BLOCK: usize = 512;
/// Largest content of one frame in bytes, written or accepted.
const FRAME_MAX: usize = 64 << 20;
/// Smallest `frame_size` in bytes.
const FRAME_MIN: usize = 64 << 10;
/// Largest manifest in bytes.
const MANIFEST_MAX: usize = FRAME_MAX - (4 << 10);
/// The directory that comes first in every archive.
const FIRST: &str = "checkpoint/";

/// Bytes of padding after content of `size` bytes.
const fn padding(size: u64) -> usize {
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
