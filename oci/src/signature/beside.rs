//! The file of signatures beside an archive. Others may have put anything there.

use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::fcntl::OFlag;

use super::place;

/// The most that such a file may hold, in bytes: thousands of signatures.
pub const SIZE_MAX: u64 = 1 << 20;

/// Reads the signatures beside `archive`; `None` where there is no file of them.
///
/// # Errors
/// It does not open or is a link; it is no regular file, no text, or larger than [`SIZE_MAX`].
pub fn read_beside(archive: &Path) -> io::Result<Option<String>> {
    // Without O_NONBLOCK a FIFO would block here.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(place(archive));
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(SIZE_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > SIZE_MAX {
        return Err(io::Error::other("it has more than 1 MiB"));
    }
    String::from_utf8(text)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn what_is_no_small_file_of_text_is_an_error_and_not_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a");
        let beside = place(&archive);
        let read = || read_beside(&archive);
        assert_eq!(read().unwrap(), None);
        let full = "x".repeat(SIZE_MAX as usize);
        fs::write(&beside, &full).unwrap();
        assert_eq!(read().unwrap(), Some(full.clone()));
        fs::write(&beside, full + "x").unwrap();
        assert!(read().unwrap_err().to_string().contains("1 MiB"));
        fs::write(&beside, [0xff]).unwrap();
        assert_eq!(read().unwrap_err().kind(), io::ErrorKind::InvalidData);

        fs::rename(&beside, dir.path().join("else")).unwrap();
        symlink(dir.path().join("else"), &beside).unwrap();
        assert!(read().is_err());
        fs::remove_file(&beside).unwrap();
        mkfifo(&beside, Mode::S_IRWXU).unwrap();
        assert!(read().unwrap_err().to_string().contains("regular"));
        fs::remove_file(&beside).unwrap();
        fs::create_dir(&beside).unwrap();
        assert!(read().is_err());
        // No directory of the archive: nothing there either.
        assert_eq!(read_beside(&dir.path().join("none/a")).unwrap(), None);
    }
}
