//! A change of several files ends in the old or the new state, wherever it ends.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

use kybernate_config::profile::Root;

use super::Node;
use crate::install::{
    apply::{Change, Event, Ledger, Recovery},
    file::Content,
    receipt::{Kind, Receipt},
};

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

/// Installs, and does `meddle` at every event. Returns the error.
fn refused(node: &Node, meddle: &dyn Fn(Event)) -> String {
    let all = changes(node);
    let ledger = Ledger::open(&Root::new(node.dir.path())).unwrap();
    let (new, mut activate) = (Some(receipt(&all)), |_| Ok(()));
    ledger
        .apply(&all, new, Vec::new(), &mut activate, &mut |event| {
            meddle(event);
        })
        .unwrap_err()
        .to_string()
}

#[test]
fn an_error_says_nothing_has_been_changed_only_where_that_is_so() {
    const UNCHANGED: &str = "nothing has been changed";
    let fresh = || {
        let node = Node::empty();
        node.file("/etc/b", "old b").file("/etc/c", "old c");
        node
    };
    // What is to be removed is gone already: all of it is undone.
    let node = fresh();
    let path = node.dir.path().join("etc/c");
    let said = refused(&node, &|event| {
        if event == Event::Swapped(1) {
            fs::remove_file(&path).unwrap();
        }
    });
    assert!(said.ends_with(UNCHANGED), "{said}");
    assert_eq!(
        (node.read("/etc/b"), node.read("/etc/c")),
        ("old b".into(), "old c".into())
    );

    // All is made and the receipt can't be written; a next run does that.
    let node = fresh();
    let path = node
        .dir
        .path()
        .join("var/lib/kybernate/install/receipt.json");
    let said = refused(&node, &|event| {
        if event == Event::Committed {
            fs::create_dir(&path).unwrap();
        }
    });
    assert!(
        said.contains("is installed") && !said.contains(UNCHANGED),
        "{said}"
    );
    assert_eq!(node.read("/etc/b"), "new b");
    let ledger = Ledger::open(&Root::new(node.dir.path())).unwrap();
    let again = ledger.recover().unwrap_err().to_string();
    assert_eq!(again, said);
    fs::remove_dir(&path).unwrap();
    assert_eq!(ledger.recover().unwrap(), Recovery::Finished);

    // An interrupted run that can't be undone.
    let node = fresh();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        refused(&node, &|event| assert!(event != Event::Swapped(1)))
    }));
    assert!(ended.is_err());
    fs::create_dir(node.dir.path().join("etc/b.kybernate-new")).unwrap();
    let ledger = Ledger::open(&Root::new(node.dir.path())).unwrap();
    let said = ledger.recover().unwrap_err().to_string();
    assert!(
        said.contains("interrupted") && said.contains("backup") && !said.contains(UNCHANGED),
        "{said}"
    );
}

#[test]
fn only_one_run_at_a_time() {
    let node = Node::fixture("kubeadm-debian");
    let _ledger = Ledger::open(&Root::new(node.dir.path())).unwrap();
    let err = node.install().unwrap_err().to_string();
    assert!(err.contains("another installation is under way"), "{err}");
}
