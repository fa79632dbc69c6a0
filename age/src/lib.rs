//! Age files, as `age`, `rage` and others read and write them (<https://c2sp.org/age>, version 1),
//! for X25519 recipients.
//!
//! ```text
//! age-encryption.org/v1
//! -> X25519 SHARE                  one stanza a recipient; base64 without padding
//! FILE KEY, WRAPPED
//! -> …                             stanzas of other kinds are left alone
//! --- MAC                          over all before it: HMAC(HKDF(file key, "header"))
//! nonce, 16 bytes
//! chunk, chunk, …, last chunk      64 KiB each, and a tag of 16 bytes: ChaCha20-Poly1305
//!
//! file key      16 random bytes
//! SHARE         X25519(ephemeral, 9)
//! WRAPPED       ChaCha20-Poly1305(HKDF(X25519(ephemeral, recipient), SHARE || recipient,
//!                                 "age-encryption.org/v1/X25519"), nonce 0, file key)
//! chunks' key   HKDF(file key, nonce, "payload")
//! chunk's nonce number of the chunk, 11 bytes, big endian || 1 for the last chunk, 0 for others
//! ```
//!
//! The crate `age` seals chunks in order and at once. An archive has chunks that are complete only
//! at its end, and a chunk may be sealed once alone: two contents under one nonce give away both,
//! and the means to forge. So [`Sealer`] gives out a [`Slot`] for each chunk, which sealing uses
//! up. That crate also needs a hundred others, among them older versions of those that are here.
#![forbid(unsafe_code)]

mod header;
mod key;
mod key_file;
mod payload;

pub use header::{Header, HeaderError, OpenError, Stanza};
pub use key::{Identity, KeyError, Recipient, may_hold_secret};
pub use key_file::{KeyFileError, read as read_identities};
pub use payload::{CHUNK, ChunkFault, Opener, SEALED, Sealer, Slot, TAG};

/// The most bytes that a header has here, written or read.
pub const HEADER_MAX: usize = 64 << 10;
/// Bytes between header and chunks.
pub const NONCE: usize = 16;

/// Whether these are the first bytes of an age file, of whatever version.
#[must_use]
pub fn is_age(bytes: &[u8]) -> bool {
    bytes.starts_with(header::INTRO)
}
