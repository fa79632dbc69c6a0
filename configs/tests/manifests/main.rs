//! The manifests render, are valid, come out alike from Kustomize and Helm, and grant what
//! docs/privileges.md says and no more.
//!
//! None of it needs a cluster. The tools are kubectl, AppArmor's parser, and those that
//! `make tools` puts under `target/tools`; a test without its tool says SKIPPED, and fails where
//! `KYBERNATE_REQUIRE_ALL=1` or `CI=true` is set.

mod chart;
mod objects;
mod privileges;
mod schemas;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// `configs/`.
const CONFIGS: &str = env!("CARGO_MANIFEST_DIR");

/// What a production cluster is given: every overlay but the one for development.
const PRODUCTION: [&str; 9] = [
    "base",
    "overlays/confined",
    "overlays/eks",
    "overlays/gke",
    "overlays/hooks",
    "overlays/k3s",
    "overlays/microk8s",
    "overlays/rke2",
    "overlays/uninstall",
];

/// A file of the workspace.
fn text(path: &str) -> String {
    let path = Path::new(CONFIGS).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A program of `make tools`, or of the system.
fn tool(name: &str) -> Option<PathBuf> {
    let ours = Path::new(CONFIGS).join("../target/tools/bin").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    let found = Some(ours).filter(|path| path.is_file()).or(found);
    if found.is_none() {
        let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|is| is == value);
        let remedy = match name {
            "kubectl" => "install it as Kubernetes' documentation says, 1.27 or newer",
            _ => "run `make tools`",
        };
        let reason = format!("{name} is not installed: {remedy}");
        assert!(
            !set("KYBERNATE_REQUIRE_ALL", "1") && !set("CI", "true"),
            "a skipped test fails this run: {reason}"
        );
        eprintln!("SKIPPED: {reason}");
    }
    found
}

/// Runs a program with some input; its output, or all that it has said.
fn run(command: &mut Command, input: &str) -> Result<String, String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let written = writer.join().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        written.unwrap();
        return Ok(stdout);
    }
    Err(stdout + &String::from_utf8_lossy(&output.stderr))
}

/// What Kustomize makes of a directory of `kubernetes/`; nothing where kubectl is missing.
fn render(directory: &str) -> Option<String> {
    let mut kubectl = Command::new(tool("kubectl")?);
    let path = Path::new(CONFIGS).join("kubernetes").join(directory);
    let made = run(kubectl.arg("kustomize").arg(path), "");
    Some(made.unwrap_or_else(|e| panic!("{directory}: {e}")))
}
