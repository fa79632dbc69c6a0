//! The bytes of an archive, whether its file is encrypted or not.
//!
//! Reads are positional and from any number of threads: of an encrypted file each opens the
//! chunks that it needs, and gives out nothing of a chunk that does not open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use kybernate_age::{CHUNK, HEADER_MAX, Header, Identity, NONCE, Opener, SEALED, TAG, is_age};
use nix::fcntl::OFlag;

use super::error::ReadError;
use super::label::Label;

/// Bytes that tell whether a file is encrypted.
const INTRO: usize = 32;

/// What an encrypted archive says to those who can't read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// How many can.
    pub recipients: usize,
    /// What it is of. Only [`Archive::open_with`](super::Archive::open_with) makes sure that this
    /// is genuine.
    pub label: Option<Label>,
    /// Size of the file in bytes.
    pub bytes: u64,
}

impl Envelope {
    /// The envelope of the archive at `path`; `None` if it is not encrypted, or is no archive.
    ///
    /// # Errors
    /// The file does not open; its header is damaged.
    pub fn read(path: &Path) -> Result<Option<Self>, ReadError> {
        let (file, size) = open(path)?;
        Ok(head(&file)?.map(|head| Self::of(&head.header, size)))
    }

    /// For how many it is encrypted, in words.
    #[must_use]
    pub fn readers(recipients: usize) -> String {
        match recipients {
            1 => "1 recipient".to_owned(),
            count => format!("{count} recipients"),
        }
    }

    fn of(header: &Header, bytes: u64) -> Self {
        Self {
            recipients: header.recipients(),
            label: Label::read(header),
            bytes,
        }
    }
}

/// Where an archive's bytes come from.
#[derive(Debug)]
pub(super) enum Source {
    Plain(File),
    Sealed(Sealed),
}

/// An encrypted file.
#[derive(Debug)]
pub(super) struct Sealed {
    file: File,
    opener: Opener,
    /// Where the first chunk lies.
    start: u64,
    chunks: u64,
    /// Bytes of content.
    size: u64,
    envelope: Envelope,
}

/// Opens a regular file that is no link; with its size.
pub(super) fn open(path: &Path) -> Result<(File, u64), ReadError> {
    let failed = |source| ReadError::Open {
        path: path.to_owned(),
        source,
    };
    // Without O_NONBLOCK a FIFO would block here.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() {
        return Err(ReadError::NotFile {
            path: path.to_owned(),
        });
    }
    Ok((file, facts.len()))
}

/// What comes before the chunks; the nonce, unless the file ends before it.
struct Head {
    header: Header,
    nonce: Option<[u8; NONCE]>,
}

/// Reads the age header and the nonce after it; `None` where the file has none.
fn head(file: &File) -> Result<Option<Head>, ReadError> {
    let failed = |source| ReadError::Io { offset: 0, source };
    let mut bytes = vec![0; INTRO];
    let size = fill(file, &mut bytes).map_err(failed)?;
    if !is_age(&bytes[..size]) {
        return Ok(None);
    }
    bytes.resize(HEADER_MAX + NONCE, 0);
    let size = fill(file, &mut bytes).map_err(failed)?;
    let bytes = &bytes[..size];
    let header = Header::parse(bytes).map_err(|source| ReadError::Locked { source })?;
    let nonce = bytes[header.size()..].first_chunk().copied();
    Ok(Some(Head { header, nonce }))
}

/// Reads the file's first bytes, as many as there are and fit.
fn fill(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut size = 0;
    while size < bytes.len() {
        match file.read_at(&mut bytes[size..], size as u64) {
            Ok(0) => break,
            Ok(count) => size += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(size)
}

impl Source {
    /// Takes an open file of `size` bytes; `identities` are for one that is encrypted.
    pub(super) fn new(file: File, size: u64, identities: &[Identity]) -> Result<Self, ReadError> {
        let Some(Head { header, nonce }) = head(&file)? else {
            return Ok(Self::Plain(file));
        };
        let envelope = Envelope::of(&header, size);
        if identities.is_empty() {
            return Err(ReadError::Encrypted {
                envelope: Box::new(envelope),
            });
        }
        let cut = ReadError::SeekTable {
            fault: "it is encrypted, and its first or last chunk is incomplete",
        };
        let Some(nonce) = nonce else { return Err(cut) };
        let opener = Opener::new(&header, &nonce, identities)
            .map_err(|source| ReadError::Locked { source })?;
        let start = (header.size() + NONCE) as u64;
        let sealed = size - start;
        let chunks = sealed.div_ceil(SEALED as u64);
        let last = sealed - chunks.saturating_sub(1) * SEALED as u64;
        // A chunk without content is the only one.
        if last < TAG as u64 || (last == TAG as u64 && chunks > 1) {
            return Err(cut);
        }
        Ok(Self::Sealed(Sealed {
            file,
            opener,
            start,
            chunks,
            size: sealed - chunks * TAG as u64,
            envelope,
        }))
    }

    /// Bytes of archive, of a file of `size` bytes.
    pub(super) fn size(&self, size: u64) -> u64 {
        match self {
            Self::Plain(_) => size,
            Self::Sealed(sealed) => sealed.size,
        }
    }

    pub(super) fn envelope(&self) -> Option<&Envelope> {
        match self {
            Self::Plain(_) => None,
            Self::Sealed(sealed) => Some(&sealed.envelope),
        }
    }

    /// Fills `buffer` from byte `offset` of the archive on.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.read_exact_at(buffer, offset),
            Self::Sealed(sealed) => sealed.read_exact_at(buffer, offset),
        }
    }
}

impl Sealed {
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut chunk = Vec::with_capacity(SEALED);
        while !buffer.is_empty() {
            let number = offset / CHUNK as u64;
            self.open_chunk(number, &mut chunk)?;
            let from = (offset % CHUNK as u64) as usize;
            let size = buffer.len().min(chunk.len() - from);
            let (now, later) = buffer.split_at_mut(size);
            now.copy_from_slice(&chunk[from..from + size]);
            buffer = later;
            offset += size as u64;
        }
        Ok(())
    }

    /// Reads and opens chunk `number`.
    fn open_chunk(&self, number: u64, chunk: &mut Vec<u8>) -> io::Result<()> {
        let last = number + 1 == self.chunks;
        let content = (self.size - number * CHUNK as u64).min(CHUNK as u64);
        chunk.resize(content as usize + TAG, 0);
        let offset = self.start + number * SEALED as u64;
        self.file.read_exact_at(chunk, offset)?;
        self.opener
            .open(number, last, chunk)
            .map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))
    }
}
