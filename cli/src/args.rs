//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use kybernate_age::Recipient;
use kybernate_config::{names::KUBERNETES_NAMESPACE, size};
use kybernate_hooks::client::Target;
use kybernate_oci::archive::Level;

use crate::recreate::MountFlag;

mod keys;

use keys::RecipientParser;
pub use keys::{Decrypt, Encrypt, Keys};

/// Checkpoint, restore, inspect and verify containers.
#[derive(Debug, Parser)]
#[command(name = "kybernate", version, arg_required_else_help = true)]
pub struct Args {
    /// containerd's gRPC socket [default: the setting containerd.socket]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// One variant per command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a running container into an archive
    Checkpoint(Checkpoint),
    /// Create and start a container in a pod sandbox from an archive
    Restore(Restore),
    /// Show what an archive holds and where it comes from
    Inspect(Inspect),
    /// Check every byte of an archive, and who has signed it
    Verify(Verify),
    /// Sign an archive: its signature goes into FILE.sig beside it
    Sign(Sign),
    /// Encrypt an archive; its signatures stay good
    Encrypt(Encrypt),
    /// Write an encrypted archive in plain text; its signatures stay good
    Decrypt(Decrypt),
    /// Write entries of an archive to a directory, verifying all of it
    Extract(Extract),
    /// Write one entry of an archive to standard output
    Cat(Cat),
    /// List the entries of an archive
    Ls(Ls),
    /// Show what this node can and can't do, and what to do about it
    Doctor(Doctor),
    /// Install Kybernate on this node: programs, containerd's runtime, the NRI plugin
    Install(Install),
    /// Take an installation away; every file is as it was before
    Uninstall(Uninstall),
    /// Install over what is installed, with the same choices
    Upgrade(Install),
    /// Show what is installed, and whether it is still as it was installed
    Status(Status),
    /// Show settings
    Config {
        /// What to show
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write manual pages
    Man {
        /// Existing directory for one page per command; without it the main page goes to
        /// standard output
        #[arg(value_hint = ValueHint::DirPath)]
        directory: Option<PathBuf>,
    },
    /// Run a line of shell in the namespaces of process 1
    #[command(name = crate::install::ENTER, hide = true)]
    EnterNode {
        /// The line
        line: String,
    },
}

/// `kybernate checkpoint`
#[derive(Debug, clap::Args)]
pub struct Checkpoint {
    /// Container: its id, the start of it, or namespace/pod/container
    pub target: Target,
    /// Where the archive goes; its directory must exist
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// containerd namespace of an id
    #[arg(short, long, default_value = KUBERNETES_NAMESPACE)]
    pub namespace: String,
    /// Compression: fast, default, high or a zstd level [default: the setting checkpoint.level]
    #[arg(long, value_parser = level)]
    pub level: Option<String>,
    /// Memory for what waits for compression: auto or a size like 256MiB [default: the setting
    /// checkpoint.buffer]
    #[arg(long, value_parser = buffer)]
    pub buffer: Option<String>,
    /// Encrypt the archive to this age recipient, beside those of the setting
    /// checkpoint.encrypt_to. Repeatable
    #[arg(long, value_name = "RECIPIENT", value_parser = RecipientParser)]
    pub recipient: Vec<Recipient>,
    /// Stop the container when its archive is complete
    #[arg(long)]
    pub exit: bool,
    /// Roll back after this time: seconds, or like 90s or 10m [default: the setting
    /// checkpoint.timeout_s]
    #[arg(long, value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Replace a file that exists
    #[arg(long)]
    pub force: bool,
    /// Try even if the archive is not expected to fit
    #[arg(long)]
    pub no_space_check: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kybernate restore`
#[derive(Debug, clap::Args)]
pub struct Restore {
    /// The archive
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Ready pod sandbox of class `kybernate`: its id, the start of it, or namespace/pod
    #[arg(long)]
    pub pod: String,
    /// Name of the new container [default: the archived one's]
    #[arg(long)]
    pub name: Option<String>,
    /// Image [default: the archived container's]
    #[arg(long)]
    pub image: Option<String>,
    /// Mount a host directory or file; the archive's own mounts are not taken. Repeatable
    #[arg(long, value_name = "HOST:CONTAINER[:ro]")]
    pub mount: Vec<MountFlag>,
    /// Log file, relative to the pod's log directory [default: NAME/ATTEMPT.log]
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<String>,
    // For this command alone: on its node the shim uses the setting restore.identities.
    #[command(flatten)]
    pub keys: Keys,
    /// Create the container and leave starting it to others
    #[arg(long)]
    pub no_start: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kybernate inspect`
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// The archive
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub keys: Keys,
    /// Print sizes and the whole manifest as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kybernate sign`
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The archive
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// PEM file of an Ed25519 private key, as `openssl genpkey -algorithm ed25519` makes it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: PathBuf,
    #[command(flatten)]
    pub keys: Keys,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// `kybernate verify`
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The archive
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Fail unless the owner of this public key has signed the archive: a PEM file, as
    /// `openssl pkey -pubout` makes it. Repeatable, any one counts
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: Vec<PathBuf>,
    #[command(flatten)]
    pub keys: Keys,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// `kybernate extract`
#[derive(Debug, clap::Args)]
pub struct Extract {
    /// The archive
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub keys: Keys,
    /// Where the entries go; created if it does not exist. Nothing in it is overwritten
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Entries or their directories [default: all]
    pub entries: Vec<String>,
}

/// `kybernate cat`
#[derive(Debug, clap::Args)]
pub struct Cat {
    /// The archive
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub keys: Keys,
    /// Name of the entry, as `kybernate ls` prints it
    pub entry: String,
}

/// `kybernate ls`
#[derive(Debug, clap::Args)]
pub struct Ls {
    /// The archive
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub keys: Keys,
    /// With sizes and digests
    #[arg(short, long)]
    pub long: bool,
}

/// `kybernate doctor`
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// First undo what a checkpoint or restore has left whose shim died
    #[arg(long)]
    pub repair: bool,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `install`, `upgrade` and `uninstall` have in common
#[derive(Debug, clap::Args)]
pub struct NodeFlags {
    /// The node's root directory
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    pub root: PathBuf,
    /// Run the node's programs in the namespaces of process 1: for a container that shares the
    /// host's PID namespace and has its root at --root
    #[arg(long)]
    pub host: bool,
    /// The kind of node [default: detected]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Set a path or command of the node, one of those that `kybernate config show` lists below
    /// node. Repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub node: Vec<String>,
    /// Print a unified diff of every file, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Restart no service
    #[arg(long)]
    pub no_restart: bool,
    /// How long containerd may take to come back before everything is undone
    #[arg(long, value_parser = duration, default_value = "90s")]
    pub timeout: Duration,
}

/// `kybernate install` and `kybernate upgrade`
#[derive(Debug, clap::Args)]
pub struct Install {
    #[command(flatten)]
    pub node: NodeFlags,
    /// Directory with Kybernate's programs [default: that of this program]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub from: Option<PathBuf>,
    /// Put the CRI hooks between kubelet and containerd, as a service
    #[arg(long, conflicts_with = "without_hooks")]
    pub with_hooks: bool,
    /// Take the CRI hooks away
    #[arg(long)]
    pub without_hooks: bool,
    /// Let containerd launch the NRI plugin (default)
    #[arg(long, conflicts_with = "without_nri")]
    pub with_nri: bool,
    /// Install no NRI plugin, and leave NRI's switch alone
    #[arg(long)]
    pub without_nri: bool,
    /// containerd's runtime type of the handler [default: io.containerd.runc.v2]
    #[arg(long, value_name = "TYPE")]
    pub runtime_type: Option<String>,
}

/// `kybernate uninstall`
#[derive(Debug, clap::Args)]
pub struct Uninstall {
    #[command(flatten)]
    pub node: NodeFlags,
    /// Go on though pods of the class run
    #[arg(long)]
    pub force: bool,
}

/// `kybernate status`
#[derive(Debug, clap::Args)]
pub struct Status {
    /// The node's root directory
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    pub root: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kybernate config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every setting, its value, and where that comes from
    Show(ConfigShow),
}

/// `kybernate config show`
#[derive(Debug, clap::Args)]
pub struct ConfigShow {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
}

fn level(text: &str) -> Result<String, String> {
    text.parse::<Level>()
        .map(|_| text.to_owned())
        .map_err(|e| e.to_string())
}

fn buffer(text: &str) -> Result<String, String> {
    match text {
        "auto" => Ok(text.to_owned()),
        size => size::parse(size)
            .map(|_| text.to_owned())
            .map_err(|e| e.to_string()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    };
    match parsed {
        Ok(duration) if duration.is_zero() => Err("write more than nothing".into()),
        // A year: beyond it clocks and timers overflow.
        Ok(duration) if duration > Duration::from_secs(31_536_000) => {
            Err("write a year at most".into())
        }
        Ok(duration) => Ok(duration),
        Err(_) => Err("write seconds, or a time like 90s, 10m or 1h".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn values_are_checked_before_anything_is_done() {
        let parse = |extra: &[&str]| {
            let line = ["kybernate", "checkpoint", "c1", "-o", "f"]
                .iter()
                .chain(extra)
                .copied();
            Args::try_parse_from(line)
        };
        for good in [
            &[][..],
            &["--level", "high"],
            &["--level", "7"],
            &["--buffer", "256MiB"],
            &["--timeout", "90"],
            &["--timeout", "10m"],
        ] {
            assert!(parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["--level", "best"][..],
            &["--buffer", "some"],
            &["--timeout", "0"],
            &["--timeout", "-1"],
            &["--timeout", "99999999999999"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
