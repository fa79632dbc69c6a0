//! What an installation would be: the plan, and containerd's opinion of it. Nothing is changed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use kybernate_config::names::RUNC_RUNTIME_TYPE;

use super::{
    Outcome, Request,
    apply::Ledger,
    check,
    containerd::{self, Registration},
    file::Facts,
    hooks,
    locate::{self, Loaded, Located, Place},
    plan::{Originals, Plan, Wish},
    programs,
    receipt::Receipt,
    shims,
    site::{Site, backup_in, survey},
    wishes,
};

/// Everything that only reads: the node, the plan, and containerd's opinion of it.
pub fn prepare(
    request: &Request,
    receipt: Option<&Receipt>,
    ledger: &Option<Ledger>,
    outcome: &mut Outcome,
) -> anyhow::Result<(Site, Plan, Receipt)> {
    let site = survey(request, receipt)?;
    let node = &site.node;
    outcome.found.push(match site.evidence.is_empty() {
        true => site.profile.title.clone(),
        false => format!("{} ({})", site.profile.title, site.evidence.join(", ")),
    });
    let hooks = request
        .hooks
        .unwrap_or_else(|| receipt.is_some_and(|receipt| receipt.hooks));
    if let Some(why) = site.profile.hooks_refused.as_ref().filter(|_| hooks) {
        bail!(
            "--with-hooks does not work on {}: {why}",
            site.profile.title
        );
    }
    let nri = request
        .nri
        .unwrap_or_else(|| receipt.is_none_or(|receipt| receipt.nri));
    let originals = Originals {
        root: &request.root,
        receipt,
        backup: |facts: &Facts| backup_in(&request.root, facts),
    };
    let bytes = |path: &Path| Ok(originals.original(path)?.map(|content| content.bytes));
    let version = site.host.ask(&node.containerd_binary, &["--version"]);
    let version = version.filter(|said| said.success).map(|said| said.stdout);
    let major = version.as_deref().and_then(crate::doctor::version);
    if let Some(version) = &version {
        outcome.found.push(version.trim().to_owned());
    }
    if major.is_some_and(|version| version < (1, 7)) {
        bail!("this containerd is too old: 1.7 or later is needed");
    }
    let major = major.map(|(major, _)| major);
    let located = locate::locate(&request.root, node, major, &bytes)?;
    // containerd knows best what is in effect; its files tell the rest.
    let dumped = match ledger {
        Some(_) => check::present(&site.host, &node.containerd_binary, &located.loaded)?,
        None => None,
    };
    let merged = dumped.as_ref().unwrap_or(&located.merged);
    let runtime_type = request
        .runtime_type
        .clone()
        .or_else(|| receipt.map(|receipt| receipt.runtime_type.clone()))
        .unwrap_or_else(|| RUNC_RUNTIME_TYPE.to_owned());
    let registration = Registration {
        runtime_type: runtime_type.clone(),
        bin_dir: node.bin_dir.display().to_string(),
        runc: wishes::uncommon_runc(&request.root, node),
    };
    if runtime_type != RUNC_RUNTIME_TYPE && major == Some(1) {
        outcome.notes.push(format!(
            "containerd 1 hands checkpoint options to {RUNC_RUNTIME_TYPE} alone: pods of the type \
             {runtime_type} run, and can't be checkpointed"
        ));
    }
    let setup = wishes::Setup {
        located: &located,
        merged,
        registration: &registration,
        major,
        nri,
        plugin_dir: programs::plugin_dir(node, merged),
    };
    let configured = setup.wish(|path| originals.original(path))?;
    outcome.notes.extend(configured.notes);
    if ledger.is_some() && !configured.texts.is_empty() {
        let after = apply_texts(&located, &configured.texts);
        let tables = |config: &containerd::Config| {
            let wanted = merged.tables(config.version, &registration);
            config.has(&wanted[..1])
        };
        outcome.checked = check::compare(
            &site.host,
            &node.containerd_binary,
            &located.loaded,
            &after,
            tables,
        )?;
    }
    if ledger.is_some() && !outcome.checked && !configured.texts.is_empty() {
        outcome.notes.push(format!(
            "the new configuration was not checked by containerd: {} can't be run here",
            node.containerd_binary.display()
        ));
    }
    let mut wanted: Vec<Wish> =
        programs::programs(&request.from, &request.root, node, hooks, receipt)?;
    if let Some(receipt) = receipt {
        let kept = shims::kept(&request.root, node, receipt, &wanted)
            .context("cannot tell which shims run")?;
        outcome.notes.extend(kept.iter().map(|wish| {
            format!(
                "{} stays, since shims of pods that run need it; the next run without such pods \
                 removes it",
                wish.path.display()
            )
        }));
        wanted.extend(kept);
    }
    wanted.push(wishes::settings(node, &site.overrides));
    if nri {
        wanted.push(programs::plugin(&request.from, node, merged)?);
    }
    if hooks {
        wanted.extend(hooks::units(node));
    }
    wanted.extend(configured.wishes);
    if hooks {
        wanted.push(hooks::kubelet(&request.root, node, |path| {
            originals.original(path)
        })?);
    }
    let plan = originals.plan(wanted)?;
    let mut new = Receipt::new(node.clone(), runtime_type, hooks, nri);
    new.files.clone_from(&plan.installed);
    if let Some(receipt) = receipt {
        new.directories.clone_from(&receipt.directories);
    }
    Ok((site, plan, new))
}

/// What containerd will read: what it reads now, with changed and added texts.
fn apply_texts(located: &Located, texts: &[(PathBuf, String)]) -> Vec<Loaded> {
    let mut files = located.loaded.clone();
    for (path, text) in texts {
        let config = containerd::Config::parse(text).unwrap_or_else(|_| located.merged.clone());
        let new = Loaded {
            path: path.clone(),
            text: text.clone(),
            config,
        };
        // k0s merges its own way: as if all were one file.
        let one = matches!(&located.place, Place::DropIn(_))
            && files.len() == 1
            && !files[0].config.table.contains_key("imports");
        if let Some(file) = files.iter_mut().find(|file| file.path == *path) {
            *file = new;
        } else if one {
            let body = text.lines().filter(|line| !line.starts_with("version"));
            let body: String = body.map(|line| format!("{line}\n")).collect();
            files[0].text.push_str(&format!("\n{body}"));
        } else {
            files.push(new);
        }
    }
    files
}
