//! The CRI hooks as a service between kubelet and containerd.
//!
//! ```text
//! kubelet ── unix:///run/kybernate/cri.sock ── kybernate-cri-hooks ── containerd.sock
//!            a socket of systemd's, in which calls wait while the service is away
//! ```
//!
//! kubelet is told by the last word of its command line, which is the one that counts: a drop-in
//! of its unit that repeats the command with our endpoint added, or a line of its argument file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use kybernate_config::{
    profile::{Node, Root},
    units,
};

use super::{edit::Edit, file::Content, plan::Wish, receipt::Kind};

/// Program of the hooks.
pub const PROGRAM: &str = "kybernate-cri-hooks";
/// Its unit.
pub const UNIT: &str = "kybernate-cri-hooks.service";
/// Its socket's unit.
pub const SOCKET_UNIT: &str = "kybernate-cri-hooks.socket";
/// Where the administrator's units are.
pub const UNITS: &str = "/etc/systemd/system";
/// Where it listens.
const SOCKET: &str = "/run/kybernate/cri.sock";
const UNIT_DIRS: [&str; 3] = ["/lib/systemd/system", "/usr/lib/systemd/system", UNITS];

/// Why kubelet can't be pointed at the hooks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HooksError {
    /// There is no unit and no argument file.
    #[error(
        "kubelet's arguments are neither in {unit} nor in {args}: name its unit with \
         --node kubelet_unit=PATH, or the file of its arguments with --node kubelet_args=PATH"
    )]
    Absent {
        /// The unit.
        unit: String,
        /// The file.
        args: String,
    },
    /// The unit starts nothing.
    #[error("{unit} and its drop-ins have no ExecStart")]
    NoCommand {
        /// The unit.
        unit: PathBuf,
    },
}

/// The units of the hooks: those that are shipped, with the node's path to the program.
pub fn units(node: &Node) -> [Wish; 2] {
    let program = |dir: &str| format!("ExecStart={dir}/{PROGRAM}");
    let service = units::HOOKS_SERVICE.replace(
        &program(units::BIN_DIR),
        &program(&node.bin_dir.display().to_string()),
    );
    [(SOCKET_UNIT, units::HOOKS_SOCKET), (UNIT, service.as_str())].map(|(name, text)| Wish {
        path: Path::new(UNITS).join(name),
        kind: Kind::Unit,
        content: Content::new(
            format!("# Written by `kybernate install`, removed by `kybernate uninstall`.\n{text}")
                .into_bytes(),
            0o644,
        ),
        edits: Vec::new(),
    })
}

/// What points kubelet at the hooks. `original` gives a file without an installation's changes.
pub fn kubelet(
    root: &Root,
    node: &Node,
    original: impl Fn(&Path) -> std::io::Result<Option<Content>>,
) -> Result<Wish, HooksError> {
    let endpoint = format!("--container-runtime-endpoint=unix://{SOCKET}");
    if let Ok(Some(args)) = original(&node.kubelet_args) {
        let mut text = String::from_utf8_lossy(&args.bytes).into_owned();
        let line = match text.ends_with('\n') || text.is_empty() {
            true => format!("{endpoint}\n"),
            false => format!("\n{endpoint}\n"),
        };
        text.push_str(&line);
        return Ok(Wish {
            path: node.kubelet_args.clone(),
            kind: Kind::Kubelet,
            content: args.with_bytes(text.into_bytes()),
            edits: vec![Edit::Insert { text: line }],
        });
    }
    let unit = &node.kubelet_unit;
    if !root.exists(unit) || unit.as_os_str().is_empty() {
        return Err(HooksError::Absent {
            unit: unit.display().to_string(),
            args: node.kubelet_args.display().to_string(),
        });
    }
    let name = unit.file_name().unwrap_or_default().to_string_lossy();
    let drop_in = Path::new(UNITS).join(format!("{name}.d/90-kybernate.conf"));
    let command = command(&unit_texts(root, unit, &drop_in))
        .ok_or_else(|| HooksError::NoCommand { unit: unit.clone() })?;
    let text = format!(
        "# Written by `kybernate install`, removed by `kybernate uninstall`.\n\
         [Unit]\n\
         Wants={SOCKET_UNIT}\n\
         After={SOCKET_UNIT}\n\
         \n\
         [Service]\n\
         ExecStart=\n\
         ExecStart={command} {endpoint}\n"
    );
    Ok(Wish {
        path: drop_in,
        kind: Kind::Kubelet,
        content: Content::new(text.into_bytes(), 0o644),
        edits: Vec::new(),
    })
}

/// A unit and its drop-ins, but for `except`, in the order in which systemd reads them.
fn unit_texts(root: &Root, unit: &Path, except: &Path) -> Vec<String> {
    let mut drop_ins = BTreeMap::new();
    let directory = format!(
        "{}.d",
        unit.file_name().unwrap_or_default().to_string_lossy()
    );
    for parent in UNIT_DIRS {
        let directory = Path::new(parent).join(&directory);
        let entries = root.target(&directory).and_then(fs::read_dir);
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let path = directory.join(&name);
            if path.extension().is_some_and(|e| e == "conf") && path != except {
                // A later directory replaces a file of the same name.
                drop_ins.insert(name, path);
            }
        }
    }
    std::iter::once(unit.to_owned())
        .chain(drop_ins.into_values())
        .filter_map(|path| root.read_text(path).ok())
        .collect()
}

/// The command that units start in the end.
fn command(texts: &[String]) -> Option<String> {
    let mut command = None;
    for text in texts {
        let joined = text.replace("\\\n", " ");
        for line in joined.lines() {
            if let Some(value) = line.trim().strip_prefix("ExecStart=") {
                let words: Vec<&str> = value.split_whitespace().collect();
                command = (!words.is_empty()).then(|| words.join(" "));
            }
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_command_counts() {
        let texts = [
            "[Service]\nExecStart=/usr/bin/kubelet\nRestart=always\n".to_owned(),
            "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $A \\\n    $B\n".to_owned(),
        ];
        assert_eq!(command(&texts).unwrap(), "/usr/bin/kubelet $A $B");
        assert_eq!(command(&["ExecStart=\n".to_owned()]), None);
    }
}
