//! Installing over an installation.

use std::fs;

use super::{Node, install, status};

const SHIM: &str = "/usr/local/bin/containerd-shim-kybernate-v1";
const TASK: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/a/shim-binary-path";

#[test]
fn the_installed_copy_installs_itself_and_stays() {
    let node = Node::fixture("kubeadm-2.1");
    let before = node.tree();
    node.install().unwrap();
    let mut request = node.request();
    request.from = node.dir.path().join("usr/local/bin");
    request.nri = Some(false);
    let outcome = install(&request, false).unwrap();
    assert!(!outcome.diff.contains("usr/local/bin"), "{}", outcome.diff);
    let installed = status(&request.root).unwrap().installed.unwrap();
    let has = |name: &str| installed.files.iter().any(|file| file.path.ends_with(name));
    assert!(has("kybernate") && has("containerd-shim-kybernate-v1") && !has("10-kybernate"));
    assert!(status(&request.root).unwrap().is_sound());
    assert_eq!(install(&request, false).unwrap().changed, 0);
    node.uninstall().unwrap();
    assert_eq!(node.tree(), before);
}

#[test]
fn what_a_package_has_put_in_place_stays_the_packages() {
    let node = Node::fixture("kubeadm-2.1");
    node.file(SHIM, "packaged")
        .file("/usr/local/bin/kybernate", "packaged");
    let before = node.tree();
    let mut request = node.request();
    request.from = node.dir.path().join("usr/local/bin");
    request.nri = Some(false);
    install(&request, false).unwrap();
    install(&request, false).unwrap();
    node.uninstall().unwrap();
    assert_eq!(node.tree(), before);
}

#[test]
fn a_shim_that_runs_keeps_its_path_when_programs_move() {
    let node = Node::fixture("kubeadm-2.1");
    let before = node.tree();
    fs::write(node.programs.path().join("kybernate-cuda"), "cuda").unwrap();
    node.install().unwrap();
    let here = |path: &str| node.dir.path().join(path.trim_start_matches('/')).exists();
    let mut request = node.request();
    request.node.bin_dir = Some("/opt/bin".into());

    // A task names it.
    node.file(TASK, SHIM);
    let outcome = install(&request, false).unwrap();
    let stays = |note: &&String| note.contains(" stays, since shims");
    assert_eq!(outcome.notes.iter().filter(stays).count(), 2);
    assert!(here(SHIM) && here("/usr/local/bin/kybernate-cuda"));
    assert!(here("/opt/bin/containerd-shim-kybernate-v1"));
    assert!(!here("/usr/local/bin/kybernate"));
    assert!(status(&request.root).unwrap().is_sound());
    assert_eq!(install(&request, false).unwrap().changed, 0);

    // It runs.
    fs::remove_dir_all(node.dir.path().join("run")).unwrap();
    node.file("/proc/4000/cmdline", &format!("{SHIM}\0-id\0a"));
    assert_eq!(install(&request, false).unwrap().changed, 0);
    assert!(here(SHIM));

    // Another one runs.
    node.file(
        "/proc/4000/cmdline",
        "/opt/bin/containerd-shim-kybernate-v1\0",
    );
    install(&request, false).unwrap();
    assert!(!here(SHIM) && !here("/usr/local/bin/kybernate-cuda"));

    fs::remove_dir_all(node.dir.path().join("proc/4000")).unwrap();
    node.uninstall().unwrap();
    assert_eq!(node.tree(), before);
}

#[test]
fn what_was_named_the_last_time_stays_named() {
    let node = Node::fixture("kubeadm-2.1");
    let before = node.tree();
    let mut request = node.request();
    request.node.set("bin_dir", "/opt/bin").unwrap();
    request.node.set("cni_bin_dir", "/opt/cni").unwrap();
    install(&request, false).unwrap();
    assert_eq!(node.install().unwrap().changed, 0);

    // What is named now wins, and the rest stays.
    let mut request = node.request();
    request.node.set("cni_bin_dir", "/usr/cni").unwrap();
    install(&request, false).unwrap();
    let settings = node.read("/etc/kybernate/node.toml");
    assert!(settings.contains("bin_dir = \"/opt/bin\""), "{settings}");
    assert!(
        settings.contains("cni_bin_dir = \"/usr/cni\""),
        "{settings}"
    );
    assert!(!node.dir.path().join("usr/local/bin").exists());

    // The administrator's file wins over what the installer has written.
    let own = "/etc/kybernate/config.toml";
    node.file(own, "[node]\nbin_dir = \"/srv/bin\"\n");
    node.install().unwrap();
    assert!(node.dir.path().join("srv/bin/kybernate").exists());
    fs::remove_file(node.dir.path().join(&own[1..])).unwrap();

    // Another kind of node is another matter.
    let mut request = node.request();
    request.node.set("profile", "containerd").unwrap();
    install(&request, false).unwrap();
    let settings = node.read("/etc/kybernate/node.toml");
    assert!(!settings.contains("bin_dir"), "{settings}");
    assert!(node.dir.path().join("usr/local/bin/kybernate").exists());

    // A file that nobody can read is written anew.
    node.file("/etc/kybernate/node.toml", "[node");
    node.install().unwrap();
    assert!(status(&node.request().root).unwrap().is_sound());
    node.uninstall().unwrap();
    assert_eq!(node.tree(), before);
}

#[test]
fn only_what_is_in_place_goes_where_a_package_has_its_programs() {
    let node = Node::fixture("kubeadm-2.1");
    for name in ["kybernate", "containerd-shim-kybernate-v1"] {
        node.file(&format!("/usr/bin/{name}"), "packaged");
    }
    let mut request = node.request();
    request.nri = Some(false);
    request.from = node.dir.path().join("usr/bin");
    request.node.bin_dir = Some("/usr/bin".into());
    install(&request, false).unwrap();
    request.node.bin_dir = None;
    assert_eq!(install(&request, false).unwrap().changed, 0);
    // Programs of an archive don't go over the package's.
    node.install().unwrap();
    assert_eq!(node.read("/usr/bin/kybernate"), "packaged");
    assert!(node.dir.path().join("usr/local/bin/kybernate").exists());
}

#[test]
fn what_others_wrote_before_our_part_outlives_it() {
    let node = Node::fixture("kubeadm-debian");
    let path = "/etc/containerd/config.toml";
    let original = node.read(path);
    node.install().unwrap();
    // Nothing has to be changed for it, so nothing is kept of the file as it was.
    node.file(path, &format!("# theirs\n{}", node.read(path)));
    assert_eq!(node.install().unwrap().changed, 0);
    node.uninstall().unwrap();
    assert_eq!(node.read(path), format!("# theirs\n{original}"));
}

#[test]
fn what_others_write_into_files_that_we_made_stays() {
    let made = |name: &str, path: &str, begins: &str| {
        let node = Node::fixture(name);
        let mut request = node.request();
        request.node.profile = (name == "docker").then(|| "containerd".into());
        fs::remove_file(node.dir.path().join(&path[1..])).ok();
        let bare = node.tree();
        install(&request, false).unwrap();
        node.uninstall().unwrap();
        assert_eq!(node.tree(), bare, "{name}");

        install(&request, false).unwrap();
        let theirs = "\n[plugins.\"io.containerd.theirs.v1.x\"]\n  y = 1\n";
        node.file(path, &format!("# before\n{}{theirs}", node.read(path)));
        install(&request, false).unwrap();
        let text = node.read(path);
        assert!(
            text.contains(theirs) && text.starts_with("# before"),
            "{text}"
        );
        assert_eq!(text.matches("runtimes.kybernate]").count(), 1, "{text}");
        assert_eq!(install(&request, false).unwrap().changed, 0);
        node.uninstall().unwrap();
        let left = node.read(path);
        assert_eq!(left, format!("# before\n{begins}{theirs}"));

        // Written between an installation and its end.
        fs::remove_file(node.dir.path().join(&path[1..])).unwrap();
        install(&request, false).unwrap();
        node.file(path, &format!("{}{theirs}", node.read(path)));
        node.uninstall().unwrap();
        assert_eq!(node.read(path), format!("{begins}{theirs}"));
    };
    made("docker", "/etc/containerd/config.toml", "version = 2\n");
    let template = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl";
    made("k3s-1.7", template, "{{ template \"base\" . }}\n");
}
