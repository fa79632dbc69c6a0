//! The programs that an installation wants on a node.

use std::path::{Path, PathBuf};

use kybernate_config::{
    names::SHIM_BINARY,
    profile::{Node, Root},
};

use super::{
    containerd::{self, Config},
    file::Content,
    hooks,
    plan::Wish,
    receipt::{Kind, Receipt},
    shims,
    wishes::WishError,
};

/// Programs that a node needs.
const PROGRAMS: [&str; 2] = [SHIM_BINARY, "kybernate"];
/// Programs that go along where they are.
const OPTIONAL: [&str; 1] = ["kybernate-cuda"];
/// The NRI plugin.
pub const PLUGIN: &str = "kybernate-nri";
/// Its name where containerd launches it: an index, and the name that it registers under.
const PLUGIN_FILE: &str = "10-kybernate";

/// The programs, from the directory `from`. Those that are in place already stay as they are: they
/// are ours where the receipt says so, and a package's otherwise.
pub fn programs(
    from: &Path,
    root: &Root,
    node: &Node,
    hooks: bool,
    receipt: Option<&Receipt>,
) -> Result<Vec<Wish>, WishError> {
    let mut names: Vec<&str> = PROGRAMS.to_vec();
    names.extend(hooks.then_some(hooks::PROGRAM));
    let optional = OPTIONAL.iter().filter(|name| from.join(name).exists());
    names.extend(optional);
    let mut wishes = Vec::new();
    for name in names {
        let path = node.bin_dir.join(name);
        let source = from.join(name);
        let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
        if root
            .target(&path)
            .ok()
            .and_then(|place| same(&source, &place))
            == Some(true)
        {
            if receipt.is_some_and(|receipt| receipt.file(&path).is_some()) {
                let here = shims::as_it_is(root, &path);
                wishes.extend(here.map_err(|source| WishError::Read { path, source })?);
            }
            continue;
        }
        wishes.push(program(&source, path, Kind::Program)?);
    }
    Ok(wishes)
}

/// Where containerd has to be told to look for NRI plugins: where the node can't have them at
/// containerd's own place, and nobody has named another.
pub fn plugin_dir<'a>(node: &'a Node, merged: &Config) -> Option<&'a Path> {
    let directory = node.nri_plugin_dir.as_path();
    let unset = Path::new(merged.nri_plugin_dir()) == Path::new(containerd::NRI_PLUGINS);
    (unset && !directory.as_os_str().is_empty()).then_some(directory)
}

/// The NRI plugin, where containerd launches it.
pub fn plugin(from: &Path, node: &Node, merged: &Config) -> Result<Wish, WishError> {
    let directory = plugin_dir(node, merged).unwrap_or(Path::new(merged.nri_plugin_dir()));
    let path = directory.join(PLUGIN_FILE);
    program(&from.join(PLUGIN), path, Kind::Plugin)
}

fn program(source: &Path, path: PathBuf, kind: Kind) -> Result<Wish, WishError> {
    let bytes = std::fs::read(source).map_err(|error| WishError::Program {
        path: source.into(),
        source: error,
    })?;
    Ok(Wish {
        path,
        kind,
        content: Content::new(bytes, 0o755),
        edits: Vec::new(),
    })
}
