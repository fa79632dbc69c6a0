//! Options for CRIU that a pod wishes for.

use std::{fmt, str::FromStr};

use super::{WishError, WishSettings, or_none};
use crate::size;

/// Options that a pod gives to CRIU for one container. Parsed from a list with commas,
/// `name` or `name=value`. What is not here is not for pods: options that name files or programs
/// of the host, that let CRIU take mounts from it, or that it takes at restore alone: one file
/// serves both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CriuOptions(Vec<CriuOption>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct CriuOption {
    name: &'static str,
    value: Option<u64>,
}

/// What an option takes.
#[derive(Debug, Clone, Copy)]
enum Takes {
    Nothing,
    Seconds,
    Size,
}

/// - `force-irmap`: find the files of inotify watches by name when their handles can't be opened.
/// - `ghost-fiemap`: dump open files that were deleted by their extents, without the holes.
/// - `ghost-limit`: the largest such file. It is held in the node's memory during the dump.
/// - `timeout`: how long CRIU waits for processes to stop.
const OPTIONS: [(&str, Takes); 4] = [
    ("force-irmap", Takes::Nothing),
    ("ghost-fiemap", Takes::Nothing),
    ("ghost-limit", Takes::Size),
    ("timeout", Takes::Seconds),
];

/// CRIU's own limit is that of an unsigned number; nobody waits longer for a frozen container.
const LONGEST_TIMEOUT: u64 = 3600;

impl CriuOptions {
    /// Fails for the first one that the administrator does not grant.
    pub fn granted(&self, settings: &WishSettings) -> Result<(), WishError> {
        for CriuOption { name, .. } in &self.0 {
            if !settings.criu_options.iter().any(|granted| granted == name) {
                return Err(WishError::NotGranted {
                    what: format!("CRIU's {name}"),
                    granted: or_none(&settings.criu_options.join(",")),
                    setting: "wishes.criu_options",
                });
            }
        }
        Ok(())
    }

    /// The lines of a CRIU configuration file.
    #[must_use]
    pub fn lines(&self) -> String {
        self.0
            .iter()
            .map(|option| match option.value {
                Some(value) => format!("{} {value}\n", option.name),
                None => format!("{}\n", option.name),
            })
            .collect()
    }
}

impl FromStr for CriuOptions {
    type Err = WishError;

    fn from_str(text: &str) -> Result<Self, WishError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut options: Vec<CriuOption> = Vec::new();
        for item in text.split(',').map(str::trim) {
            let (name, value) = match item.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (item, None),
            };
            let Some((name, takes)) = OPTIONS.into_iter().find(|(known, _)| *known == name) else {
                return Err(WishError::Option(name.into()));
            };
            let bad = |usage| WishError::Value {
                text: item.into(),
                usage,
            };
            if options.iter().any(|option| option.name == name) {
                return Err(bad("every option once"));
            }
            let value = match (takes, value) {
                (Takes::Nothing, None) => None,
                (Takes::Nothing, Some(_)) => return Err(bad("the option without a value")),
                (Takes::Seconds, value) => Some(
                    value
                        .and_then(|value| value.parse().ok())
                        .filter(|seconds| (1..=LONGEST_TIMEOUT).contains(seconds))
                        .ok_or_else(|| bad("timeout=SECONDS, from 1 to 3600"))?,
                ),
                (Takes::Size, value) => Some(
                    value
                        .and_then(|value| size::parse(value).ok())
                        .filter(|bytes| *bytes > 0)
                        .ok_or_else(|| bad("ghost-limit=SIZE, like 4GiB"))?,
                ),
            };
            options.push(CriuOption { name, value });
        }
        Ok(Self(options))
    }
}

impl fmt::Display for CriuOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, option) in self.0.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            write!(f, "{comma}{}", option.name)?;
            if let Some(value) = option.value {
                write!(f, "={value}")?;
            }
        }
        Ok(())
    }
}

/// Whether there is an option of this name.
pub(super) fn is_known(name: &str) -> bool {
    OPTIONS.iter().any(|(known, _)| *known == name)
}

pub(super) fn option_names() -> String {
    OPTIONS.map(|(name, _)| name).join(", ")
}
