//! `kybernate checkpoint`: from a container to an archive.

use std::{io::Write, time::Duration};

use kybernate_config::{Settings, size};
use kybernate_hooks::{
    client::{self, CheckpointOrder, Update},
    connect::Connection,
};
use nix::unistd::{Uid, User};
use serde::Serialize;

use super::runtime;
use crate::{
    args::Checkpoint,
    display::{clean, millis, ratio},
    interrupt::interrupted,
    output::{Output, json},
    progress::Display,
};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    id: &'a str,
    namespace: &'a str,
    archive: String,
    #[serde(flatten)]
    result: &'a client::CheckpointResult,
}

/// Takes the checkpoint and prints its facts.
pub fn run(args: &Checkpoint, settings: &Settings) -> anyhow::Result<()> {
    let order = CheckpointOrder {
        output: args.output.clone(),
        replace: args.force,
        exit: args.exit,
        level: Some(
            args.level
                .clone()
                .unwrap_or_else(|| settings.checkpoint.level.clone()),
        ),
        buffer: Some(
            args.buffer
                .clone()
                .unwrap_or_else(|| settings.checkpoint.buffer.clone()),
        ),
        // The shim adds those of the settings that it finds, which may be others.
        encrypt_to: [&settings.checkpoint.encrypt_to[..], &args.recipient].concat(),
        timeout: args
            .timeout
            .unwrap_or(Duration::from_secs(settings.checkpoint.timeout_s)),
        space_check: !args.no_space_check,
        requester: Some(requester()),
    };
    let mut display = Display::new(args.quiet);
    let taken = runtime()?.block_on(async {
        let cancel = interrupted()?;
        let connection = Connection::open(&settings.containerd.socket).await?;
        let mut show = |update| show(&mut display, update);
        anyhow::Ok(
            client::checkpoint(
                &connection,
                &args.namespace,
                &args.target,
                &order,
                &mut show,
                cancel,
            )
            .await?,
        )
    });
    display.finish();
    let taken = taken?;

    if args.json {
        json(&Summary {
            id: &taken.subject.id,
            namespace: &taken.subject.namespace,
            archive: taken.output.display().to_string(),
            result: &taken.result,
        })?;
        return Ok(());
    }
    let mut out = Output::lock();
    writeln!(
        out,
        "{}",
        line(&taken.output.display().to_string(), &taken.result)
    )?;
    out.flush()?;
    Ok(())
}

fn show(display: &mut Display, update: Update) {
    match update {
        Update::Started { id, memory_bytes } => {
            display.start(memory_bytes);
            let memory = match memory_bytes {
                0 => String::new(),
                bytes => format!(", {} of memory", size::display(bytes)),
            };
            display.say(&format!("checkpointing {}{memory}", clean(&id)));
        }
        Update::Warning(text) => display.warn(&clean(&text)),
        Update::Progress(progress) => display.report(progress),
        Update::RollingBack => display.warn("stopping; waiting for the container to go on"),
    }
}

/// The result in a line.
fn line(path: &str, result: &client::CheckpointResult) -> String {
    format!(
        "{}  {} of {} ({})  paused {}  total {}  sha256:{}",
        clean(path),
        size::display(result.archive_bytes),
        size::display(result.content_bytes),
        ratio(result.archive_bytes, result.content_bytes),
        millis(result.pause_ms),
        millis(result.total_ms),
        clean(&result.manifest_sha256),
    )
}

/// Who runs this command, for the manifest.
fn requester() -> String {
    let uid = Uid::current();
    let name = User::from_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |u| u.name);
    match std::env::var("SUDO_USER") {
        Ok(before) => format!("kybernate checkpoint, by {name} for {before}"),
        Err(_) => format!("kybernate checkpoint, by {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_one_line() {
        let result = client::CheckpointResult {
            archive_bytes: 512 << 20,
            content_bytes: 1 << 30,
            manifest_sha256: "ab12".into(),
            pause_ms: 730,
            total_ms: 1210,
        };
        assert_eq!(
            line("/b/a.zst", &result),
            "/b/a.zst  512 MiB of 1.00 GiB (0.50)  paused 730 ms  total 1.21 s  sha256:ab12"
        );
    }
}
