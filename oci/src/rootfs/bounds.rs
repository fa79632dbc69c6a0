//! What changes may come to. Taking and restoring count alike, so that nothing is taken which no
//! restore takes back.

use std::path::Path;

use super::encode::BLOCK;
use super::member::Member;

/// Longest headers that extend one member, together, in bytes: room for every attribute that an
/// inode can have on common file systems.
pub(super) const EXTENSION: u64 = 8 << 20;

/// Longest list of deletions as JSON, `deleted.files`, in bytes.
pub const LIST_LIMIT: u64 = 256 << 20;

/// What a tar may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most members, most directories that stand in no member but above one, and most deletions.
    pub entries: u64,
    /// Most bytes of content and extension headers, holes included.
    pub bytes: u64,
    /// Most bytes of memory for what waits for the end of the tar: names and attributes of
    /// directories, and deletions.
    pub waiting: u64,
    /// Whether it may hold device nodes.
    pub devices: Devices,
}

impl Default for Limits {
    /// Four million entries, 1 TiB, 512 MiB of memory, no devices.
    fn default() -> Self {
        Self {
            entries: 4 << 20,
            bytes: 1 << 40,
            waiting: 512 << 20,
            devices: Devices::Refuse,
        }
    }
}

/// What happens to device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// They fail the restore.
    Refuse,
    /// They are made. For containers that may make device nodes themselves (CAP_MKNOD).
    Make,
}

/// More than [`Limits`] allow, which it says with the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// See [`Limits::entries`].
    #[error("more than {0} entries or directories above them")]
    Entries(u64),
    /// See [`Limits::entries`].
    #[error("more than {0} deletions")]
    Deletions(u64),
    /// See [`Limits::bytes`].
    #[error("more than {0} bytes of content")]
    Bytes(u64),
    /// See [`Limits::waiting`].
    #[error("more than {0} bytes of names and attributes of directories and deletions")]
    Waiting(u64),
}

/// What is left of some limits.
#[derive(Debug)]
pub(super) struct Bounds {
    limits: Limits,
    entries: u64,
    deletions: u64,
    bytes: u64,
    waiting: u64,
    extension: u64,
}

impl Bounds {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            limits: *limits,
            entries: limits.entries,
            deletions: limits.entries,
            bytes: limits.bytes,
            waiting: limits.waiting,
            extension: EXTENSION,
        }
    }

    /// One more member.
    pub(super) fn member(&mut self) -> Result<(), Excess> {
        self.extension = EXTENSION;
        take(&mut self.entries, 1, Excess::Entries(self.limits.entries))
    }

    /// A directory's member, which is needed again at the end.
    pub(super) fn directory(&mut self, member: &Member) -> Result<(), Excess> {
        self.wait(member.memory())
    }

    /// One more deletion.
    pub(super) fn deletion(&mut self, path: &Path) -> Result<(), Excess> {
        let excess = Excess::Deletions(self.limits.entries);
        take(&mut self.deletions, 1, excess)?;
        self.wait(size_of::<std::path::PathBuf>() + path.as_os_str().len())
    }

    /// Content of a member.
    pub(super) fn content(&mut self, bytes: u64) -> Result<(), Excess> {
        take(&mut self.bytes, bytes, Excess::Bytes(self.limits.bytes))
    }

    /// A header that extends the next member; `None` for too much of that.
    pub(super) fn extension(&mut self, bytes: u64) -> Option<Result<(), Excess>> {
        self.extension = self.extension.checked_sub(bytes)?;
        // An empty one, too, counts.
        Some(self.content(bytes.saturating_add(BLOCK as u64)))
    }

    fn wait(&mut self, bytes: usize) -> Result<(), Excess> {
        let excess = Excess::Waiting(self.limits.waiting);
        take(&mut self.waiting, bytes as u64, excess)
    }
}

fn take(left: &mut u64, amount: u64, excess: Excess) -> Result<(), Excess> {
    *left = left.checked_sub(amount).ok_or(excess)?;
    Ok(())
}
