//! The manifests render, and grant what docs/privileges.md says and no more.
//!
//! `kubectl kustomize` needs no cluster. Where kubectl is not installed the test says so and
//! looks at nothing.

use std::{path::Path, process::Command};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes");
const CAPABILITIES: [&str; 6] = [
    "SYS_ADMIN",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "DAC_OVERRIDE",
    "CHOWN",
    "FOWNER",
];

fn render(directory: &str) -> Option<String> {
    let output = Command::new("kubectl")
        .arg("kustomize")
        .arg(Path::new(MANIFESTS).join(directory))
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: kubectl is not installed, {directory} is not rendered");
        return None;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{directory}: {errors}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The lines below `key:` that are indented more, or are items of its list.
fn below<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let mut lines = text.lines().skip_while(|line| line.trim() != key);
    let Some(first) = lines.next() else {
        return Vec::new();
    };
    let indent = first.len() - first.trim_start().len();
    lines
        .take_while(|line| {
            let depth = line.len() - line.trim_start().len();
            depth > indent || depth == indent && line.trim_start().starts_with("- ")
        })
        .map(|line| line.trim_start().trim_start_matches("- "))
        .collect()
}

#[test]
fn production_has_the_capabilities_of_the_table() {
    for overlay in [
        "base",
        "overlays/microk8s",
        "overlays/k3s",
        "overlays/rke2",
        "overlays/eks",
        "overlays/gke",
        "overlays/hooks",
        "overlays/uninstall",
    ] {
        let Some(text) = render(overlay) else { return };
        assert_eq!(below(&text, "add:"), CAPABILITIES, "{overlay}");
        assert!(!text.contains("privileged: true"), "{overlay}");
        assert!(text.contains("hostNetwork: false"), "{overlay}");
        assert_eq!(text.matches("readOnlyRootFilesystem: true").count(), 2);
        assert!(text.contains("handler: kybernate"), "{overlay}");
        assert!(text.contains("ghcr.io/kybernate/kybernate:"), "{overlay}");
    }
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/privileges.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    for name in CAPABILITIES {
        assert!(
            docs.contains(&format!("`{name}`")),
            "{name} is not explained"
        );
    }
}

#[test]
fn overlays_say_what_they_are_for() {
    for (overlay, args) in [
        ("base", &["install", "--root=/host", "--host"][..]),
        (
            "overlays/microk8s",
            &["install", "--root=/host", "--host", "--profile=microk8s"],
        ),
        (
            "overlays/hooks",
            &["install", "--root=/host", "--host", "--with-hooks"],
        ),
        (
            "overlays/uninstall",
            &["uninstall", "--root=/host", "--host"],
        ),
    ] {
        let Some(text) = render(overlay) else { return };
        // The list stands on the line of its container's dash.
        let text = text.replace("- args:", "  args:");
        assert_eq!(below(&text, "args:"), args, "{overlay}");
    }
    let Some(text) = render("overlays/development") else {
        return;
    };
    assert!(text.contains("privileged: true"));
    assert!(!text.contains("SYS_ADMIN"));
}

#[test]
fn examples_are_of_the_class_and_need_no_rights() {
    let Some(text) = render("examples") else {
        return;
    };
    assert_eq!(text.matches("runtimeClassName: kybernate").count(), 2);
    assert!(text.contains("pod-security.kubernetes.io/enforce: restricted"));
    assert!(text.contains("restore.kybernate.io/counter: /var/lib/kybernate/counter.tar.zst"));
}
