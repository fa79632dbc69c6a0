//! `request.json` of a staging directory: reading it, and noticing that its client is gone.
//! The format is [`kybernate_config::request`].

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use kybernate_age::Recipient;
use kybernate_config::{
    request::{CheckpointRequest, IncludedFile, REQUEST_FILE, REQUEST_VERSION, is_staging},
    settings::CheckpointSettings,
    size::{self, SizeError},
};
use kybernate_oci::archive::{Level, LevelError};

/// A request is a few lines; anything larger is none.
const MAX_REQUEST: u64 = 64 * 1024;
/// `auto` takes this part of the memory that is available.
const AUTO_SHARE: u64 = 2;
/// The least that `auto` takes: below it the dump waits for every frame.
const AUTO_LEAST: u64 = 64 << 20;

/// Why a request can't be served.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The file is there and can't be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error("{path} belongs to uid {uid}; only a request of the shim's own user counts")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It is not what this version understands.
    #[error("{path} does not parse: {source}; client and shim must be of the same release")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        source: serde_json::Error,
    },
    /// Another release wrote it.
    #[error(
        "the request has version {found}, this shim serves {REQUEST_VERSION}; \
         client and shim must be of the same release"
    )]
    Version {
        /// What it says.
        found: u32,
    },
    /// The level is none.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// The buffer is no size.
    #[error("buffer: {0}")]
    Buffer(#[from] SizeError),
    /// A file name that could leave the archive's top level or hide one of its own entries.
    #[error("the request includes {0:?}; only a plain name that the archive does not use is taken")]
    Include(String),
}

/// A request that is being served.
#[derive(Debug)]
pub struct Request {
    /// The staging directory.
    pub directory: PathBuf,
    /// Compression.
    pub level: Level,
    /// Bytes of frames in memory.
    pub buffer: u64,
    /// When to give up, whatever becomes of the wall clock meanwhile.
    pub deadline: Option<Instant>,
    /// Files to add: name and absolute path.
    pub include: Vec<(String, PathBuf)>,
    /// Who can read the archive; nobody in particular if empty.
    pub encrypt_to: Vec<Recipient>,
    /// Who asked.
    pub requester: Option<String>,
    file: File,
}

impl Request {
    /// Reads the request of a staging directory; `None` where there is none.
    pub fn read(
        directory: &Path,
        defaults: &CheckpointSettings,
    ) -> Result<Option<Self>, RequestError> {
        let path = directory.join(REQUEST_FILE);
        let read_error = |source| RequestError::Read {
            path: path.clone(),
            source,
        };
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC;
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&path)
        {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(read_error(e)),
        };
        let uid = file.metadata().map_err(read_error)?.uid();
        if uid != nix::unistd::geteuid().as_raw() {
            return Err(RequestError::Owner { path, uid });
        }
        let mut text = String::new();
        (&file)
            .take(MAX_REQUEST)
            .read_to_string(&mut text)
            .map_err(read_error)?;
        let request: CheckpointRequest =
            serde_json::from_str(&text).map_err(|source| RequestError::Parse {
                path: path.clone(),
                source,
            })?;
        Self::resolve(directory, file, request, defaults).map(Some)
    }

    fn resolve(
        directory: &Path,
        file: File,
        request: CheckpointRequest,
        defaults: &CheckpointSettings,
    ) -> Result<Self, RequestError> {
        if request.version != REQUEST_VERSION {
            return Err(RequestError::Version {
                found: request.version,
            });
        }
        let level = request
            .level
            .as_deref()
            .unwrap_or(&defaults.level)
            .parse::<Level>()?;
        let buffer = match request.buffer.as_deref().unwrap_or(&defaults.buffer) {
            "auto" => auto_buffer(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            text => size::parse(text)?,
        };
        let include = request
            .include
            .into_iter()
            .map(|IncludedFile { name, path }| {
                if is_free_name(&name) {
                    Ok((name, directory.join(path)))
                } else {
                    Err(RequestError::Include(name))
                }
            })
            .collect::<Result<_, _>>()?;
        // A request adds readers; it can't do without those of the settings.
        let mut encrypt_to = defaults.encrypt_to.clone();
        for recipient in request.encrypt_to {
            if !encrypt_to.contains(&recipient) {
                encrypt_to.push(recipient);
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            level,
            buffer,
            deadline: request
                .deadline
                .and_then(|s| Instant::now().checked_add(left(s, SystemTime::now())?)),
            include,
            encrypt_to,
            requester: request.requester,
            file,
        })
    }

    /// Whether the client has let go of its lock, which it does by dying as well.
    #[must_use]
    pub fn client_is_gone(&self) -> bool {
        match self.file.try_lock_shared() {
            Ok(()) => {
                // Give it back: somebody may look again.
                let _ = self.file.unlock();
                true
            }
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(_)) => true,
        }
    }

    /// Removes the staging directory if the client has gone: nobody else does so soon. What does
    /// not have the name of one stays.
    pub fn remove_if_abandoned(&self) {
        let name = self.directory.file_name().unwrap_or_default();
        if !is_staging(name) || !self.client_is_gone() {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            // The client may be doing the same.
            tracing::debug!(%error, path = %self.directory.display(), "a staging directory stays");
        }
    }
}

/// How long it is until a deadline in seconds of the wall clock; `None` for one that no clock
/// reaches. Asked once, at the beginning: a clock that is set during a checkpoint neither ends it
/// nor lets it go on for ever.
fn left(deadline: u64, now: SystemTime) -> Option<Duration> {
    let deadline = UNIX_EPOCH.checked_add(Duration::from_secs(deadline))?;
    Some(deadline.duration_since(now).unwrap_or_default())
}

/// Names that a client may add. The rest are the shim's own.
fn is_free_name(name: &str) -> bool {
    const OWN: [&str; 8] = [
        kybernate_oci::manifest::FILE,
        "checkpoint",
        "spec.dump",
        "rootfs-diff.tar",
        "deleted.files",
        "devshm-checkpoint.tar",
        "dump.log",
        "stats-dump",
    ];
    !name.is_empty()
        && name.len() <= 100
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        && !OWN.contains(&name)
}

/// Half of the available memory that `/proc/meminfo` names.
fn auto_buffer(meminfo: &str) -> u64 {
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024);
    (available / AUTO_SHARE).max(AUTO_LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staging(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(REQUEST_FILE), text).unwrap();
        dir
    }

    fn read(text: &str) -> Result<Option<Request>, RequestError> {
        Request::read(staging(text).path(), &CheckpointSettings::default())
    }

    #[test]
    fn a_directory_without_a_request_is_containerds() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            Request::read(dir.path(), &CheckpointSettings::default())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn the_request_wins_over_the_settings() {
        let request = read(r#"{"version":1,"level":"fast","buffer":"1MiB","deadline":5}"#)
            .unwrap()
            .unwrap();
        assert_eq!(request.level, Level::Fast);
        assert_eq!(request.buffer, 1 << 20);
        assert!(request.deadline.unwrap() <= Instant::now());
        assert_eq!(
            read(r#"{"version":1}"#).unwrap().unwrap().level,
            Level::Default
        );
    }

    #[test]
    fn a_request_adds_readers_and_never_drops_those_of_the_settings() {
        let new = || {
            kybernate_age::Identity::generate()
                .unwrap()
                .recipient()
                .clone()
        };
        let (node, more) = (new(), new());
        let settings = CheckpointSettings {
            encrypt_to: vec![node.clone()],
            ..CheckpointSettings::default()
        };
        for (asked, expected) in [
            (String::new(), vec![node.clone()]),
            (r#","encrypt_to":[]"#.into(), vec![node.clone()]),
            (
                format!(r#","encrypt_to":["{more}","{node}"]"#),
                vec![node.clone(), more.clone()],
            ),
        ] {
            let dir = staging(&format!(r#"{{"version":1{asked}}}"#));
            let request = Request::read(dir.path(), &settings).unwrap().unwrap();
            assert_eq!(request.encrypt_to, expected, "{asked}");
        }
        let error = read(r#"{"version":1,"encrypt_to":["age1x"]}"#).unwrap_err();
        assert!(error.to_string().contains("age1x"), "{error}");
    }

    #[test]
    fn a_deadline_is_so_many_seconds_from_now() {
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
        let ahead = Some(Duration::from_millis(9500));
        assert_eq!(left(1_700_000_010, now), ahead);
        assert_eq!(left(1_700_000_000, now), Some(Duration::ZERO));
        let text = format!(r#"{{"version":1,"deadline":{}}}"#, u64::MAX);
        assert_eq!(read(&text).unwrap().unwrap().deadline, None);
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        for (text, part) in [
            (r#"{"version":2}"#, "version 2"),
            (r#"{"version":1,"levle":"fast"}"#, "levle"),
            (r#"{"version":1,"level":"quick"}"#, "quick"),
            (r#"{"version":1,"buffer":"much"}"#, "much"),
            (
                r#"{"version":1,"include":[{"name":"../x","path":"x"}]}"#,
                "../x",
            ),
            (
                r#"{"version":1,"include":[{"name":"spec.dump","path":"x"}]}"#,
                "spec.dump",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_link_in_place_of_the_request_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("other"), r#"{"version":1}"#).unwrap();
        std::os::unix::fs::symlink("other", dir.path().join(REQUEST_FILE)).unwrap();
        assert!(Request::read(dir.path(), &CheckpointSettings::default()).is_err());
    }

    #[test]
    fn the_client_is_there_for_as_long_as_it_holds_the_lock() {
        let dir = staging(r#"{"version":1}"#);
        let client = File::open(dir.path().join(REQUEST_FILE)).unwrap();
        client.lock().unwrap();
        let request = Request::read(dir.path(), &CheckpointSettings::default())
            .unwrap()
            .unwrap();
        assert!(!request.client_is_gone());
        drop(client);
        assert!(request.client_is_gone());
    }

    #[test]
    fn an_abandoned_staging_directory_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, stays) in [("backups", true), (".kybernate-x7Qz3a", false)] {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join(REQUEST_FILE), r#"{"version":1}"#).unwrap();
            let client = File::open(path.join(REQUEST_FILE)).unwrap();
            client.lock().unwrap();
            let request = Request::read(&path, &CheckpointSettings::default())
                .unwrap()
                .unwrap();
            request.remove_if_abandoned();
            assert!(path.exists());
            drop(client);
            request.remove_if_abandoned();
            assert_eq!(path.exists(), stays, "{name}");
        }
    }

    #[test]
    fn auto_is_half_of_what_is_available() {
        assert_eq!(
            auto_buffer("MemTotal: 9 kB\nMemAvailable:  1048576 kB\n"),
            512 << 20
        );
        assert_eq!(auto_buffer(""), AUTO_LEAST);
    }
}
