//! What an installation has done, in `/var/lib/kybernate/install`:
//!
//! ```text
//! receipt.json   what is installed: every file, what it was before, how it was changed
//! journal.json   a change under way; see `apply`
//! backup/SHA256  the content that files had before
//! lock           held while anything here changes
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kybernate_config::profile::Node;
use serde::{Deserialize, Serialize};

use super::{edit::Edit, file::Facts};

/// Where it lies in the node's root.
pub const STATE_DIR: &str = "/var/lib/kybernate/install";
/// Version of the receipt that this build writes and reads.
const VERSION: u32 = 1;

/// What is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    version: u32,
    /// Version of Kybernate.
    pub kybernate: String,
    /// Paths and commands of the node.
    pub node: Node,
    /// containerd's runtime type of the handler.
    pub runtime_type: String,
    /// Whether kubelet speaks to the CRI hooks.
    pub hooks: bool,
    /// Whether the NRI plugin is installed.
    pub nri: bool,
    /// Every file.
    pub files: Vec<Installed>,
    /// Directories that were made, the outermost first.
    pub directories: Vec<PathBuf>,
}

/// What a change of a file means for the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A program of ours; what runs keeps the old one.
    Program,
    /// Settings of ours.
    Settings,
    /// The NRI plugin, which containerd launches.
    Plugin,
    /// containerd's configuration.
    Containerd,
    /// A unit of systemd.
    Unit,
    /// kubelet's arguments.
    Kubelet,
}

/// A file that an installation has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Installed {
    /// Where, in the node's root.
    pub path: PathBuf,
    /// What for.
    pub kind: Kind,
    /// What it was before; nothing where it was not there.
    pub before: Option<Facts>,
    /// What it is.
    pub after: Facts,
    /// How it was changed; nothing where it is all ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<Edit>,
}

impl Receipt {
    /// A receipt for what is going to be done.
    pub fn new(node: Node, runtime_type: String, hooks: bool, nri: bool) -> Self {
        Self {
            version: VERSION,
            kybernate: env!("CARGO_PKG_VERSION").to_owned(),
            node,
            runtime_type,
            hooks,
            nri,
            files: Vec::new(),
            directories: Vec::new(),
        }
    }

    /// Reads the one in a state directory, if there is one.
    pub fn read(state: &Path) -> io::Result<Option<Self>> {
        let path = state.join("receipt.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let wrong = |why: String| io::Error::other(format!("{}: {why}", path.display()));
        let receipt: Self = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if receipt.version != VERSION {
            return Err(wrong(format!(
                "it is of version {}; use the Kybernate that wrote it",
                receipt.version
            )));
        }
        Ok(Some(receipt))
    }

    /// What it says about a file.
    pub fn file(&self, path: &Path) -> Option<&Installed> {
        self.files.iter().find(|file| file.path == path)
    }
}
