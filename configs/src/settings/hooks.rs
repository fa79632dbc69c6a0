//! The process between kubelet and containerd, and the archives that it leaves.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    names::RUNTIME_HANDLER,
    size::{self, SizeError},
};

/// `[hooks]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HooksSettings {
    /// The socket that kubelet is given. A socket that systemd has passed comes before it.
    pub socket: PathBuf,
    /// Runtime handlers whose containers' checkpoints are taken here; all else passes through.
    pub handlers: Vec<String>,
    /// Where metrics and health are served: `unix:/path`, `address:port`, or nothing for nowhere.
    pub metrics: String,
    /// Seconds that calls in flight are given when the process is told to stop.
    pub drain_s: u64,
}

/// `[retention]`: archives in kubelet's checkpoint directory. The newest good archive of a
/// container, and one with a file `<name>.keep` beside it, are never removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSettings {
    /// The directory; archives elsewhere are left alone.
    pub dir: PathBuf,
    /// Archives of one pod; 0 for any number.
    pub per_pod: u64,
    /// Archives altogether; 0 for any number.
    pub per_node: u64,
    /// Bytes of all archives, a size like `50GiB`; `0` for any.
    pub total: RetentionSize,
    /// Space that must stay free, a size like `10GiB`: old archives make way for it, and a
    /// checkpoint that would not leave it is refused.
    pub min_free: RetentionSize,
}

/// A size in the settings, kept as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RetentionSize {
    text: String,
    bytes: u64,
}

impl RetentionSize {
    /// In bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Default for RetentionSize {
    fn default() -> Self {
        Self {
            text: "0".into(),
            bytes: 0,
        }
    }
}

impl TryFrom<String> for RetentionSize {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        let bytes = size::parse(&text)?;
        Ok(Self { text, bytes })
    }
}

impl From<RetentionSize> for String {
    fn from(size: RetentionSize) -> Self {
        size.text
    }
}

impl Default for HooksSettings {
    fn default() -> Self {
        Self {
            socket: "/run/kybernate/cri.sock".into(),
            handlers: vec![RUNTIME_HANDLER.into()],
            metrics: "unix:/run/kybernate/cri-metrics.sock".into(),
            drain_s: 20,
        }
    }
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self {
            dir: "/var/lib/kubelet/checkpoints".into(),
            per_pod: 0,
            per_node: 0,
            total: RetentionSize::default(),
            min_free: RetentionSize::default(),
        }
    }
}
