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

use std::{collections::BTreeSet, fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::size;

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

/// Capabilities, as `CAP_…`, sorted. Parsed from a list with commas; the prefix and the case of
/// letters don't matter there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities(BTreeSet<&'static str>);

/// All of Linux 6.18 (include/uapi/linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

impl Capabilities {
    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().copied()
    }

    /// Fails for the first one that the administrator does not grant.
    pub fn granted(&self, settings: &WishSettings) -> Result<(), WishError> {
        let granted = settings.capabilities.join(",").parse::<Self>()?;
        match self.0.difference(&granted.0).next() {
            None => Ok(()),
            Some(missing) => Err(WishError::NotGranted {
                what: (*missing).into(),
                granted: or_none(&granted.to_string()),
                setting: "wishes.capabilities",
            }),
        }
    }
}

impl FromStr for Capabilities {
    type Err = WishError;

    fn from_str(text: &str) -> Result<Self, WishError> {
        let known = |name: &str| {
            let plain = name.trim().to_ascii_uppercase();
            let plain = plain.strip_prefix("CAP_").unwrap_or(&plain);
            CAPABILITIES
                .into_iter()
                .find(|known| known.strip_prefix("CAP_") == Some(plain))
                .ok_or_else(|| WishError::Capability(name.into()))
        };
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(',')
            .map(known)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(","))
    }
}

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

impl WishSettings {
    /// Fails for a list that grants what does not exist.
    pub fn check(&self) -> Result<(), WishError> {
        self.capabilities.join(",").parse::<Capabilities>()?;
        let known = |name: &&String| OPTIONS.iter().any(|(known, _)| known == name);
        match self.criu_options.iter().find(|name| !known(name)) {
            Some(unknown) => Err(WishError::Option(unknown.clone())),
            None => Ok(()),
        }
    }
}

fn option_names() -> String {
    OPTIONS.map(|(name, _)| name).join(", ")
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
