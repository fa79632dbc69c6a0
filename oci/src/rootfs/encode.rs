//! Writing members as a pax tar.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use tar::{EntryType, Header};

use super::member::{Kind, Member, Meta, Stamp};
use super::pax::{DELETED_KEY, Records};

/// Size of a tar block.
pub(super) const BLOCK: usize = 512;

/// Largest value of an 8-byte octal field.
const ID_LIMIT: u64 = 0o7_777_777;
/// Largest value of a 12-byte octal field.
const NUMBER_LIMIT: u64 = 0o77_777_777_777;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A tar being written.
pub(super) struct Encoder<'a> {
    out: BufWriter<&'a mut dyn Write>,
}

/// Why a file's content could not be written.
#[derive(Debug)]
pub(super) enum ContentError {
    /// The file could not be read.
    Read(io::Error),
    /// The file ended before its size.
    Short,
    /// The tar could not be written.
    Write(io::Error),
}

impl<'a> Encoder<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out: BufWriter::with_capacity(256 << 10, out),
        }
    }

    /// Writes a member's headers. A file's content must follow.
    pub(super) fn member(&mut self, member: &Member) -> io::Result<()> {
        let mut records = Records::default();
        let mut header = Header::new_ustar();
        let mut name = member.path.as_os_str().as_bytes().to_vec();
        if name.is_empty() {
            name.push(b'.');
        }
        if member.kind == Kind::Directory {
            name.push(b'/');
        }
        if !set_name(&mut header, &name) {
            records.add(b"path", &name);
        }
        let kind = self.kind(&mut header, &mut records, &member.kind);
        header.set_entry_type(kind);
        meta(&mut header, &mut records, &member.meta);
        if !records.bytes().is_empty() {
            self.extension(EntryType::XHeader, records.bytes())?;
        }
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn kind(&self, header: &mut Header, records: &mut Records, kind: &Kind) -> EntryType {
        let mut device = |major: u64, minor: u64| {
            // Both fit: the kernel's numbers have 12 and 20 bits, and no others are decoded.
            let ustar = header.as_ustar_mut().expect("made as ustar");
            ustar.set_device_major(u32::try_from(major).unwrap_or(u32::MAX));
            ustar.set_device_minor(u32::try_from(minor).unwrap_or(u32::MAX));
        };
        match kind {
            Kind::Char(major, minor) | Kind::Block(major, minor) => device(*major, *minor),
            _ => device(0, 0),
        }
        let size = if let Kind::File(size) = kind {
            *size
        } else {
            0
        };
        header.set_size(if size > NUMBER_LIMIT { 0 } else { size });
        if size > NUMBER_LIMIT {
            records.add(b"size", size.to_string().as_bytes());
        }
        if let Kind::Symlink(target) | Kind::Link(target) = kind {
            let target = target.as_os_str().as_bytes();
            let field = &mut header.as_old_mut().linkname;
            let fits = target.len().min(field.len());
            field[..fits].copy_from_slice(&target[..fits]);
            if fits < target.len() {
                records.add(b"linkpath", target);
            }
        }
        match kind {
            Kind::File(_) => EntryType::Regular,
            Kind::Directory => EntryType::Directory,
            Kind::Symlink(_) => EntryType::Symlink,
            Kind::Link(_) => EntryType::Link,
            Kind::Fifo => EntryType::Fifo,
            Kind::Char(..) => EntryType::Char,
            Kind::Block(..) => EntryType::Block,
        }
    }

    /// Writes `size` bytes of a file. Holes are not read.
    pub(super) fn content(&mut self, file: &mut File, size: u64) -> Result<(), ContentError> {
        let mut at = 0;
        while at < size {
            let data = seek(file, at, Whence::SeekData, size).map_err(ContentError::Read)?;
            self.zeros(data - at).map_err(ContentError::Write)?;
            if data == size {
                break;
            }
            let hole = seek(file, data, Whence::SeekHole, size).map_err(ContentError::Read)?;
            file.seek(SeekFrom::Start(data))
                .map_err(ContentError::Read)?;
            self.copy(file, hole - data)?;
            at = hole;
        }
        let used = usize::try_from(size % BLOCK as u64).expect("less than a block");
        let padding = (BLOCK - used) % BLOCK;
        self.out
            .write_all(&ZEROS[..padding])
            .map_err(ContentError::Write)
    }

    fn copy(&mut self, file: &mut File, mut left: u64) -> Result<(), ContentError> {
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(1 << 20)];
        while left > 0 {
            let want = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let got = match file.read(&mut buffer[..want]) {
                Ok(0) => return Err(ContentError::Short),
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(ContentError::Read(error)),
            };
            self.out
                .write_all(&buffer[..got])
                .map_err(ContentError::Write)?;
            left -= got as u64;
        }
        Ok(())
    }

    fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let part = usize::try_from(count)
                .unwrap_or(usize::MAX)
                .min(ZEROS.len());
            self.out.write_all(&ZEROS[..part])?;
            count -= part as u64;
        }
        Ok(())
    }

    /// Names a deletion in a global header (see the module head of `rootfs`).
    pub(super) fn deletion(&mut self, path: &Path) -> io::Result<()> {
        let mut records = Records::default();
        records.add(DELETED_KEY, path.as_os_str().as_bytes());
        self.extension(EntryType::XGlobalHeader, records.bytes())
    }

    fn extension(&mut self, kind: EntryType, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        set_name(&mut header, b"PaxHeaders/0");
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        let padding = (BLOCK - records.len() % BLOCK) % BLOCK;
        self.out.write_all(&ZEROS[..padding])
    }

    /// Writes the end mark and hands everything to the output.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&ZEROS[..2 * BLOCK])?;
        self.out.flush()
    }
}

/// The next data or hole at or after `at`, at most `size`. A file system that knows no holes
/// has one extent of data.
fn seek(file: &File, at: u64, whence: Whence, size: u64) -> io::Result<u64> {
    let from = i64::try_from(at).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
    match lseek64(file, from, whence) {
        Ok(found) => Ok(u64::try_from(found).unwrap_or(size).min(size)),
        Err(Errno::ENXIO) => Ok(size),
        Err(Errno::EINVAL) if matches!(whence, Whence::SeekData) => Ok(at),
        Err(Errno::EINVAL) => Ok(size),
        Err(errno) => Err(errno.into()),
    }
}

/// Fills in what every kind of member has.
fn meta(header: &mut Header, records: &mut Records, meta: &Meta) {
    header.set_mode(meta.mode);
    let (uid, gid) = (u64::from(meta.uid), u64::from(meta.gid));
    header.set_uid(if uid > ID_LIMIT { 0 } else { uid });
    header.set_gid(if gid > ID_LIMIT { 0 } else { gid });
    if uid > ID_LIMIT {
        records.add(b"uid", uid.to_string().as_bytes());
    }
    if gid > ID_LIMIT {
        records.add(b"gid", gid.to_string().as_bytes());
    }
    let Stamp { sec, nsec } = meta.mtime;
    let whole = u64::try_from(sec).ok().filter(|sec| *sec <= NUMBER_LIMIT);
    header.set_mtime(whole.unwrap_or(0));
    if whole.is_none() || nsec != 0 {
        records.add(b"mtime", meta.mtime.to_pax().as_bytes());
    }
    // Last, since some readers stop at a value that holds a newline.
    for (name, value) in &meta.xattrs {
        records.add_xattr(name, value);
    }
}

/// Puts a name into a header's two fields; false when only a part of it fits.
fn set_name(header: &mut Header, name: &[u8]) -> bool {
    let fields = header.as_ustar_mut().expect("made as ustar");
    if name.len() <= fields.name.len() {
        fields.name[..name.len()].copy_from_slice(name);
        return true;
    }
    // The prefix and the rest, without the slash between them, and neither of them empty.
    let split = (1..name.len() - 1).find(|&at| {
        name[at] == b'/' && at <= fields.prefix.len() && name.len() - at - 1 <= fields.name.len()
    });
    if let Some(at) = split {
        fields.prefix[..at].copy_from_slice(&name[..at]);
        fields.name[..name.len() - at - 1].copy_from_slice(&name[at + 1..]);
        return true;
    }
    let part = fields.name.len();
    fields.name.copy_from_slice(&name[..part]);
    false
}
