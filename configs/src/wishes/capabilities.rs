//! Capabilities that a pod wishes for.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::{WishError, WishSettings, or_none};

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
