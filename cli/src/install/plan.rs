//! From what is wished to what has to be changed.
//!
//! A wish says what a file is to be, made from what it was before any installation. So an
//! installation over another one, an upgrade and an uninstallation are all the same: the wishes
//! of now against the receipt of then.

use std::{
    io,
    path::{Path, PathBuf},
};

use kybernate_config::profile::Root;

use super::{
    diff,
    edit::{self, Edit},
    file::{Content, Facts},
    locate,
    receipt::{Installed, Kind, Receipt},
};

/// What a file is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Where, in the node's root.
    pub path: PathBuf,
    /// What for.
    pub kind: Kind,
    /// Its content.
    pub content: Content,
    /// How it differs from what it was; empty where all of it is ours.
    pub edits: Vec<Edit>,
}

/// A file that is going to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where, in the node's root.
    pub path: PathBuf,
    /// What for.
    pub kind: Kind,
    /// What it is.
    pub before: Option<Content>,
    /// What it is to be.
    pub after: Option<Content>,
    /// What it was before any installation, and how it differs; for the receipt.
    pub original: Option<Content>,
    /// How it differs from the original; empty where all of it is ours.
    pub edits: Vec<Edit>,
}

/// What has to be changed, and what will be installed then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Every file of the installation, changed or not.
    pub installed: Vec<Installed>,
    /// What the administrator has to know.
    pub notes: Vec<String>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct PlanError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub source: io::Error,
}

/// A node's files as they were before any installation.
#[derive(Debug)]
pub struct Originals<'a, B> {
    /// The node's root.
    pub root: &'a Root,
    /// What is installed.
    pub receipt: Option<&'a Receipt>,
    /// Gives the content of a backup.
    pub backup: B,
}

impl<B: Fn(&Facts) -> io::Result<Content>> Originals<'_, B> {
    /// A file as it is.
    pub fn current(&self, path: &Path) -> io::Result<Option<Content>> {
        Content::read(&self.root.target(path)?)
    }

    /// A file as it was, with what others have changed in it since.
    pub fn original(&self, path: &Path) -> io::Result<Option<Content>> {
        let current = self.current(path)?;
        let Some(installed) = self.receipt.and_then(|receipt| receipt.file(path)) else {
            return Ok(current);
        };
        let before = || installed.before.as_ref().map(&self.backup).transpose();
        let Some(now) = current else { return Ok(None) };
        if now.facts.same(&installed.after) || installed.edits.is_empty() {
            match before() {
                // What took over a change of others and changed nothing has kept nothing.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !installed.edits.is_empty() => {}
                kept => return kept,
            }
        }
        let rest = undone(&now, installed)?;
        // Of a file that we have made, what others have written is theirs.
        let bare = || locate::is_base(&String::from_utf8_lossy(&rest.bytes));
        Ok((installed.before.is_some() || !bare()).then_some(rest))
    }

    /// What has to be changed so that `wishes`, and nothing else of ours, are there.
    pub fn plan(&self, wishes: Vec<Wish>) -> Result<Plan, PlanError> {
        let mut plan = Plan::default();
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| PlanError { path, source }
        };
        let removed = self.receipt.map(|receipt| receipt.files.as_slice());
        // What refers to something goes before it.
        for installed in removed.unwrap_or_default().iter().rev() {
            let path = &installed.path;
            if wishes.iter().any(|wish| wish.path == *path) {
                continue;
            }
            let current = self.current(path).map_err(at(path))?;
            if let Some(now) = &current
                && !now.facts.same(&installed.after)
            {
                plan.notes.push(format!(
                    "{} was changed after the installation; {}",
                    path.display(),
                    match installed.edits.is_empty() {
                        true => "it goes all the same",
                        false => "only our part of it goes",
                    }
                ));
            }
            let after = self.original(path).map_err(at(path))?;
            if current == after {
                continue;
            }
            plan.changes.push(Change {
                path: path.clone(),
                kind: installed.kind,
                before: current,
                after,
                original: None,
                edits: Vec::new(),
            });
        }
        for wish in wishes {
            let current = self.current(&wish.path).map_err(at(&wish.path))?;
            let original = self.original(&wish.path).map_err(at(&wish.path))?;
            let change = Change {
                path: wish.path,
                kind: wish.kind,
                before: current,
                after: Some(wish.content),
                original,
                edits: wish.edits,
            };
            plan.installed.extend(change.installed());
            if !change.is_nothing() {
                plan.changes.push(change);
            }
        }
        Ok(plan)
    }
}

/// A file without our changes.
fn undone(now: &Content, installed: &Installed) -> io::Result<Content> {
    let text = String::from_utf8_lossy(&now.bytes);
    let text = edit::undo(&text, &installed.edits).map_err(io::Error::other)?;
    let mut content = now.with_bytes(text.into_bytes());
    if let Some(before) = &installed.before
        && before.same(&content.facts)
    {
        content.facts = before.clone();
    }
    Ok(content)
}

impl Change {
    /// What a receipt says about the file once it is changed.
    pub fn installed(&self) -> Option<Installed> {
        Some(Installed {
            path: self.path.clone(),
            kind: self.kind,
            before: self.original.as_ref().map(|content| content.facts.clone()),
            after: self.after.as_ref()?.facts.clone(),
            edits: self.edits.clone(),
        })
    }

    fn is_nothing(&self) -> bool {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => before.facts.same(&after.facts),
            (None, None) => true,
            _ => false,
        }
    }

    /// The change as `diff -u` shows it.
    pub fn diff(&self) -> String {
        let bytes = |content: &Option<Content>| content.as_ref().map(|c| c.bytes.clone());
        diff::unified(
            &self.path.display().to_string(),
            bytes(&self.before).as_deref(),
            bytes(&self.after).as_deref(),
        )
    }
}
