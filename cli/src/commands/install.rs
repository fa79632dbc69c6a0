//! `kybernate install`, `uninstall`, `upgrade` and `status`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use kybernate_config::{
    names::{RUNC_RUNTIME_TYPE, RUNTIME_TYPE},
    profile::{NodeSettings, Root},
};

use crate::{
    args::{Install, NodeFlags, Status, Uninstall},
    install::{self, Outcome, Reach, Request},
    output::{Output, json},
};

/// Installs; an upgrade is an installation over one that must be there.
pub fn install(args: &Install, upgrade: bool) -> anyhow::Result<()> {
    let mut request = request(&args.node)?;
    request.from = match &args.from {
        Some(directory) => directory.clone(),
        None => own_directory()?,
    };
    request.runtime_type.clone_from(&args.runtime_type);
    request.hooks = flag(args.with_hooks, args.without_hooks);
    request.nri = flag(args.with_nri, args.without_nri);
    if let Some(other) = &args.runtime_type
        && other != RUNC_RUNTIME_TYPE
        && other != RUNTIME_TYPE
    {
        bail!("--runtime-type is {RUNC_RUNTIME_TYPE} or {RUNTIME_TYPE}, not {other}");
    }
    if upgrade && install::status(&request.root)?.installed.is_none() {
        bail!("nothing is installed that could be upgraded: run `kybernate install`");
    }
    let outcome = install::install(&request, args.node.dry_run)?;
    report(&outcome, args.node.dry_run, "installed")
}

/// Takes an installation away.
pub fn uninstall(args: &Uninstall) -> anyhow::Result<()> {
    let mut request = request(&args.node)?;
    request.force = args.force;
    let outcome = install::uninstall(&request, args.node.dry_run)?;
    report(&outcome, args.node.dry_run, "uninstalled")
}

/// Says what is installed; fails where it is not as it was installed.
pub fn status(args: &Status) -> anyhow::Result<ExitCode> {
    let status = install::status(&Root::new(&args.root))?;
    if args.json {
        json(&status)?;
    } else {
        let mut out = Output::lock();
        out.write_all(status.render().as_bytes())?;
        out.flush()?;
    }
    Ok(if status.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn request(flags: &NodeFlags) -> anyhow::Result<Request> {
    let root = Root::new(&flags.root);
    let mut node = NodeSettings::default();
    for pair in &flags.node {
        let (key, value) = pair
            .split_once('=')
            .with_context(|| format!("--node {pair}: write KEY=VALUE"))?;
        node.set(key, value)?;
    }
    if let Some(profile) = &flags.profile {
        node.profile = Some(profile.clone());
    }
    let reach = match (flags.host, root.is_own()) {
        (true, _) => Reach::Entered,
        (false, true) => Reach::Own,
        (false, false) => Reach::Files,
    };
    Ok(Request {
        root,
        reach,
        from: PathBuf::new(),
        node,
        runtime_type: None,
        hooks: None,
        nri: None,
        restart: !flags.no_restart,
        patience: flags.timeout,
        force: false,
    })
}

fn flag(with: bool, without: bool) -> Option<bool> {
    (with || without).then_some(with)
}

fn own_directory() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's own directory")?;
    let directory = program.parent().context("this program has no directory")?;
    Ok(directory.to_owned())
}

fn report(outcome: &Outcome, dry_run: bool, done: &str) -> anyhow::Result<()> {
    let mut out = Output::lock();
    for line in &outcome.found {
        writeln!(out, "# {line}")?;
    }
    if dry_run {
        out.write_all(outcome.diff.as_bytes())?;
    }
    for note in &outcome.notes {
        writeln!(out, "note: {note}")?;
    }
    match (dry_run, outcome.changed) {
        (true, count) => writeln!(out, "{count} files would change.")?,
        (false, 0) => writeln!(out, "Nothing had to be changed.")?,
        (false, count) => writeln!(out, "Kybernate is {done}: {count} files changed.")?,
    }
    out.flush()?;
    Ok(())
}
