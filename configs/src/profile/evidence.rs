//! What a node shows of its kind.
//!
//! ```text
//! kind = "path"        one of `paths` is there: a file, a directory or a socket
//! kind = "process"     a process of the name `program` runs with `argument` in its command line
//! kind = "os"          /etc/os-release says one of `ids` in ID or VARIANT_ID
//! ```
//!
//! `required` evidence must be there for a profile to match. Evidence that `decides` tells apart
//! profiles that all match: a kubelet that runs is worth more than files that lie about.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Root;

/// One observation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Evidence {
    /// A path.
    Path {
        /// Any of them.
        paths: Vec<PathBuf>,
        /// Whether the profile can't match without.
        #[serde(default)]
        required: bool,
    },
    /// A running process.
    Process {
        /// File name of the program.
        program: String,
        /// Part of one of its arguments; empty means any.
        #[serde(default)]
        argument: String,
        /// Whether it tells apart what else would match alike.
        #[serde(default)]
        decides: bool,
        /// Whether the profile can't match without.
        #[serde(default)]
        required: bool,
    },
    /// The operating system.
    Os {
        /// Any of them.
        ids: Vec<String>,
        /// Whether the profile can't match without.
        #[serde(default)]
        required: bool,
    },
}

/// What of a node evidence is looked for in; read once.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    root: &'a Root,
    processes: Vec<Vec<String>>,
    os: Vec<String>,
}

impl<'a> Scene<'a> {
    pub(super) fn of(root: &'a Root) -> Self {
        let os = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| root.read_text(path).ok())
            .map(|text| os_ids(&text))
            .unwrap_or_default();
        Self {
            root,
            processes: root.processes(),
            os,
        }
    }
}

impl Evidence {
    /// Whether a profile can't match without it.
    pub fn is_required(&self) -> bool {
        match self {
            Self::Path { required, .. }
            | Self::Process { required, .. }
            | Self::Os { required, .. } => *required,
        }
    }

    pub(super) fn decides(&self) -> bool {
        matches!(self, Self::Process { decides: true, .. })
    }

    /// What was seen, in words; nothing where it is not there.
    pub(super) fn seen(&self, scene: &Scene<'_>) -> Option<String> {
        match self {
            Self::Path { paths, .. } => scene
                .root
                .first(paths.iter().map(PathBuf::as_path))
                .map(|path| path.display().to_string()),
            Self::Process {
                program, argument, ..
            } => scene
                .processes
                .iter()
                .find(|line| {
                    let name = Path::new(&line[0]).file_name();
                    name.is_some_and(|name| name == program.as_str())
                        && (argument.is_empty() || line.iter().any(|word| word.contains(argument)))
                })
                .map(|_| match argument.as_str() {
                    "" => format!("{program} runs"),
                    argument => format!("{program} runs with {argument}"),
                }),
            Self::Os { ids, .. } => ids
                .iter()
                .find(|id| scene.os.contains(id))
                .map(|id| format!("the operating system is {id}")),
        }
    }

    /// What would have been seen.
    pub(super) fn sought(&self) -> String {
        match self {
            Self::Path { paths, .. } => {
                let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
                paths.join(" or ")
            }
            Self::Process {
                program, argument, ..
            } if argument.is_empty() => format!("a process {program}"),
            Self::Process {
                program, argument, ..
            } => format!("a process {program} with {argument}"),
            Self::Os { ids, .. } => format!("the operating system {}", ids.join(" or ")),
        }
    }
}

/// The values of ID and VARIANT_ID.
fn os_ids(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| matches!(*key, "ID" | "VARIANT_ID"))
        .map(|(_, value)| value.trim_matches(['"', '\'']).to_owned())
        .collect()
}
