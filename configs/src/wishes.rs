//! What a pod's author may wish for its containers, and what the administrator grants.
//!
//! ```text
//! pod annotation                     container annotation             granted by
//!   capabilities.kybernate.io[/C]      kybernate.io/add-capabilities    wishes.capabilities
//!   criu.kybernate.io[/C]              kybernate.io/criu-options        wishes.criu_options
//!   block-io-uring.kybernate.io[/C]    kybernate.io/block-io-uring      everywhere
//!   trigger.kybernate.io[/C]           kybernate.io/trigger             trigger.allow
//! ```
//!
//! The NRI plugin turns the left side into the middle, the shim acts on the middle. Both parse
//! and judge with what is here, so that neither trusts the other.

mod capabilities;
mod criu;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use capabilities::Capabilities;
pub use criu::CriuOptions;
use criu::option_names;

/// `[wishes]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WishSettings {
    /// Capabilities that a pod may have added to its containers. None by default: they get past
    /// what admission has checked.
    pub capabilities: Vec<String>,
    /// Names of the CRIU options that a pod may set.
    pub criu_options: Vec<String>,
}

/// `[trigger]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TriggerSettings {
    /// Whether containers may have a trigger socket. Off by default: whoever can run a program
    /// in such a container decides when the node spends its disk and its time.
    pub allow: bool,
    /// Archives go to `<directory>/<namespace>/<pod>/<container>/<time>.tar.zst`.
    pub directory: PathBuf,
    /// Least seconds between two checkpoints that a container asks for.
    pub interval_s: u64,
    /// How many archives stay per container; when there are more, the oldest is removed.
    pub keep: usize,
    /// Seconds that a container has to get ready for a checkpoint, whoever asked for it.
    pub quiesce_s: u64,
}

impl Default for WishSettings {
    fn default() -> Self {
        Self {
            capabilities: Vec::new(),
            criu_options: ["force-irmap", "ghost-fiemap", "timeout"]
                .map(String::from)
                .to_vec(),
        }
    }
}

impl Default for TriggerSettings {
    fn default() -> Self {
        Self {
            allow: false,
            directory: "/var/lib/kybernate/triggered".into(),
            interval_s: 60,
            keep: 3,
            quiesce_s: 10,
        }
    }
}

/// Why a wish is none, or is not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// Neither on nor off.
    #[error("is {0:?}; write \"true\" or \"false\"")]
    Switch(String),
    /// No such capability.
    #[error("names {0:?}, which is no capability of Linux; write names like SYS_PTRACE,NET_ADMIN")]
    Capability(String),
    /// Not on the administrator's list.
    #[error(
        "asks for {what}, which this node does not grant (it grants {granted}); {setting} in the \
         node's settings lists what is granted"
    )]
    NotGranted {
        /// What was asked for.
        what: String,
        /// The list, for reading.
        granted: String,
        /// The setting with the list.
        setting: &'static str,
    },
    /// No option that a pod could set.
    #[error("names {0:?}, which is no CRIU option for pods; there are {known}", known = option_names())]
    Option(String),
    /// A value where none belongs, or none where one does.
    #[error("has {text:?}; write {usage}")]
    Value {
        /// The option and its value.
        text: String,
        /// How it is written.
        usage: &'static str,
    },
    /// The administrator has not allowed trigger sockets.
    #[error(
        "asks for a trigger socket, which this node does not allow; the administrator allows \
         them with allow = true in the [trigger] settings"
    )]
    NoTrigger,
}

/// Parses a wish that is on or off.
pub fn switch(text: &str) -> Result<bool, WishError> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(WishError::Switch(text.into())),
    }
}

impl WishSettings {
    /// Fails for a list that grants what does not exist.
    pub fn check(&self) -> Result<(), WishError> {
        self.capabilities.join(",").parse::<Capabilities>()?;
        match self.criu_options.iter().find(|name| !criu::is_known(name)) {
            Some(unknown) => Err(WishError::Option(unknown.clone())),
            None => Ok(()),
        }
    }
}

fn or_none(list: &str) -> String {
    if list.is_empty() {
        "none".into()
    } else {
        list.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_true_or_false_and_nothing_else() {
        assert_eq!(switch("true"), Ok(true));
        assert_eq!(switch("false"), Ok(false));
        for text in ["", "True", "1", "yes", " true"] {
            assert_eq!(switch(text), Err(WishError::Switch(text.into())));
        }
    }

    #[test]
    fn capabilities_parse_with_and_without_prefix_and_print_sorted() {
        let parsed: Capabilities = "sys_ptrace, CAP_CHECKPOINT_RESTORE,SYS_PTRACE"
            .parse()
            .unwrap();
        assert_eq!(parsed.to_string(), "CAP_CHECKPOINT_RESTORE,CAP_SYS_PTRACE");
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
        assert_eq!("".parse(), Ok(Capabilities::default()));
        for text in ["ALL", "CAP_", "CAP_CAP_KILL", "SYS_ADMIN,", "SYS ADMIN"] {
            assert!(
                matches!(text.parse::<Capabilities>(), Err(WishError::Capability(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn nothing_is_granted_by_default_and_only_what_is_listed_otherwise() {
        let wish: Capabilities = "NET_ADMIN,SYS_PTRACE".parse().unwrap();
        let error = wish.granted(&WishSettings::default()).unwrap_err();
        assert!(error.to_string().contains("it grants none"), "{error}");
        let granting = |list: &[&str]| WishSettings {
            capabilities: list.iter().map(|name| (*name).into()).collect(),
            ..WishSettings::default()
        };
        let error = wish
            .granted(&granting(&["net_admin"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("CAP_SYS_PTRACE") && error.contains("wishes.capabilities"),
            "{error}"
        );
        assert_eq!(
            wish.granted(&granting(&["CAP_SYS_PTRACE", "NET_ADMIN"])),
            Ok(())
        );
        assert!(granting(&["EVERYTHING"]).check().is_err());
        assert_eq!(WishSettings::default().check(), Ok(()));
    }

    #[test]
    fn criu_options_become_lines_of_a_configuration_file() {
        let parsed: CriuOptions = "timeout=120, force-irmap,ghost-limit=4GiB".parse().unwrap();
        assert_eq!(
            parsed.lines(),
            "timeout 120\nforce-irmap\nghost-limit 4294967296\n"
        );
        assert_eq!(parsed.to_string().parse(), Ok(parsed.clone()));
        // Grants are of the administrator, and a large ghost-limit takes memory of the node.
        let error = parsed.granted(&WishSettings::default()).unwrap_err();
        assert!(error.to_string().contains("ghost-limit"), "{error}");
        let all = WishSettings {
            criu_options: vec!["ghost-limit".into(), "timeout".into(), "force-irmap".into()],
            ..WishSettings::default()
        };
        assert_eq!(parsed.granted(&all), Ok(()));
    }

    #[test]
    fn options_that_reach_the_host_or_that_nobody_knows_are_none() {
        for text in [
            "action-script=/tmp/x",
            "libdir=/tmp",
            "external=mnt[]",
            "external",
            "config=/etc/shadow",
            "root=/",
            "timeout 5",
            "timeout=5\nlibdir /tmp",
        ] {
            assert!(text.parse::<CriuOptions>().is_err(), "{text}");
        }
        for text in [
            "timeout",
            "timeout=0",
            "timeout=-1",
            "timeout=99999",
            "ghost-limit=much",
            "force-irmap=1",
            "force-irmap,force-irmap",
        ] {
            assert!(
                matches!(text.parse::<CriuOptions>(), Err(WishError::Value { .. })),
                "{text}"
            );
        }
    }
}
