//! Shims that run on a node, and what of an installation they need.
//!
//! containerd notes beside every task which program its shim is, and drops the task at its next
//! start where that program is gone. A shim finds its helper beside itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kybernate_config::{
    names::{CUDA_BINARY, SHIM_BINARY},
    profile::{Node, Root},
};

use super::{
    file::Content,
    plan::Wish,
    receipt::{Kind, Receipt},
};

/// Where tasks are in containerd's state directory: `NAMESPACE/ID` each.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// The file of a task that names its shim's program.
const NAMED: &str = "shim-binary-path";

/// The programs of our shims that run.
pub fn running(root: &Root) -> Vec<PathBuf> {
    let lines = root.processes().into_iter();
    lines
        .filter_map(|line| line.into_iter().next().map(PathBuf::from))
        .filter(|program| is_shim(program))
        .collect()
}

/// Our shims' programs as containerd's tasks name them.
fn named(root: &Root, state: &Path) -> Vec<PathBuf> {
    let below = |directory: PathBuf| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    let Ok(tasks) = root.target(state.join(TASKS)) else {
        return Vec::new();
    };
    below(tasks)
        .flat_map(below)
        .filter_map(|task| fs::read_to_string(task.join(NAMED)).ok())
        .map(|text| PathBuf::from(text.trim()))
        .filter(|program| is_shim(program))
        .collect()
}

/// Installed programs that nobody of `wanted` is for any more, and that shims still need: as they
/// are. They go with the first run that finds them unused.
pub fn kept(root: &Root, node: &Node, receipt: &Receipt, wanted: &[Wish]) -> io::Result<Vec<Wish>> {
    let left = receipt.files.iter().filter(|file| {
        let name = file.path.file_name().unwrap_or_default();
        file.kind == Kind::Program
            && (name == SHIM_BINARY || name == CUDA_BINARY)
            && !wanted.iter().any(|wish| wish.path == file.path)
    });
    let mut used = running(root);
    used.extend(named(root, &node.containerd_state));
    used.extend(named(root, &receipt.node.containerd_state));
    let used: Vec<PathBuf> = used
        .iter()
        .filter_map(|program| root.target(program.parent()?).ok())
        .collect();
    let mut kept = Vec::new();
    for file in left {
        let directory = file.path.parent().unwrap_or(Path::new("/"));
        if used.contains(&root.target(directory)?)
            && let Some(wish) = as_it_is(root, &file.path)?
        {
            kept.push(wish);
        }
    }
    Ok(kept)
}

/// The wish that an installed program stays as it is; nothing where it is not there.
pub fn as_it_is(root: &Root, path: &Path) -> io::Result<Option<Wish>> {
    let now = Content::read(&root.target(path)?)?;
    Ok(now.map(|mut content| {
        content.facts.mtime = None;
        Wish {
            path: path.into(),
            kind: Kind::Program,
            content,
            edits: Vec::new(),
        }
    }))
}

fn is_shim(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name == SHIM_BINARY)
}
