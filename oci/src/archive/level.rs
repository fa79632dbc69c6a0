//! How hard to compress.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How hard to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// At the speed of the disk: what arrives while the disk waits is stored, unless a sample
    /// compresses very well; the rest as at the default level.
    Fast,
    /// About half the size for ordinary memory, at several hundred MB/s per core.
    #[default]
    Default,
    /// Small before fast.
    High,
    /// A level of zstd itself, -100 to 22.
    Zstd(i32),
}

/// Not a level.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is no compression level: use fast, default, high or a number from -100 to 22")]
pub struct LevelError {
    found: String,
}

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        match text {
            "fast" => Ok(Self::Fast),
            "default" => Ok(Self::Default),
            "high" => Ok(Self::High),
            number => match number.parse() {
                Ok(level) if (-100..=22).contains(&level) => Ok(Self::Zstd(level)),
                _ => Err(LevelError {
                    found: number.to_owned(),
                }),
            },
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fast => f.write_str("fast"),
            Self::Default => f.write_str("default"),
            Self::High => f.write_str("high"),
            Self::Zstd(level) => level.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_print_as_they_parse() {
        for text in ["fast", "default", "high", "-7", "0", "22"] {
            assert_eq!(text.parse::<Level>().unwrap().to_string(), text);
        }
        for text in ["", "Fast", "23", "-101", "1.5"] {
            assert!(text.parse::<Level>().is_err(), "{text:?}");
        }
    }
}
