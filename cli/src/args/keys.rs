//! Whom archives are encrypted to, and what opens them.

use std::{ffi::OsStr, path::PathBuf};

use clap::{Arg, Command, Error, ValueHint, builder::TypedValueParser, error::ErrorKind};
use kybernate_age::Recipient;

/// What opens an encrypted archive
#[derive(Debug, clap::Args)]
pub struct Keys {
    /// File of age identities that opens an encrypted archive, as `age-keygen` makes it.
    /// Repeatable [default: the setting restore.identities]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub identity: Vec<PathBuf>,
}

/// `kybernate encrypt`
#[derive(Debug, clap::Args)]
pub struct Encrypt {
    /// The archive
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Where the encrypted one goes; its directory must exist
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Age recipient who can read it. Repeatable [default: the setting checkpoint.encrypt_to]
    #[arg(long, value_name = "RECIPIENT", value_parser = RecipientParser)]
    pub recipient: Vec<Recipient>,
    /// Replace a file that exists
    #[arg(long)]
    pub force: bool,
}

/// `kybernate decrypt`
#[derive(Debug, clap::Args)]
pub struct Decrypt {
    /// The archive
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Where the plain one goes, mode 0600; its directory must exist
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    #[command(flatten)]
    pub keys: Keys,
    /// Replace a file that exists
    #[arg(long)]
    pub force: bool,
}

/// Reads a recipient. clap's message would repeat the value, which is a secret key where somebody
/// has mistaken one for the other.
#[derive(Debug, Clone, Copy)]
pub struct RecipientParser;

impl TypedValueParser for RecipientParser {
    type Value = Recipient;

    fn parse_ref(&self, cmd: &Command, _: Option<&Arg>, value: &OsStr) -> Result<Recipient, Error> {
        value.to_string_lossy().parse().map_err(|error| {
            let message = format!("--recipient: {error}\n");
            Error::raw(ErrorKind::ValueValidation, message).with_cmd(cmd)
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use kybernate_age::Identity;

    use crate::args::Args;

    #[test]
    fn a_secret_key_that_is_no_recipient_is_not_repeated() {
        let secret = Identity::generate().unwrap().to_secret_text();
        let file = format!("# created: 2026-01-02\n{}\n", *secret);
        for value in [&*secret, &file] {
            for command in ["encrypt", "checkpoint"] {
                let line = ["kybernate", command, "a", "-o", "b", "--recipient", value];
                let error = Args::try_parse_from(line).unwrap_err();
                for said in [error.to_string(), format!("{error:?}")] {
                    assert!(!said.contains(&secret[15..]), "{said}");
                }
                let said = error.to_string();
                assert!(said.contains("--recipient: a secret key"), "{said}");
            }
        }
        let line = [
            "kybernate",
            "encrypt",
            "a",
            "-o",
            "b",
            "--recipient",
            "age1x",
        ];
        let said = Args::try_parse_from(line).unwrap_err().to_string();
        assert!(said.contains("age1x"), "{said}");
    }
}
