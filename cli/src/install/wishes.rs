//! What an installation wants of a node's settings and of containerd's configuration.

use std::{
    io,
    path::{Path, PathBuf},
};

use kybernate_config::{
    layers::NODE_FILE,
    names::RUNTIME_HANDLER,
    profile::{Node, NodeSettings, Root},
    settings,
};

use super::{
    containerd::{self, Config, Registration},
    edit::{self, EditError, NewTable, Text},
    file::Content,
    hooks,
    locate::{BASE_TEMPLATE, Located, Place, base_config},
    plan::Wish,
    receipt::Kind,
};

/// Directories in which containerd finds runc by itself.
const COMMON_DIRS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// Why it can't be said what a node needs.
#[derive(Debug, thiserror::Error)]
pub enum WishError {
    /// A program of ours is missing.
    #[error("{path}: {source}; name the directory of Kybernate's programs with --from")]
    Program {
        /// The program.
        path: PathBuf,
        /// Why it can't be read.
        source: io::Error,
    },
    /// containerd's configuration can't be changed.
    #[error("cannot change containerd's {path}: {source}")]
    Edit {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: EditError,
    },
    /// The runtime is registered already, otherwise.
    #[error(
        "containerd's {path} already has a runtime {RUNTIME_HANDLER:?} that is not from \
         `kybernate install`: remove it, and try again"
    )]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// There is no CRI.
    #[error(
        "containerd's CRI plugin is disabled in {path} (disabled_plugins), so Kubernetes can't use \
         this containerd: remove \"cri\" from the list, restart containerd, and try again"
    )]
    NoCri {
        /// The file.
        path: PathBuf,
    },
    /// A file can't be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// kubelet can't be told.
    #[error(transparent)]
    Hooks(#[from] hooks::HooksError),
}

/// The file through which every part learns what the node's profile says.
pub fn settings(node: &Node, overrides: &NodeSettings) -> Wish {
    let mut lines = vec![
        "# Written by `kybernate install`, removed by `kybernate uninstall`: what it found on this"
            .to_owned(),
        "# node. What config.toml says wins over it.".to_owned(),
        "[node]".to_owned(),
        format!("profile = {}", edit::string(&node.profile)),
    ];
    for (key, value) in overrides.values() {
        if key != "profile" {
            lines.push(format!("{key} = {}", edit::string(value)));
        }
    }
    lines.push("\n[containerd]".to_owned());
    let path = |path: &Path| edit::string(&path.display().to_string());
    lines.push(format!("socket = {}", path(&node.containerd_socket)));
    let checkpoints = path(&node.kubelet_root.join("checkpoints"));
    lines.push(format!(
        "\n[nri]\nrestore_dirs = [{checkpoints}, \"/var/lib/kybernate\"]"
    ));
    lines.push(format!("\n[retention]\ndir = {checkpoints}\n"));
    Wish {
        path: Path::new(settings::DEFAULT_PATH).with_file_name(NODE_FILE),
        kind: Kind::Settings,
        content: Content::new(lines.join("\n").into_bytes(), 0o644),
        edits: Vec::new(),
    }
}

/// What containerd's configuration is to be.
#[derive(Debug)]
pub struct Containerd {
    /// The files to write; none where the runtime is registered already.
    pub wishes: Vec<Wish>,
    /// The same as containerd will read it: paths and texts.
    pub texts: Vec<(PathBuf, String)>,
    /// What the administrator has to know.
    pub notes: Vec<String>,
}

/// How containerd is to be configured.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Where.
    pub located: &'a Located,
    /// What the default runtime is copied from.
    pub merged: &'a Config,
    /// The runtime.
    pub registration: &'a Registration,
    /// containerd's major version, where it is known.
    pub major: Option<u32>,
    /// Whether NRI has to be on.
    pub nri: bool,
    /// Where it has to look for plugins, other than by default.
    pub plugin_dir: Option<&'a Path>,
}

/// runc's path, where containerd would not find it by itself.
pub fn uncommon_runc(root: &Root, node: &Node) -> Option<String> {
    let runc = &node.runc;
    let common = runc
        .parent()
        .is_some_and(|parent| COMMON_DIRS.iter().any(|dir| parent == Path::new(dir)));
    (!common && root.exists(runc)).then(|| runc.display().to_string())
}

impl Setup<'_> {
    /// Says what the files are to be. `original` gives a file without an installation's changes.
    pub fn wish(
        &self,
        original: impl Fn(&Path) -> io::Result<Option<Content>>,
    ) -> Result<Containerd, WishError> {
        let located = self.located;
        let path = match &located.place {
            Place::Edit(path) | Place::DropIn(path) | Place::Template(path) => path.clone(),
        };
        let main = located.loaded.first().map_or(&path, |file| &file.path);
        if self.located.merged.cri_is_disabled() {
            return Err(WishError::NoCri { path: main.clone() });
        }
        let version = located.version;
        let tables = self.merged.tables(version, self.registration);
        let ours = located
            .merged
            .runtimes()
            .is_some_and(|runtimes| runtimes.contains_key(RUNTIME_HANDLER));
        let mut notes = Vec::new();
        if ours && !located.merged.has(&tables[..1]) {
            return Err(WishError::Taken { path });
        }
        let mut added = Vec::new();
        if ours {
            notes.push(format!(
                "containerd's configuration already registers the runtime; {} is left alone",
                path.display()
            ));
        } else {
            added.extend(tables);
        }
        // 1.7 forgets its default runtime when another one is configured.
        if self.major != Some(2)
            && version < 3
            && located.merged.runtimes().is_none()
            && !matches!(located.place, Place::DropIn(_))
        {
            added.push(containerd::stock_runtime(version));
        }
        let switch = match self.nri {
            true => self.nri_values(&mut notes),
            false => Vec::new(),
        };
        if added.is_empty() && switch.is_empty() {
            return Ok(Containerd {
                wishes: Vec::new(),
                texts: Vec::new(),
                notes,
            });
        }
        let edit_error = |path: &Path| {
            let path = path.to_owned();
            move |source| WishError::Edit { path, source }
        };
        let read = |path: &Path| {
            original(path).map_err(|source| WishError::Read {
                path: path.into(),
                source,
            })
        };
        let nri = containerd::nri(version);
        let with_switch = || -> Vec<NewTable> {
            let table = (!switch.is_empty()).then(|| NewTable {
                path: nri.map(str::to_owned).to_vec(),
                values: switch.clone(),
            });
            added.iter().cloned().chain(table).collect()
        };
        match &located.place {
            Place::DropIn(path) => {
                let block = edit::unmarked(&edit::appended("", &with_switch()));
                let text = format!(
                    "# Written by `kybernate install`, removed by `kybernate uninstall`.\n\
                     version = {version}\n\n{block}"
                );
                let content = Content::new(text.clone().into_bytes(), 0o644);
                Ok(Containerd {
                    wishes: vec![wish(path, content, Vec::new())],
                    texts: vec![(path.clone(), text)],
                    notes,
                })
            }
            Place::Template(path) => {
                let block = edit::appended("", &with_switch());
                let before = read(path)?;
                let old = match &before {
                    Some(content) => String::from_utf8_lossy(&content.bytes).into_owned(),
                    None => BASE_TEMPLATE.to_owned(),
                };
                if old.contains(&format!("runtimes.{RUNTIME_HANDLER}]")) {
                    return Err(WishError::Taken { path: path.clone() });
                }
                let lead = if old.ends_with('\n') { "\n" } else { "\n\n" };
                let text = format!("{lead}{block}");
                let new = format!("{old}{text}").into_bytes();
                let content = changed(before.as_ref(), new);
                let edits = vec![edit::Edit::Insert { text }];
                // containerd reads what is made from it: the present one, and the block.
                let rendered = located.loaded.first().map_or("", |file| file.text.as_str());
                Ok(Containerd {
                    wishes: vec![wish(path, content, edits)],
                    texts: vec![(main.clone(), format!("{rendered}\n{block}"))],
                    notes,
                })
            }
            Place::Edit(path) => {
                let before = read(path)?;
                let base = match &before {
                    Some(content) => String::from_utf8_lossy(&content.bytes).into_owned(),
                    None => base_config(version),
                };
                let mut text = Text::parse(&base).map_err(edit_error(path))?;
                let mut tables = added.clone();
                if text.has(&nri).map_err(edit_error(path))? {
                    for (key, value) in &switch {
                        text.set(&nri, key, value).map_err(edit_error(path))?;
                    }
                } else {
                    tables = with_switch();
                }
                text.add(&tables).map_err(edit_error(path))?;
                let (text, edits) = text.into_parts();
                let content = changed(before.as_ref(), text.clone().into_bytes());
                verify(&base, &text).map_err(edit_error(path))?;
                Ok(Containerd {
                    wishes: vec![wish(path, content, edits)],
                    texts: vec![(path.clone(), text)],
                    notes,
                })
            }
        }
    }

    /// What NRI's table has to say: that it is on, and where the plugins are.
    fn nri_values(&self, notes: &mut Vec<String>) -> Vec<(String, String)> {
        let version = self.located.version;
        let is_two = self.major.map_or(version >= 3, |major| major >= 2);
        let mut values = Vec::new();
        match self.merged.nri_is_disabled() {
            Some(true) if is_two => {
                notes.push(
                    "NRI is switched off in containerd's configuration; Kybernate leaves it so, \
                     and pods can't name what they are restored from"
                        .into(),
                );
                return values;
            }
            Some(false) => {}
            None if is_two => {}
            // Off by default before containerd 2.0.
            Some(true) | None => values.push(("disable".into(), "false".into())),
        }
        if let Some(directory) = self.plugin_dir {
            let directory = edit::string(&directory.display().to_string());
            values.push(("plugin_path".into(), directory));
        }
        values
    }
}

/// A file with other bytes, or a new one.
fn changed(before: Option<&Content>, bytes: Vec<u8>) -> Content {
    match before {
        Some(content) => content.with_bytes(bytes),
        None => Content::new(bytes, 0o644),
    }
}

fn wish(path: &Path, content: Content, edits: Vec<edit::Edit>) -> Wish {
    Wish {
        path: path.into(),
        kind: Kind::Containerd,
        content,
        edits,
    }
}

/// Makes sure that a change means what it should and nothing else.
fn verify(before: &str, after: &str) -> Result<(), EditError> {
    let parse = |text| Config::parse(text).map_err(EditError::Effect);
    let (mut old, mut new) = (parse(before)?, parse(after)?);
    // The stock runtime, said explicitly, changes nothing.
    for config in [&mut old, &mut new] {
        let [plugins, cri] = containerd::cri(config.version);
        let runtimes = config.table.get_mut(plugins).and_then(|table| {
            table
                .get_mut(cri)?
                .get_mut("containerd")?
                .get_mut("runtimes")
        });
        if let Some(toml::Value::Table(runtimes)) = runtimes
            && runtimes.len() <= 2
            && runtimes.get("runc").is_some_and(|runc| {
                runc.as_table()
                    .is_some_and(|table| table.len() == 2 && table.contains_key("sandbox_mode"))
            })
        {
            runtimes.remove("runc");
        }
    }
    match new.foreign_change(&old) {
        None => Ok(()),
        Some(change) => Err(EditError::Effect(change)),
    }
}
