//! Logs, records and manifests: what a container keeps secret does not stand there.

use std::fs;

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_integration::{
    Case, Lab,
    checkpoint::{run, take},
    image::catalog,
};

use crate::scene::{Halfway, below, forget};

const LOG: &str = "/var/log/containerd.log";
/// In the environment, in annotations of pod and container, and made up in memory alone.
const SECRETS: [&str; 4] = [
    "s3cret-of-the-environment",
    "s3cret-of-the-annotation",
    "s3cret-of-the-pod",
    "s3cret-of-memory-alone",
];
/// Prints nothing, and puts the last secret together where no argument shows it.
const PROGRAM: &str = r#"a=s3cret-of; b=memory; secret="$a-$b-alone"; echo ready
while :; do sleep 0.1; [ "$secret" != x ] || exit; done"#;

pub async fn hold_no_secret(cx: Case) -> Result<()> {
    let looked = look(&cx).await;
    forget(&cx.lab);
    looked
}

async fn look(cx: &Case) -> Result<()> {
    let lab = &cx.lab;
    let pod = cx
        .pod()
        .annotation("example.org/token", SECRETS[2])
        .start()
        .await?;
    let container = || {
        pod.container("secret")
            .image(catalog::TOOLS)
            .env("TOKEN", SECRETS[0])
            .annotation("example.org/token", SECRETS[1])
            .shell(PROGRAM)
    };
    let first = container().start().await?;
    first.wait_stdout("ready").await?;

    // The shim makes its directories, not this test.
    fs::remove_file(take(&first, &[]).await?.file())?;
    let halfway = Halfway::at(&first, "compress").await?;
    let meanwhile = records(lab);
    let archive = halfway.finish().await?;
    meanwhile?;

    // A dump that fails, a restore that fails, and one that works.
    let failed = run(
        lab,
        &["kybernate", "checkpoint", &first.id, "-o", "/proc/x"],
    )
    .await?;
    clean(failed.refused()?.as_bytes(), "the command's error")?;
    first.stop(0).await?;
    first.remove().await?;
    let broken = container()
        .attempt(1)
        .annotation(names::RESTORE_FROM, "/etc/hostname");
    let refused = broken.create().await?;
    let error = refused
        .start()
        .await
        .err()
        .context("restored from nothing")?;
    clean(format!("{error:#}").as_bytes(), "the error of a restore")?;
    refused.remove().await?;
    let again = container()
        .attempt(2)
        .annotation(names::RESTORE_FROM, &archive.path)
        .start()
        .await?;
    ensure!(again.is_running().await?);

    let opened = kybernate_oci::archive::Archive::open(archive.file())?;
    clean(opened.manifest_json(), "the manifest")?;
    for name in ["dump.log", "stats-dump", "bind.mounts"] {
        let content = opened.entry(name)?.bytes(64 << 20)?;
        ensure!(!content.is_empty(), "{name} is empty");
        clean(&content, name)?;
    }
    // The test can fail: this is where secrets are, and why an archive is root's alone.
    let spec = opened.entry("spec.dump")?.bytes(64 << 20)?;
    ensure!(clean(&spec, "spec.dump").is_err());
    for command in [
        ["kybernate", "inspect", &archive.path],
        ["kybernate", "verify", &archive.path],
    ] {
        clean(run(lab, &command).await?.ok()?.as_bytes(), command[1])?;
    }

    let log = fs::read_to_string(lab.path(LOG))?;
    // containerd's own lines begin with their time; ours come through a pipe as they are.
    let ours: Vec<_> = log
        .lines()
        .filter(|line| !line.starts_with("time="))
        .collect();
    ensure!(
        log.contains("level=debug"),
        "the log is not as loud as can be"
    );
    ensure!(
        ours.iter().any(|line| line.contains("checkpointed")),
        "no log of the shim among {} lines",
        log.lines().count()
    );
    clean(ours.join("\n").as_bytes(), "the shim's log")?;
    fs::remove_file(archive.file())?;
    Ok(())
}

/// What lies about while a checkpoint runs, beside the archive itself.
fn records(lab: &Lab) -> Result<()> {
    let mut seen = 0;
    for place in [
        "/run/kybernate/journal",
        "/run/kybernate/dump",
        "/var/lib/kybernate",
    ] {
        for path in below(lab, place) {
            let file = lab.path(&path);
            // The archive, and what goes into it: root's.
            let goes_in = [".img", ".tar.zst", "/status.dump"];
            let holds = goes_in.iter().any(|end| path.ends_with(end));
            if file.is_file() && !holds {
                seen += 1;
                clean(&fs::read(&file)?, &path)?;
            }
        }
    }
    ensure!(seen >= 4, "only {seen} files to look at");
    Ok(())
}

fn clean(text: &[u8], what: &str) -> Result<()> {
    for secret in SECRETS {
        let there = text
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        ensure!(!there, "{secret:?} stands in {what}");
    }
    Ok(())
}
