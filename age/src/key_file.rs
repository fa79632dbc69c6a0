//! Files of identities, as `age-keygen` writes them: a key a line, `#` begins a comment.

use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::key::{Identity, KeyError};

/// Keys are a few lines.
const SIZE_MAX: u64 = 64 << 10;
/// Permissions of others.
const OTHERS: u32 = 0o077;
/// Opens a FIFO without waiting for its writer.
const O_NONBLOCK: i32 = 0o4000;

/// Why there are no identities to be had from a file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It does not open.
    #[error("cannot read the identities in {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is none.
    #[error("{} is no small regular file, so no file of identities", path.display())]
    NotFile {
        /// What it is not.
        path: PathBuf,
    },
    /// Others may read or change it.
    #[error(
        "{} has mode {mode:04o}: secret keys are taken only from files that nobody else may read \
         or change; `chmod 0600` it, and replace the keys if others have read them",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Somebody else owns it.
    #[error(
        "{} belongs to uid {uid}: secret keys are taken only from files of root or of the user \
         who reads them; `chown root` it",
        path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// A line is none.
    #[error("line {line} of {} is {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why not.
        source: KeyError,
    },
    /// It has comments alone.
    #[error("{} holds no identity; `age-keygen -o FILE` makes one", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the identities in a file that is its owner's alone.
///
/// # Errors
/// The file is not there, is open to others, or is not what `age-keygen` writes.
pub fn read(path: &Path) -> Result<Vec<Identity>, KeyFileError> {
    let failed = |source| KeyFileError::Read {
        path: path.into(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() || facts.len() > SIZE_MAX {
        return Err(KeyFileError::NotFile { path: path.into() });
    }
    judge(path, facts.mode(), facts.uid(), our_uid())?;
    let mut text = Zeroizing::new(String::with_capacity(SIZE_MAX as usize + 1));
    file.take(SIZE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    parse(path, &text)
}

/// The effective user of this process.
fn our_uid() -> u32 {
    // The owner of what a process has in /proc is its effective user.
    std::fs::metadata("/proc/self").map_or(0, |facts| facts.uid())
}

fn judge(path: &Path, mode: u32, uid: u32, us: u32) -> Result<(), KeyFileError> {
    let mode = mode & 0o7777;
    if uid != 0 && uid != us {
        return Err(KeyFileError::Owner {
            path: path.into(),
            uid,
        });
    }
    if mode & OTHERS != 0 {
        return Err(KeyFileError::Exposed {
            path: path.into(),
            mode,
        });
    }
    Ok(())
}

fn parse(path: &Path, text: &str) -> Result<Vec<Identity>, KeyFileError> {
    let mut identities = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        identities.push(line.parse().map_err(|source| KeyFileError::Line {
            path: path.into(),
            line: index + 1,
            source,
        })?);
    }
    if identities.is_empty() {
        return Err(KeyFileError::Empty { path: path.into() });
    }
    Ok(identities)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

    use super::*;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn keys_come_from_files_like_those_of_age_keygen() {
        let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let text = format!(
            "# created: 2026-01-02T03:04:05Z\n# public key: {}\n{}\n\n{}\r\n",
            one.recipient(),
            *one.to_secret_text(),
            *two.to_secret_text()
        );
        for mode in [0o600, 0o400] {
            let (_directory, path) = file(&text, mode);
            let read = read(&path).unwrap();
            assert_eq!(read[0].recipient(), one.recipient());
            assert_eq!(read[1].recipient(), two.recipient());
            assert_eq!(read.len(), 2);
        }
    }

    #[test]
    fn a_file_that_others_can_reach_is_refused() {
        let secret = Identity::generate().unwrap().to_secret_text();
        for mode in [0o640, 0o604, 0o620, 0o777] {
            let (_directory, path) = file(&secret, mode);
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains("chmod 0600") && error.contains(&format!("{mode:04o}")),
                "{error}"
            );
        }
        let path = Path::new("/k");
        assert!(judge(path, 0o100600, 0, 1000).is_ok());
        assert!(judge(path, 0o100600, 1000, 1000).is_ok());
        let error = judge(path, 0o100600, 1000, 0).unwrap_err().to_string();
        assert!(
            error.contains("uid 1000") && error.contains("chown root"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_file_of_identities_is_named_without_its_content() {
        for (text, part) in [
            ("# nothing\n", "holds no identity"),
            ("# a\nage1somebody\n", "line 2"),
            ("hunter2\n", "line 1"),
        ] {
            let (_directory, path) = file(text, 0o600);
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains(part) && !error.contains("hunter2"),
                "{error}"
            );
        }
        let (directory, path) = file(&"#".repeat(1 << 17), 0o600);
        assert!(matches!(read(&path), Err(KeyFileError::NotFile { .. })));
        assert!(matches!(
            read(directory.path()),
            Err(KeyFileError::NotFile { .. })
        ));
        let none = read(&path.with_extension("none")).unwrap_err().to_string();
        assert!(none.contains("key.none"), "{none}");
    }
}
