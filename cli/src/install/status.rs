//! What is installed, and whether it is still as it was installed.

use std::path::PathBuf;

use kybernate_config::profile::Root;
use serde::Serialize;

use super::{file::Content, ready, receipt::STATE_DIR, receipt_in, wait_for};

/// What is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether an interrupted run waits to be undone or finished.
    pub interrupted: bool,
    /// The installation; nothing where there is none.
    pub installed: Option<Installed>,
}

/// An installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Version of Kybernate.
    pub kybernate: String,
    /// The node's profile.
    pub profile: String,
    /// containerd's runtime type of the handler.
    pub runtime_type: String,
    /// Whether kubelet speaks to the CRI hooks.
    pub hooks: bool,
    /// Whether the NRI plugin is installed.
    pub nri: bool,
    /// Every file and how it is.
    pub files: Vec<File>,
    /// Whether the running containerd has the runtime; nothing where it does not answer.
    pub runtime: Option<bool>,
}

/// A file of an installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Where.
    pub path: PathBuf,
    /// How.
    pub state: State,
}

/// How a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it was installed.
    Installed,
    /// Changed since, or not to be read.
    Changed,
    /// Not there.
    Missing,
}

/// Looks at what is installed under `root`.
pub fn status(root: &Root) -> anyhow::Result<Status> {
    let interrupted = root.exists(format!("{STATE_DIR}/journal.json"));
    let Some(receipt) = receipt_in(root)? else {
        return Ok(Status {
            interrupted,
            installed: None,
        });
    };
    let files = receipt.files.iter().map(|file| {
        let now = root
            .target(&file.path)
            .and_then(|path| Content::read(&path));
        let state = match now {
            Ok(None) => State::Missing,
            Ok(Some(now)) if now.facts.same(&file.after) => State::Installed,
            Ok(Some(_)) | Err(_) => State::Changed,
        };
        File {
            path: file.path.clone(),
            state,
        }
    });
    let socket = root.target(&receipt.node.containerd_socket)?;
    Ok(Status {
        interrupted,
        installed: Some(Installed {
            files: files.collect(),
            runtime: wait_for(ready::has_handler(&socket))
                .map_err(anyhow::Error::msg)?
                .ok(),
            kybernate: receipt.kybernate,
            profile: receipt.node.profile,
            runtime_type: receipt.runtime_type,
            hooks: receipt.hooks,
            nri: receipt.nri,
        }),
    })
}

impl Status {
    /// Whether all is as it was installed.
    pub fn is_sound(&self) -> bool {
        !self.interrupted
            && self.installed.as_ref().is_some_and(|installed| {
                installed.runtime != Some(false)
                    && installed
                        .files
                        .iter()
                        .all(|file| file.state == State::Installed)
            })
    }

    /// For people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if self.interrupted {
            text.push_str(
                "A run was interrupted; the next `kybernate install` or `kybernate uninstall` \
                 undoes or finishes it.\n",
            );
        }
        let Some(installed) = &self.installed else {
            text.push_str("Nothing is installed.\n");
            return text;
        };
        let with = |yes, what: &str| {
            if yes {
                format!(", with {what}")
            } else {
                String::new()
            }
        };
        text.push_str(&format!(
            "Kybernate {} on a node of the profile {}{}{}\n",
            installed.kybernate,
            installed.profile,
            with(installed.nri, "the NRI plugin"),
            with(installed.hooks, "the CRI hooks"),
        ));
        for file in &installed.files {
            let state = match file.state {
                State::Installed => "ok      ",
                State::Changed => "changed ",
                State::Missing => "missing ",
            };
            text.push_str(&format!("{state}  {}\n", file.path.display()));
        }
        text.push_str(match installed.runtime {
            Some(true) => "containerd has the runtime.\n",
            Some(false) => "containerd does not have the runtime: restart it.\n",
            None => "containerd does not answer.\n",
        });
        text
    }
}
