//! Whole installations in directories that stand for nodes.
//!
//! The nodes are those of `configs/fixtures`: files as the distributions write them, and
//! `processes` with the command lines of what would run there.

mod again;
mod arbitrary;
mod transactions;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use kybernate_config::profile::{NodeSettings, Root};

use super::{Outcome, Reach, Request, install, status, uninstall};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/fixtures");

/// A directory that stands for a node.
struct Node {
    dir: tempfile::TempDir,
    programs: tempfile::TempDir,
}

impl Node {
    fn empty() -> Self {
        let programs = tempfile::tempdir().unwrap();
        for name in [
            "kybernate",
            "containerd-shim-kybernate-v1",
            "kybernate-nri",
            "kybernate-cri-hooks",
        ] {
            fs::write(programs.path().join(name), b"\x7fELF\0").unwrap();
        }
        Self {
            dir: tempfile::tempdir().unwrap(),
            programs,
        }
    }

    fn fixture(name: &str) -> Self {
        let node = Self::empty();
        copy(&Path::new(FIXTURES).join(name), node.dir.path());
        let processes = node.dir.path().join("processes");
        let lines = fs::read_to_string(&processes).unwrap_or_default();
        for (index, line) in lines.lines().enumerate() {
            let process = node.dir.path().join(format!("proc/{}", index + 100));
            fs::create_dir_all(&process).unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            fs::write(process.join("cmdline"), words.join("\0")).unwrap();
        }
        let _ = fs::remove_file(processes);
        node
    }

    fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn read(&self, path: &str) -> String {
        let root = Root::new(self.dir.path());
        root.read_text(path).unwrap()
    }

    fn request(&self) -> Request {
        Request {
            root: Root::new(self.dir.path()),
            reach: Reach::Files,
            from: self.programs.path().to_owned(),
            node: NodeSettings::default(),
            runtime_type: None,
            hooks: None,
            nri: None,
            restart: true,
            patience: Duration::from_secs(1),
            force: false,
        }
    }

    fn install(&self) -> anyhow::Result<Outcome> {
        install(&self.request(), false)
    }

    fn uninstall(&self) -> anyhow::Result<Outcome> {
        uninstall(&self.request(), false)
    }

    /// Everything below, with owners, permissions and times of files.
    fn tree(&self) -> BTreeMap<PathBuf, String> {
        let mut tree = BTreeMap::new();
        list(self.dir.path(), self.dir.path(), &mut tree);
        tree
    }
}

fn list(base: &Path, directory: &Path, into: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        let facts = fs::symlink_metadata(&path).unwrap();
        let what = if facts.is_dir() {
            list(base, &path, into);
            format!("directory {:o}", facts.mode())
        } else if facts.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else {
            let bytes = fs::read(&path).unwrap();
            let time = (facts.mtime(), facts.mtime_nsec());
            let (mode, uid) = (facts.mode(), facts.uid());
            format!(
                "{mode:o} {uid} {time:?} {}",
                String::from_utf8_lossy(&bytes)
            )
        };
        into.insert(path.strip_prefix(base).unwrap().to_owned(), what);
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Fixtures that can be installed on, and the versions of containerd on them.
const INSTALLABLE: &[&str] = &[
    "aks",
    "eks-1.7",
    "eks-2.1",
    "gke",
    "gke-cos",
    "k0s",
    "k3s-1.7",
    "k3s-2.0",
    "k3s-2.1",
    "kind",
    "kubeadm-1.7",
    "kubeadm-2.1",
    "kubeadm-debian",
    "kubeadm-nvidia",
    "kubeadm-v1",
    "microk8s",
    "minikube",
    "rke2",
    "rke2-template",
];

/// `KYBERNATE_BLESS=1` writes the diffs anew.
#[test]
fn every_distribution_is_changed_as_it_should_be_and_back() {
    let golden = Path::new(FIXTURES).join("golden");
    for name in INSTALLABLE {
        let node = Node::fixture(name);
        let before = node.tree();
        let mut request = node.request();
        request.hooks = Some(
            !name.starts_with("k3s")
                && !name.starts_with("rke2")
                && *name != "k0s"
                && ["kubeadm-1.7", "microk8s", "eks-2.1"].contains(name),
        );
        let shown = install(&request, true).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(
            node.tree(),
            before,
            "{name}: a dry run has changed something"
        );
        let expected = golden.join(format!("{name}.diff"));
        if std::env::var_os("KYBERNATE_BLESS").is_some() {
            fs::create_dir_all(&golden).unwrap();
            fs::write(&expected, &shown.diff).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(shown.diff, expected, "{name}");

        install(&request, false).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert!(status(&request.root).unwrap().is_sound(), "{name}");
        let installed = node.tree();
        let again = install(&request, false).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(again.changed, 0, "{name}: {}", again.diff);
        assert_eq!(node.tree(), installed, "{name}: nothing had to be changed");

        let shown = uninstall(&request, true).unwrap();
        assert!(!shown.diff.is_empty(), "{name}");
        node.uninstall().unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(node.tree(), before, "{name}: not as it was");
    }
}

#[test]
fn nodes_that_cannot_be_changed_say_why_and_stay_as_they_are() {
    let node = Node::fixture("docker");
    let before = node.tree();
    let err = node.install().unwrap_err().to_string();
    assert!(err.contains("CRI plugin is disabled"), "{err}");
    assert_eq!(node.tree(), before);

    let node = Node::fixture("k3s-2.1");
    let mut request = node.request();
    request.hooks = Some(true);
    let before = node.tree();
    let err = install(&request, false).unwrap_err().to_string();
    assert!(err.contains("--with-hooks does not work on k3s"), "{err}");
    assert_eq!(node.tree(), before);

    let node = Node::fixture("kubeadm-1.7");
    node.file("/etc/containerd/config.toml", "version = 2\n[plugins\n");
    let before = node.tree();
    let err = node.install().unwrap_err().to_string();
    assert!(
        err.contains("does not parse") && err.contains("config.toml"),
        "{err}"
    );
    assert_eq!(node.tree(), before);

    let node = Node::fixture("kubeadm-1.7");
    node.file(
        "/etc/containerd/config.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kybernate]\n\
         runtime_type = \"other\"\n",
    );
    let before = node.tree();
    let err = node.install().unwrap_err().to_string();
    assert!(err.contains("already has a runtime"), "{err}");
    assert_eq!(node.tree(), before);

    let node = Node::empty();
    let err = node.uninstall().unwrap_err().to_string();
    assert!(err.contains("nothing is installed"), "{err}");
    // A container on every node has done its work where there is none.
    let mut request = node.request();
    request.reach = Reach::Entered;
    for dry_run in [true, false] {
        let outcome = uninstall(&request, dry_run).unwrap();
        assert!(outcome.notes[0].contains("nothing is installed"));
        assert_eq!(outcome.changed, 0);
        assert!(node.tree().is_empty());
    }
}

#[test]
fn shims_that_run_without_containerd_are_not_left_alone() {
    let node = Node::fixture("kubeadm-2.1");
    node.install().unwrap();
    let mut request = node.request();
    // Nothing is run on it: it is only asked.
    request.reach = Reach::Own;
    assert!(uninstall(&request, true).unwrap().changed > 0);
    let shim = "/usr/local/bin/containerd-shim-kybernate-v1";
    node.file("/proc/4000/cmdline", &format!("{shim}\0-id\0a"));
    let err = uninstall(&request, true).unwrap_err().to_string();
    assert!(
        err.contains("1 of their shims") && err.contains("--force"),
        "{err}"
    );
    request.force = true;
    assert!(uninstall(&request, true).unwrap().changed > 0);
}

#[test]
fn an_upgrade_starts_from_the_untouched_files() {
    let node = Node::fixture("kubeadm-1.7");
    let before = node.tree();
    node.install().unwrap();
    fs::write(node.programs.path().join("kybernate"), b"\x7fELF\0new").unwrap();
    let mut request = node.request();
    request.runtime_type = Some("io.containerd.kybernate.v1".into());
    let outcome = install(&request, false).unwrap();
    assert_eq!(outcome.changed, 2, "the program and the configuration");
    let config = node.read("/etc/containerd/config.toml");
    assert_eq!(config.matches("runtimes.kybernate]").count(), 1);
    assert!(config.contains("runtime_type = \"io.containerd.kybernate.v1\""));
    // What was chosen stays chosen.
    assert_eq!(node.install().unwrap().changed, 0);
    node.uninstall().unwrap();
    assert_eq!(node.tree(), before);
}

#[test]
fn what_others_change_meanwhile_stays() {
    let node = Node::fixture("kubeadm-debian");
    let path = "/etc/containerd/config.toml";
    let original = node.read(path);
    node.install().unwrap();
    node.file(path, &format!("# theirs\n{}", node.read(path)));
    assert!(!status(&node.request().root).unwrap().is_sound());
    // Installing again takes their change over.
    node.install().unwrap();
    assert!(status(&node.request().root).unwrap().is_sound());
    node.file(path, &format!("{}[their.table]\nx = 1\n", node.read(path)));
    let outcome = node.uninstall().unwrap();
    assert!(
        outcome
            .notes
            .iter()
            .any(|note| note.contains("only our part"))
    );
    assert_eq!(
        node.read(path),
        format!("# theirs\n{original}[their.table]\nx = 1\n")
    );
}

#[test]
fn a_node_of_the_profile_keeps_links_modes_and_owners() {
    let node = Node::fixture("microk8s");
    let file = "var/snap/microk8s/7000/args/containerd-template.toml";
    let path = node.dir.path().join(file);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    node.install().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert!(
        node.dir
            .path()
            .join("var/snap/microk8s/current")
            .is_symlink()
    );
    assert!(
        node.read(file)
            .contains("BinaryName = \"/var/snap/microk8s/current/bin/runc\"")
    );
    let settings = node.read("/etc/kybernate/node.toml");
    assert!(
        settings.contains("/var/snap/microk8s/common/run/containerd.sock"),
        "{settings}"
    );
}
