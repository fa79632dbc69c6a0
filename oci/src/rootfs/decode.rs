//! Reading members from a tar that may be hostile.
//!
//! The `tar` crate parses headers here, but not sequences of them: its iterator reads
//! extension headers without a bound and ends pax records at the first newline, which binary
//! attributes hold. Read are ustar, pax and GNU tars with long names, all without sparse
//! files.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use tar::{EntryType, Header};

use super::bounds::{Bounds, Excess, Limits};
use super::encode::BLOCK;
use super::member::{Kind, Member, Meta, Stamp, inside};
use super::pax::{DELETED_KEY, Extension, records};

/// Bits of Linux's device numbers (`MINORBITS` in `include/linux/kdev_t.h`): larger ones, which
/// fields of a tar can hold, would name other devices once they are cut off.
const MAJOR_BITS: u32 = 12;
const MINOR_BITS: u32 = 20;

/// Why a tar was refused.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream failed.
    #[error("cannot read the tar after {at} bytes: {source}")]
    Read {
        /// Bytes read before.
        at: u64,
        /// What the stream said.
        source: io::Error,
    },
    /// The stream ended inside a member or before the end mark.
    #[error("the tar ends after {at} bytes, before its end mark: take the checkpoint again")]
    Truncated {
        /// Bytes read before.
        at: u64,
    },
    /// A header that is none.
    #[error("tar header at byte {at} {what}: the tar is damaged or of an unknown form")]
    Header {
        /// Where the header starts.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A name that is not below the root.
    #[error("name {name:?} in the tar {why}: refused, since it must stay below the root")]
    Name {
        /// The name as it stands in the tar.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A kind of member that does not belong here.
    #[error("{} is a member of tar type {kind:?}: refused, only plain pax members are read", path.display())]
    Unsupported {
        /// Its path.
        path: PathBuf,
        /// Its type byte.
        kind: char,
    },
    /// More than allowed.
    #[error("the tar holds {0}: refused, no checkpoint of ours does")]
    Excess(Excess),
}

/// Members of a tar, in order. Between two calls of [`Members::next`] the content of the
/// first can be [read](Read); what was not read is skipped.
pub(super) struct Members<R> {
    input: R,
    /// Bytes read so far.
    at: u64,
    /// Bytes of the present member's content, and of its padding, not read so far.
    content: u64,
    padding: u64,
    pub(super) bounds: Bounds,
    /// Deletions that global headers named.
    pub(super) deleted: Vec<PathBuf>,
}

impl<R: Read> Members<R> {
    pub(super) fn new(input: R, limits: &Limits) -> Self {
        Self {
            input,
            at: 0,
            content: 0,
            padding: 0,
            bounds: Bounds::new(limits),
            deleted: Vec::new(),
        }
    }

    /// The next member, or `None` at the end mark.
    pub(super) fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let start = self.at;
            let mut header = Header::new_old();
            self.fill(header.as_mut_bytes())?;
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            check_sum(&header, start)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.extension(&header, start)?;
                    extension
                        .take(&records)
                        .map_err(|what| TarError::Header { at: start, what })?;
                }
                EntryType::XGlobalHeader => {
                    let records = self.extension(&header, start)?;
                    self.global(&records, start)?;
                }
                EntryType::GNULongName => {
                    extension.name = Some(until_nul(&self.extension(&header, start)?).to_vec());
                }
                EntryType::GNULongLink => {
                    extension.target = Some(until_nul(&self.extension(&header, start)?).to_vec());
                }
                _ => return self.member(&header, extension, start).map(Some),
            }
        }
    }

    fn member(
        &mut self,
        header: &Header,
        extension: Extension,
        start: u64,
    ) -> Result<Member, TarError> {
        let bad = |what| TarError::Header { at: start, what };
        self.bounds.member().map_err(TarError::Excess)?;
        let name = extension
            .name
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let path = below_root(&name)?;
        let target = extension
            .target
            .or_else(|| header.link_name_bytes().map(|target| target.into_owned()))
            .unwrap_or_default();
        let claimed = match extension.size {
            Some(size) => size,
            None => header.entry_size().map_err(|_| bad("has no valid size"))?,
        };
        let (mut content, directory_name) = (0, name.last() == Some(&b'/'));
        let kind = match header.entry_type() {
            _ if extension.sparse => return Err(TarError::Unsupported { path, kind: 'S' }),
            EntryType::Regular if directory_name => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                content = claimed;
                Kind::File(claimed)
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link_text(target)?),
            EntryType::Link => {
                let other = below_root(&target)?;
                if other.as_os_str().is_empty() {
                    let name = target.escape_ascii().to_string();
                    return Err(TarError::Name {
                        name,
                        why: "is the root, which has one name",
                    });
                }
                Kind::Link(other)
            }
            EntryType::Fifo => Kind::Fifo,
            kind @ (EntryType::Char | EntryType::Block) => {
                let number = |field: io::Result<Option<u32>>, bits| match field {
                    Ok(Some(number)) if number >> bits == 0 => Ok(u64::from(number)),
                    _ => Err(bad("has no valid device number")),
                };
                let (major, minor) = (
                    number(header.device_major(), MAJOR_BITS)?,
                    number(header.device_minor(), MINOR_BITS)?,
                );
                if kind == EntryType::Char {
                    Kind::Char(major, minor)
                } else {
                    Kind::Block(major, minor)
                }
            }
            kind => {
                return Err(TarError::Unsupported {
                    path,
                    kind: char::from(kind.as_byte()),
                });
            }
        };
        if path.as_os_str().is_empty() && kind != Kind::Directory {
            let name = name.escape_ascii().to_string();
            return Err(TarError::Name {
                name,
                why: "is the root but no directory",
            });
        }
        if content == 0 && claimed != 0 {
            // Archivers give a hard link its file's size but no content; anything else that
            // claims content would put readers out of step with each other.
            match kind {
                Kind::Link(_) if header.as_ustar().is_some() || header.as_gnu().is_some() => {}
                _ => return Err(bad("claims content for a member that has none")),
            }
        }
        self.bounds.content(content).map_err(TarError::Excess)?;
        self.expect(content);
        let id = |field: Option<u64>, header: io::Result<u64>| {
            let id = match field {
                Some(id) => id,
                None => header.map_err(|_| bad("has no valid owner"))?,
            };
            u32::try_from(id).map_err(|_| bad("has an owner beyond 32 bits"))
        };
        // Of several values the last counts.
        let mut xattrs = extension.xattrs;
        xattrs.reverse();
        xattrs.sort_by(|one, other| one.0.cmp(&other.0));
        xattrs.dedup_by(|earlier, last| earlier.0 == last.0);
        let whole = || header.mtime().map_err(|_| bad("has no valid time"));
        let mtime = match extension.mtime {
            Some(stamp) => stamp,
            None => Stamp {
                sec: i64::try_from(whole()?).map_err(|_| bad("has no valid time"))?,
                nsec: 0,
            },
        };
        let meta = Meta {
            mode: header.mode().map_err(|_| bad("has no valid mode"))? & 0o7777,
            uid: id(extension.uid, header.uid())?,
            gid: id(extension.gid, header.gid())?,
            mtime,
            xattrs,
        };
        Ok(Member { path, kind, meta })
    }

    /// So much content follows.
    fn expect(&mut self, size: u64) {
        self.content = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn extension(&mut self, header: &Header, start: u64) -> Result<Vec<u8>, TarError> {
        let bad = |what| TarError::Header { at: start, what };
        let size = header.entry_size().map_err(|_| bad("has no valid size"))?;
        let counted = self.bounds.extension(size);
        let counted = counted.ok_or_else(|| bad("extends the next one by more than 8 MiB"))?;
        counted.map_err(TarError::Excess)?;
        self.expect(size);
        // Grows with what is really there, not with what the header claims.
        let mut data = Vec::new();
        let taken = (&mut self.input).take(size).read_to_end(&mut data);
        self.at += data.len() as u64;
        taken.map_err(|source| TarError::Read {
            at: self.at,
            source,
        })?;
        if (data.len() as u64) < size {
            return Err(TarError::Truncated { at: self.at });
        }
        self.content = 0;
        Ok(data)
    }

    fn global(&mut self, data: &[u8], start: u64) -> Result<(), TarError> {
        for record in records(data) {
            let (key, value) = record.map_err(|what| TarError::Header { at: start, what })?;
            if key == DELETED_KEY {
                let path = below_root(value.strip_prefix(b"/").unwrap_or(value))?;
                self.bounds.deletion(&path).map_err(TarError::Excess)?;
                self.deleted.push(path);
            }
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let left = self.content + self.padding;
        let skipped =
            io::copy(&mut (&mut self.input).take(left), &mut io::sink()).map_err(|source| {
                TarError::Read {
                    at: self.at,
                    source,
                }
            })?;
        self.at += skipped;
        if skipped < left {
            return Err(TarError::Truncated { at: self.at });
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }

    fn fill(&mut self, block: &mut [u8]) -> Result<(), TarError> {
        self.input
            .read_exact(block)
            .map_err(|source| match source.kind() {
                ErrorKind::UnexpectedEof => TarError::Truncated { at: self.at },
                _ => TarError::Read {
                    at: self.at,
                    source,
                },
            })?;
        self.at += block.len() as u64;
        Ok(())
    }

    /// Reads content of the present member; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        let want = usize::try_from(self.content)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        while filled < want {
            match self.input.read(&mut buffer[filled..want]) {
                Ok(0) => return Err(TarError::Truncated { at: self.at }),
                Ok(got) => {
                    filled += got;
                    self.at += got as u64;
                    self.content -= got as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(TarError::Read {
                        at: self.at,
                        source,
                    });
                }
            }
        }
        Ok(filled)
    }
}

fn check_sum(header: &Header, start: u64) -> Result<(), TarError> {
    let bytes = header.as_bytes();
    // The sum's own field counts as eight blanks.
    let sum: u32 = bytes[..148]
        .iter()
        .chain(&bytes[156..])
        .map(|byte| u32::from(*byte))
        .sum();
    match header.cksum() {
        Ok(found) if found == sum + 8 * 32 => Ok(()),
        _ => Err(TarError::Header {
            at: start,
            what: "has a wrong checksum",
        }),
    }
}

fn below_root(name: &[u8]) -> Result<PathBuf, TarError> {
    inside(name).map_err(|why| TarError::Name {
        name: name.escape_ascii().to_string(),
        why,
    })
}

fn link_text(text: Vec<u8>) -> Result<PathBuf, TarError> {
    let why = match text.len() {
        0 => "is an empty link text",
        _ if text.contains(&0) => "holds a NUL byte",
        1..=super::PATH_LIMIT => return Ok(PathBuf::from(OsStr::from_bytes(&text))),
        _ => "is longer than 4095 bytes",
    };
    Err(TarError::Name {
        name: text.escape_ascii().to_string(),
        why,
    })
}

fn until_nul(data: &[u8]) -> &[u8] {
    data.split(|byte| *byte == 0).next().unwrap_or_default()
}
