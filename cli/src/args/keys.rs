//! Whom archives are encrypted to, and what opens them.

use std::path::PathBuf;

use clap::ValueHint;
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
    #[arg(long, value_name = "RECIPIENT")]
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
