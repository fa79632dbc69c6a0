//! Whole installations in directories that stand for nodes.
//!
//! The nodes are those of `configs/fixtures`: files as the distributions write them, and
//! `processes` with the command lines of what would run there.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use kybernate_config::profile::{NodeSettings, Root};
use proptest::prelude::*;

use super::{
    Outcome, Reach, Request,
    apply::{Change, Event, Ledger, Recovery},
    file::Content,
    install,
    receipt::{Kind, Receipt},
    status, uninstall,
};

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

    let err = Node::empty().uninstall().unwrap_err().to_string();
    assert!(err.contains("nothing is installed"), "{err}");
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

/// Values and tables as they stand in configurations, our runtime's name excepted.
fn arbitrary_config() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        any::<i32>().prop_map(|n| n.to_string()),
        any::<bool>().prop_map(|b| b.to_string()),
        "[a-z /.*]{0,12}".prop_map(|s| format!("\"{s}\"")),
        Just("[ 1, 2, # two\n 3 ]".to_owned()),
        Just("{ a = 1, b = { c = \"d\" } }".to_owned()),
        Just("'''\nraw\n'''".to_owned()),
    ];
    let pair = ("[a-z_]{1,8}", value).prop_map(|(key, value)| format!("{key}_ = {value}\n"));
    let comment = prop_oneof![
        Just(String::new()),
        Just("# comment\n".to_owned()),
        Just("\n\n".to_owned()),
        Just("  # >>> indented\n".to_owned()),
    ];
    let runtimes = prop_oneof![
        Just(String::new()),
        Just("[plugins.\"CRI\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n".to_owned()),
        Just("[plugins.\"CRI\".containerd]\nruntimes = { runc = { runtime_type = \"x\" } }\n".to_owned()),
        Just("[plugins.\"CRI\"]\ncontainerd.runtimes.runc.runtime_type = \"x\"\n".to_owned()),
        Just("[plugins.\"CRI\".containerd.runtimes]\n[plugins.\"CRI\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n".to_owned()),
        Just("[plugins]\n'CRI' = { sandbox_image = 'x' }\n".to_owned()),
    ];
    let nri = prop_oneof![
        Just(String::new()),
        Just("[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true # why\n".to_owned()),
        Just("[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = false\n".to_owned()),
        Just("[plugins.\"io.containerd.nri.v1.nri\"]\n".to_owned()),
        Just("[plugins.\"io.containerd.nri.v1.nri\"]\n  socket_path = \"/x\"\n".to_owned()),
    ];
    let table = (comment.clone(), prop::collection::vec(pair, 0..3));
    (
        2..=3i64,
        prop::collection::vec(table, 0..4),
        comment,
        runtimes,
        nri,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(version, tables, comment, runtimes, nri, windows, cut)| {
            let mut text = format!("{comment}version = {version}\n");
            text.push_str(&runtimes);
            text.push_str(&nri);
            for (index, (comment, pairs)) in tables.into_iter().enumerate() {
                text.push_str(&format!(
                    "{comment}[plugins.\"io.containerd.t{index}.v1.x\"]\n"
                ));
                let mut seen = Vec::new();
                for pair in pairs {
                    let key = pair.split(' ').next().unwrap_or_default().to_owned();
                    if !seen.contains(&key) {
                        text.push_str(&pair);
                        seen.push(key);
                    }
                }
            }
            let cri = if version == 3 {
                "io.containerd.cri.v1.runtime"
            } else {
                "io.containerd.grpc.v1.cri"
            };
            text = text.replace("CRI", cri);
            if windows {
                text = text.replace('\n', "\r\n");
            }
            if cut {
                text = text.trim_end().to_owned();
            }
            text
        })
        .prop_filter("valid TOML", |text| text.parse::<toml::Table>().is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn uninstalling_after_installing_changes_nothing(text in arbitrary_config()) {
        let node = Node::empty();
        node.file("/etc/containerd/config.toml", &text);
        let before = node.tree();
        node.install().unwrap();
        let after: toml::Table = node.read("/etc/containerd/config.toml").parse().unwrap();
        let plugins = after["plugins"].as_table().unwrap();
        let ours = plugins.values().filter_map(|plugin| {
            plugin.get("containerd")?.get("runtimes")?.get("kybernate")?.get("runtime_path")
        });
        prop_assert_eq!(ours.count(), 1);
        // Drifted or not, the same text comes back.
        let drifted = format!("{}\n# theirs\n", node.read("/etc/containerd/config.toml"));
        node.uninstall().unwrap();
        prop_assert_eq!(node.tree(), before);
        node.install().unwrap();
        node.file("/etc/containerd/config.toml", &drifted);
        node.uninstall().unwrap();
        prop_assert_eq!(
            node.read("/etc/containerd/config.toml"),
            format!("{text}\n# theirs\n")
        );
    }
}

/// A transaction over a new, a changed and a removed file, in a directory that is not there yet.
fn changes(node: &Node) -> Vec<Change> {
    let root = Root::new(node.dir.path());
    let current = |path: &str| Content::read(&root.target(path).unwrap()).unwrap();
    let change = |path: &str, after: Option<&str>| Change {
        path: path.into(),
        kind: Kind::Containerd,
        before: current(path),
        after: after.map(|text| Content::new(text.as_bytes().to_vec(), 0o644)),
        original: current(path),
        edits: Vec::new(),
    };
    vec![
        change("/new/deep/a", Some("a")),
        change("/etc/b", Some("new b")),
        change("/etc/c", None),
    ]
}

fn receipt(changes: &[Change]) -> Receipt {
    let all = kybernate_config::profile::all();
    let profile = kybernate_config::profile::find(&all, "containerd").unwrap();
    let node = kybernate_config::profile::resolve(profile, &Root::new("/nonexistent"), &[]);
    let mut receipt = Receipt::new(node.unwrap().node, "t".into(), false, false);
    receipt.files = changes.iter().filter_map(Change::installed).collect();
    receipt
}

/// A process that ends at an event leaves nothing of its own running: a panic stands for it.
#[test]
fn a_change_that_ends_anywhere_ends_in_the_old_or_the_new_state() {
    let fresh = || {
        let node = Node::empty();
        node.file("/etc/b", "old b").file("/etc/c", "old c");
        node
    };
    let events = RefCell::new(Vec::new());
    let node = fresh();
    let (root, all) = (Root::new(node.dir.path()), changes(&node));
    let ledger = Ledger::open(&root).unwrap();
    let made = Vec::new();
    ledger
        .apply(
            &all,
            Some(receipt(&all)),
            made,
            &mut |_| Ok(()),
            &mut |event| {
                events.borrow_mut().push(event);
            },
        )
        .unwrap();
    drop(ledger);
    let events = events.into_inner();
    assert_eq!(events.len(), 9, "{events:?}");
    let without_state = |node: &Node| {
        let mut tree = node.tree();
        tree.retain(|path, _| !path.starts_with("var"));
        // The time of what was written anew is that of now.
        let mut texts = BTreeMap::new();
        for (path, what) in tree {
            let text = what.split(") ").last().unwrap_or_default().to_owned();
            texts.insert(path, text);
        }
        texts
    };
    let new = without_state(&node);
    for stop in events {
        let node = fresh();
        let old = node.tree();
        let root = Root::new(node.dir.path());
        let all = changes(&node);
        let ledger = Ledger::open(&root).unwrap();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let _ = ledger.apply(
                &all,
                Some(receipt(&all)),
                Vec::new(),
                &mut |_| Ok(()),
                &mut |event| assert!(event != stop, "the end"),
            );
        }));
        assert!(ended.is_err(), "{stop:?} did not happen");
        drop(ledger);
        let ledger = Ledger::open(&root).unwrap();
        let recovery = ledger.recover().unwrap();
        let kept = matches!(stop, Event::Committed | Event::Recorded);
        match (&recovery, stop) {
            (Recovery::Finished, Event::Committed) | (Recovery::None, Event::Recorded) => {}
            (Recovery::RolledBack { kinds, .. }, _) if !kept => {
                assert_eq!(kinds.is_empty(), stop != Event::Activating, "{stop:?}");
            }
            other => panic!("{other:?}"),
        }
        if kept {
            assert_eq!(without_state(&node), new, "{stop:?}");
            assert!(ledger.receipt().unwrap().is_some());
        } else {
            drop(ledger);
            let mut tree = node.tree();
            tree.retain(|path, _| !path.starts_with("var"));
            assert_eq!(tree, old, "{stop:?}");
        }
    }
}

#[test]
fn a_restart_that_fails_puts_everything_back() {
    let node = Node::empty();
    node.file("/etc/b", "old b").file("/etc/c", "old c");
    let before = node.tree();
    let root = Root::new(node.dir.path());
    let all = changes(&node);
    let made = Ledger::missing(&root);
    let ledger = Ledger::open(&root).unwrap();
    let mut calls = Vec::new();
    let mut activate = |back: bool| {
        calls.push((back, node.read("/etc/b")));
        if back { Ok(()) } else { Err("no".to_owned()) }
    };
    let err = ledger
        .apply(&all, Some(receipt(&all)), made, &mut activate, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert_eq!(err, "no; everything was put back as it was");
    assert_eq!(
        calls,
        [(false, "new b".to_owned()), (true, "old b".to_owned())]
    );
    drop(ledger);
    assert_eq!(node.tree(), before);
}

#[test]
fn only_one_run_at_a_time() {
    let node = Node::fixture("kubeadm-debian");
    let _ledger = Ledger::open(&Root::new(node.dir.path())).unwrap();
    let err = node.install().unwrap_err().to_string();
    assert!(err.contains("another installation is under way"), "{err}");
}
