//! What reads an archive: ours, and the tools of others.

use std::{collections::BTreeSet, io::Write as _, process::Stdio};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case, Lab,
    checkpoint::{Archive, run, take},
    workload::Workload,
};
use serde_json::Value;

async fn in_lab(lab: &Lab, argv: &[&str]) -> Result<String> {
    run(lab, argv).await?.ok().with_context(|| argv.join(" "))
}

pub async fn readers_of_others(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory(32);
    let container = work.start(&pod).await?;
    let archive = take(&container, &[]).await?;
    let path = &archive.path;

    let shown = in_lab(&cx.lab, &["checkpointctl", "show", path]).await?;
    let engine = if shown.contains("containerd") {
        "containerd"
    } else {
        ""
    };
    ensure!(
        shown.contains("memory") && !engine.is_empty(),
        "checkpointctl show: {shown}"
    );
    let inspected = in_lab(&cx.lab, &["checkpointctl", "inspect", "--all", path]).await?;
    for part in [
        "Process tree",
        "memory",
        "CRIU dump statistics",
        "Overview of mounts",
    ] {
        ensure!(
            inspected.contains(part),
            "checkpointctl inspect has no {part:?}: {inspected}"
        );
    }
    let parsed = in_lab(&cx.lab, &["checkpointctl", "memparse", path]).await?;
    ensure!(
        parsed.contains("memory"),
        "checkpointctl memparse: {parsed}"
    );

    let script = format!("zstd -dc {path} | tar -t");
    let listed = in_lab(&cx.lab, &["sh", "-c", &script]).await?;
    let names: BTreeSet<&str> = listed.lines().collect();
    for name in [
        "checkpoint/",
        "checkpoint/inventory.img",
        "checkpoint/pages-1.img",
        "checkpoint/descriptors.json",
        "config.dump",
        "spec.dump",
        "status.dump",
        "container.log",
        "dump.log",
        "stats-dump",
        "kybernate.json",
    ] {
        ensure!(names.contains(name), "no {name} in {names:?}");
    }
    ensure!(
        names.len() == listed.lines().count(),
        "an entry twice: {listed}"
    );

    // What tar unpacks is what the manifest vouches for.
    let into = format!("/var/lib/kybernate/unpacked-{}", container.id);
    let script = format!(
        "mkdir {into} && cd {into} && zstd -dcq {path} | tar -x && \
         find . -type f -exec sha256sum '{{}}' + && ls -lR checkpoint | grep -c ^l"
    );
    let unpacked = run(&cx.lab, &["sh", "-c", &script]).await?.stdout;
    in_lab(&cx.lab, &["rm", "-r", &into]).await?;
    let manifest = archive.manifest()?;
    let files = || manifest.entries.iter().filter(|e| !e.name.ends_with('/'));
    let mut plain = 0;
    for entry in files() {
        // Reading it so compares it with the manifest's digest.
        let script = format!("kybernate cat {path} '{}' | sha256sum", entry.name);
        let ours = in_lab(&cx.lab, &["sh", "-c", &script]).await?;
        let sum = ours.split(' ').next().unwrap_or_default();
        let line = format!("{sum}  ./{}", entry.name);
        ensure!(
            unpacked.lines().any(|l| l == line),
            "no {line} in {unpacked}"
        );
        plain += usize::from(sum == entry.sha256);
    }
    // Files that lie in one frame, which are nearly all, have a digest that others can tell, too.
    ensure!(plain * 2 > files().count(), "{plain} digests are plain");
    ensure!(
        unpacked.lines().last() == Some("0"),
        "links in the archive: {unpacked}"
    );
    Ok(())
}

pub async fn readers_of_ours(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let container = Workload::filesystem().start(&pod).await?;
    let archive = take(&container, &[]).await?;
    let path = archive.path.as_str();

    in_lab(&cx.lab, &["kybernate", "verify", path]).await?;
    let table = in_lab(&cx.lab, &["kybernate", "inspect", path]).await?;
    for part in [&container.id[..12], "filesystem", "rootfs"] {
        ensure!(
            table.contains(part),
            "kybernate inspect has no {part:?}: {table}"
        );
    }
    let json = in_lab(&cx.lab, &["kybernate", "inspect", "--json", path]).await?;
    let json: Value = serde_json::from_str(&json).context("kybernate inspect --json")?;
    ensure!(json.is_object());

    let manifest = archive.manifest()?;
    let refused = run(&cx.lab, &["kybernate", "cat", path, "nothing"])
        .await?
        .refused()?;
    ensure!(refused.contains("nothing"), "{refused}");

    let into = format!("/var/lib/kybernate/extracted-{}", container.id);
    in_lab(&cx.lab, &["kybernate", "extract", path, &into]).await?;

    // Single entries come out as all of them do, wherever they lie.
    for entry in manifest.entries.iter().filter(|e| e.size > 0) {
        let script = format!(
            "kybernate cat {path} '{0}' | cmp - '{into}/{0}'",
            entry.name
        );
        in_lab(&cx.lab, &["sh", "-c", &script]).await?;
    }
    let script = format!("cd {into} && find . -type f ! -name kybernate.json | wc -l");
    let files: usize = in_lab(&cx.lab, &["sh", "-c", &script])
        .await?
        .trim()
        .parse()?;
    let expected = manifest
        .entries
        .iter()
        .filter(|e| !e.name.ends_with('/'))
        .count();
    ensure!(
        files == expected,
        "{files} files extracted, the manifest has {expected}"
    );
    in_lab(&cx.lab, &["rm", "-r", &into]).await?;

    // The same archive read twice is the same; a copied one as well.
    let copy = Archive::new(&cx.lab)?;
    in_lab(&cx.lab, &["cp", path, &copy.path]).await?;
    let digest = |p: &std::path::Path| -> Result<String> {
        Ok(kybernate_oci::archive::Archive::open(p)?
            .manifest_sha256()
            .to_owned())
    };
    ensure!(digest(&archive.file())? == digest(&copy.file())?);

    // One byte changed anywhere makes it another.
    let mut bytes = std::fs::read(copy.file())?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::File::create(copy.file())?.write_all(&bytes)?;
    let message = run(&cx.lab, &["kybernate", "verify", &copy.path])
        .await?
        .refused()?;
    ensure!(!message.trim().is_empty());
    Ok(())
}

pub async fn levels_and_buffers(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::memory(96);
    let container = work.start(&pod).await?;
    let mut sizes = Vec::new();
    for arguments in [
        ["--level", "fast", "--buffer", "auto"],
        ["--level", "default", "--buffer", "64MiB"],
        ["--level", "high", "--buffer", "1GiB"],
        ["--level", "3", "--buffer", "256MiB"],
    ] {
        let archive = take(&container, &arguments).await?;
        in_lab(&cx.lab, &["kybernate", "verify", &archive.path]).await?;
        sizes.push(archive.size()?);
    }
    ensure!(sizes[0] >= sizes[2], "high is larger than fast: {sizes:?}");
    let archive = Archive::new(&cx.lab)?;
    for (option, value) in [
        ("--level", "quick"),
        ("--buffer", "much"),
        ("--timeout", "soon"),
    ] {
        let message = archive
            .try_take(&container.id, &[option, value])
            .await?
            .refused()?;
        ensure!(message.contains(value), "{option} {value}: {message}");
    }

    // A pipe in place of a terminal gets no escape sequences.
    let output = Archive::new(&cx.lab)?;
    let mut command = tokio::process::Command::from(cx.lab.command("kybernate"));
    let command = command.args(["checkpoint", &container.id, "-o", &output.path]);
    let printed = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .await?;
    let text = [printed.stdout, printed.stderr].concat();
    ensure!(!text.contains(&0x1b), "{}", String::from_utf8_lossy(&text));
    work.is_well(&container, 0).await?;
    Ok(())
}
