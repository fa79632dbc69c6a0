//! Why there are no settings.

use std::{
    io,
    path::{Path, PathBuf},
};

use kybernate_age::{KeyError, may_hold_secret};

use crate::size::SizeError;

/// Why settings could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file exists and can't be read.
    #[error("cannot read settings {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what this build understands.
    #[error("settings {path} do not parse: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        source: Box<toml::de::Error>,
    },
    /// The same of a text with a secret key in it, which is not repeated.
    #[error("settings {path} do not parse: line {line}: {reason}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why not.
        reason: String,
    },
    /// An environment variable does not parse.
    #[error("environment variable {name}={value:?} is not a whole number")]
    Number {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// An environment variable is no size.
    #[error("environment variable {name}: {source}")]
    Size {
        /// The variable.
        name: &'static str,
        /// Its value, and what it should be.
        source: SizeError,
    },
}

impl SettingsError {
    /// The error for a text that does not parse. The parser shows the line, and may repeat a value.
    pub(crate) fn parse(path: &Path, text: &str, error: toml::de::Error) -> Self {
        if !may_hold_secret(text) {
            return Self::Parse {
                path: path.into(),
                source: Box::new(error),
            };
        }
        let start = error.span().map_or(0, |span| span.start);
        let before = text.bytes().take(start);
        Self::Secret {
            path: path.into(),
            line: before.filter(|byte| *byte == b'\n').count() + 1,
            reason: match error.message() {
                message if may_hold_secret(message) => KeyError::Secret.to_string(),
                message => message.to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, layers};

    #[test]
    fn a_secret_key_among_the_settings_is_not_repeated() {
        let secret = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
        for line in [
            format!("encrypt_to = [{secret:?}]"),
            format!("encrypt_to = {secret:?}"),
            format!("encrypt_to = [{:?}]", secret.to_lowercase()),
            format!("timeout_s = {secret:?}"),
            format!("encrypt_to = [{secret}]"),
            format!("{secret} = 1"),
        ] {
            let text = format!("[checkpoint]\nlevel = 'fast'\n{line}\n");
            let (path, node) = (Path::new("/c.toml"), Path::new("/node.toml"));
            for error in [
                Settings::parse(path, &text).unwrap_err(),
                layers::settings((node, "[node]\n"), (path, &text)).unwrap_err(),
            ] {
                for said in [error.to_string(), format!("{error:?}")] {
                    assert!(!said.to_uppercase().contains(&secret[16..]), "{said}");
                    assert!(said.contains("/c.toml"), "{said}");
                }
                let said = error.to_string();
                assert!(said.contains("line 3"), "{said}");
            }
        }
    }
}
