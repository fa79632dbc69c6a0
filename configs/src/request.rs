//! The files of a staging directory, through which a checkpoint client and the shim talk.
//!
//! A client creates the directory (mode 0700), writes `request.json`, takes an exclusive
//! `flock` on it, and calls `Tasks/Checkpoint` with `image_path` = the directory. The shim
//! finds the request, writes the archive and the answer beside it:
//!
//! ```text
//! <staging>/request.json     client -> shim   what to do; locked for as long as the client waits
//!           <include files>  client -> shim   files the client adds to the archive
//!           archive.tar.zst  shim -> client   complete and synced when the call returns without error
//!           progress.jsonl   shim -> client   one Progress per line while the call runs
//!           result.json      shim -> client   written last, only on success
//! ```
//!
//! A lock that is gone means a client that is gone: the shim rolls back. A directory without
//! `request.json` belongs to containerd itself and gets plain CRIU files.

use std::{ffi::OsStr, path::PathBuf};

use kybernate_age::Recipient;
use serde::{Deserialize, Serialize};

/// How the name of every staging directory begins.
pub const STAGING_PREFIX: &str = ".kybernate-";
/// Name of the request in the staging directory.
pub const REQUEST_FILE: &str = "request.json";
/// Name of the archive in the staging directory.
pub const ARCHIVE_FILE: &str = "archive.tar.zst";
/// Name of the progress log in the staging directory.
pub const PROGRESS_FILE: &str = "progress.jsonl";
/// Name of the result in the staging directory.
pub const RESULT_FILE: &str = "result.json";

/// Version of [`CheckpointRequest`] that this build writes and reads.
pub const REQUEST_VERSION: u32 = 1;

/// Whether a directory of that name is a staging directory.
#[must_use]
pub fn is_staging(name: &OsStr) -> bool {
    name.as_encoded_bytes()
        .starts_with(STAGING_PREFIX.as_bytes())
}

/// What a client asks of the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// [`REQUEST_VERSION`]; any other is refused.
    pub version: u32,
    /// Compression level by name: `fast`, `default`, `high`, or a zstd level as a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Bytes of uncompressed frames that may wait in memory: `auto` or a size like `256MiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<String>,
    /// Seconds since the Unix epoch after which the checkpoint rolls back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// Files that go into the archive under the given names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<IncludedFile>,
    /// Who can read the archive beside those whom the shim's settings name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encrypt_to: Vec<Recipient>,
    /// Who asked, for the manifest and the audit line; free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
}

/// One file that the client adds to the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncludedFile {
    /// Name in the archive, without directories: `config.dump`, `status.dump`, `container.log`.
    pub name: String,
    /// Where it lies: an absolute path, or a name in the staging directory. A regular file;
    /// symbolic links are refused.
    pub path: PathBuf,
}

/// The shim's answer to a checkpoint that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointResult {
    /// Size of the archive in bytes.
    pub archive_bytes: u64,
    /// Size of its content before compression, in bytes.
    pub content_bytes: u64,
    /// Lower-case hex sha256 of the manifest, which carries the digest of every entry.
    pub manifest_sha256: String,
    /// From the first freeze to the last thaw, in milliseconds.
    pub pause_ms: u64,
    /// From the call to the synced archive, in milliseconds.
    pub total_ms: u64,
}

/// One line of `progress.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is going on: `freeze`, `dump`, `rootfs`, `compress`, `sync`.
    pub phase: String,
    /// Bytes taken from the container so far.
    pub read_bytes: u64,
    /// Bytes of archive written so far.
    pub written_bytes: u64,
    /// Milliseconds since the call.
    pub elapsed_ms: u64,
}
