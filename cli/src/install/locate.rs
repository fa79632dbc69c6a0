//! Which of containerd's files is to be changed, and how.
//!
//! ```text
//! file         containerd 2.x merges imported tables: a directory that it imports gets a file.
//!              containerd 1.7 replaces a plugin's whole table by that of an imported file: the
//!              file that has the last word on the CRI is changed in place.
//! go-template  a directory that the made config imports gets a file (2.x); otherwise the
//!              template is extended, or made: {{ template "base" . }} and our table.
//! drop-in      a file in the directory that the distribution itself merges.
//! ```

use std::{
    collections::{BTreeSet, VecDeque},
    path::{Path, PathBuf},
};

use kybernate_config::{
    names::RUNTIME_HANDLER,
    profile::{Node, Root, Style},
};
use toml::Value;

use super::{
    containerd::{Config, cri, version},
    edit::without_block,
};

/// Name of our file in a directory.
pub const DROP_IN: &str = "kybernate.toml";
/// What a new template begins with.
pub const BASE_TEMPLATE: &str = "{{ template \"base\" . }}\n";

/// What a new configuration begins with.
pub fn base_config(version: i64) -> String {
    format!("version = {version}\n")
}

/// Whether a text is what a file that we make begins with, and nothing else.
pub fn is_base(text: &str) -> bool {
    let text = text.trim();
    let digits = |version: &str| version.bytes().all(|b| b.is_ascii_digit());
    text.is_empty()
        || text == BASE_TEMPLATE.trim()
        || text.strip_prefix("version = ").is_some_and(digits)
}

/// What is to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A TOML file, in place; it may be missing.
    Edit(PathBuf),
    /// A file of our own.
    DropIn(PathBuf),
    /// A Go template, whose end is appended to; it may be missing.
    Template(PathBuf),
}

/// A file that containerd reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Where it is.
    pub path: PathBuf,
    /// Its text without what an installation has added.
    pub text: String,
    /// The same, parsed.
    pub config: Config,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    /// What is to be changed.
    pub place: Place,
    /// Version of the keys to write.
    pub version: i64,
    /// What containerd reads, in the order in which it does; empty where there is no file.
    pub loaded: Vec<Loaded>,
    /// All of it, merged as this containerd merges.
    pub merged: Config,
}

/// Why it can't be said.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// A file does not parse.
    #[error("containerd's {path} does not parse, and containerd would not start with it: {why}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        why: String,
    },
    /// A file can't be read.
    #[error("cannot read containerd's {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// containerd 2.x does not read runtimes of a version 1 configuration.
    #[error(
        "{path} is of version 1, whose runtimes containerd 2.x ignores: write what \
         `containerd config migrate` prints into it, and try again"
    )]
    TooOld {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing to tell the version from.
    #[error("{path} is not there yet: start the node once, so that its containerd is configured")]
    NotStarted {
        /// The file.
        path: PathBuf,
    },
}

/// Finds the place. `original` gives what a file was before an installation has changed it;
/// `major` is containerd's version, where it is known.
pub fn locate(
    root: &Root,
    node: &Node,
    major: Option<u32>,
    original: &impl Fn(&Path) -> std::io::Result<Option<Vec<u8>>>,
) -> Result<Located, LocateError> {
    match node.containerd_style {
        Style::File => file(root, &node.containerd_config, major, original),
        Style::GoTemplate => {
            let rendered = &node.containerd_rendered;
            let mut found = file(root, rendered, major, original)?;
            if found.loaded.is_empty() {
                return Err(LocateError::NotStarted {
                    path: rendered.clone(),
                });
            }
            if !matches!(found.place, Place::DropIn(_)) {
                found.place = Place::Template(match found.version {
                    3.. => node.containerd_config_v3.clone(),
                    _ => node.containerd_config.clone(),
                });
            }
            Ok(found)
        }
        Style::DropIn => {
            let mut found = file(root, &node.containerd_rendered, major, original)?;
            let ours = node.containerd_drop_in.join(DROP_IN);
            let is_ours = original(&ours).is_ok_and(|before| before.is_none());
            if is_ours && root.exists(&ours) {
                forget(&mut found.merged.table);
                for file in &mut found.loaded {
                    forget(&mut file.config.table);
                    file.text = file.config.table.to_string();
                }
            }
            found.place = Place::DropIn(ours);
            Ok(found)
        }
    }
}

fn file(
    root: &Root,
    main: &Path,
    major: Option<u32>,
    original: &impl Fn(&Path) -> std::io::Result<Option<Vec<u8>>>,
) -> Result<Located, LocateError> {
    let (loaded, directory) = load(root, main, original)?;
    let Some(first) = loaded.first() else {
        // containerd runs on its defaults.
        let version = if major >= Some(2) { 3 } else { 2 };
        let text = base_config(version);
        let merged = Config::parse(&text).map_err(|why| parse_error(main, why))?;
        return Ok(Located {
            place: Place::Edit(main.into()),
            version,
            loaded,
            merged,
        });
    };
    let version = first.config.version;
    // A version 3 file is of 2.x without doubt; version 2 is read by both.
    let merges = major.map_or(version >= 3, |major| major >= 2);
    if merges && version < 2 {
        return Err(LocateError::TooOld { path: main.into() });
    }
    let place = match directory {
        Some(directory) if merges => Place::DropIn(directory.join(DROP_IN)),
        _ => {
            let [plugins, cri] = cri(version);
            let last = loaded
                .iter()
                .rfind(|file| file.config.get(&[plugins, cri]).is_some());
            Place::Edit(last.unwrap_or(first).path.clone())
        }
    };
    Ok(Located {
        merged: merge(&loaded, merges),
        place,
        version,
        loaded,
    })
}

/// Reads a file and what it imports, in containerd's order, and finds a directory of imports.
fn load(
    root: &Root,
    main: &Path,
    original: &impl Fn(&Path) -> std::io::Result<Option<Vec<u8>>>,
) -> Result<(Vec<Loaded>, Option<PathBuf>), LocateError> {
    let mut loaded: Vec<Loaded> = Vec::new();
    let mut directory = None;
    let mut seen = BTreeSet::new();
    let mut pending = VecDeque::from([main.to_owned()]);
    while let Some(path) = pending.pop_front() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let bytes = original(&path).map_err(|source| LocateError::Read {
            path: path.clone(),
            source,
        })?;
        let Some(bytes) = bytes else { continue };
        let text =
            String::from_utf8(bytes).map_err(|e| parse_error(&path, e.utf8_error().to_string()))?;
        // A made config holds what the template has added.
        let text = without_block(&text);
        let config = Config::parse(&text).map_err(|why| parse_error(&path, why))?;
        for pattern in imports(&config) {
            let parent = path.parent().unwrap_or(Path::new("/"));
            let pattern = parent.join(pattern);
            let (Some(parent), Some(name)) = (pattern.parent(), pattern.file_name()) else {
                continue;
            };
            let name = name.to_string_lossy();
            if name.contains('*') {
                if directory.is_none() && glob(&name, DROP_IN) {
                    directory = Some(parent.to_owned());
                }
                pending.extend(matches(root, parent, &name));
            } else {
                pending.push_back(pattern.clone());
            }
        }
        loaded.push(Loaded { path, text, config });
    }
    Ok((loaded, directory))
}

fn imports(config: &Config) -> impl Iterator<Item = &str> {
    let list = config.table.get("imports").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str)
}

/// The files of a directory that a pattern matches, in order. Our own is not among them.
fn matches(root: &Root, directory: &Path, pattern: &str) -> Vec<PathBuf> {
    let names: BTreeSet<String> = root
        .target(directory)
        .and_then(std::fs::read_dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != DROP_IN && glob(pattern, name))
        .collect();
    names.into_iter().map(|name| directory.join(name)).collect()
}

/// Go's `filepath.Match`, for patterns of names and stars.
fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Takes our runtime out of what the distribution has merged.
fn forget(table: &mut toml::Table) {
    let [plugins, cri] = cri(version(table));
    let runtimes = table.get_mut(plugins).and_then(|table| {
        table
            .get_mut(cri)?
            .get_mut("containerd")?
            .get_mut("runtimes")
    });
    if let Some(Value::Table(runtimes)) = runtimes {
        runtimes.remove(RUNTIME_HANDLER);
    }
}

fn merge(loaded: &[Loaded], deep: bool) -> Config {
    let mut merged = loaded[0].config.clone();
    for file in &loaded[1..] {
        let mut table = file.config.table.clone();
        if !deep && let Some(Value::Table(plugins)) = table.remove("plugins") {
            let own = merged
                .table
                .entry("plugins")
                .or_insert_with(|| Value::Table(toml::Table::new()));
            if let Value::Table(own) = own {
                own.extend(plugins);
            }
        }
        kybernate_config::layers::merge(&mut merged.table, table);
    }
    merged.version = version(&merged.table);
    merged
}

fn parse_error(path: &Path, why: String) -> LocateError {
    LocateError::Parse {
        path: path.into(),
        why,
    }
}

#[cfg(test)]
mod tests;
