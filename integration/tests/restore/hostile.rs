//! Archives that are whole and made to do harm. Each is a good one with entries exchanged, so that
//! only what they say is wrong with them.

use std::{fs, io::Write as _};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_hooks::containerd::images::ListImagesRequest;
use kybernate_integration::{
    Case, Lab,
    checkpoint::{Archive, run},
    workload::Workload,
};
use serde_json::{Value, json};

use crate::{
    refused::{refused, says, writer},
    rounds::archived,
};

/// What no entry of an archive may reach.
const CANARY: &str = "/etc/kybernate-canary";
const EVIL: &str = "evil.example.org/poisoned:latest";

/// Changes an entry; `None` leaves it out.
type Change<'a> = &'a dyn Fn(&str, Vec<u8>) -> Option<Vec<u8>>;

/// The archive with entries changed, and more added.
fn rewritten(lab: &std::sync::Arc<Lab>, from: &Archive, change: Change<'_>) -> Result<Archive> {
    let source = kybernate_oci::archive::Archive::open(from.file())?;
    let to = Archive::new(lab)?;
    let mut writer = writer(&to)?;
    for entry in &source.manifest().entries {
        if entry.name.ends_with('/') {
            writer.directory(&entry.name)?;
            continue;
        }
        let content = source.entry(&entry.name)?.bytes(1 << 30)?;
        if let Some(content) = change(&entry.name, content) {
            writer.bytes(&entry.name, &content)?;
        }
    }
    writer.finish(source.manifest().clone())?;
    Ok(to)
}

fn edited(content: &[u8], edit: impl FnOnce(&mut Value)) -> Option<Vec<u8>> {
    let mut json: Value = serde_json::from_slice(content).ok()?;
    edit(&mut json);
    serde_json::to_vec(&json).ok()
}

/// Records that ask for everything that a container must not get from an archive.
fn greedy(name: &str, content: Vec<u8>) -> Option<Vec<u8>> {
    let annotations = json!({
        "cdi.k8s.io/smuggled": "nvidia.com/gpu=all",
        "kybernate.io/add-capabilities": "SYS_ADMIN",
        "kybernate.io/trigger": "true",
        "kybernate.io/criu-options": "ghost-limit=8GiB",
        "org.criu.config": CANARY,
        "smuggled": "by the archive",
    });
    let host = json!([{
        "destination": "/host", "source": "/", "type": "bind", "options": ["rbind", "rw"],
    }]);
    match name {
        "spec.dump" => edited(&content, |spec| {
            spec["annotations"] = annotations;
            spec["mounts"] = host;
            spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args":
                ["sh", "-c", format!("touch {CANARY}")]}]});
            spec["process"]["capabilities"] = json!({"bounding": ["CAP_SYS_ADMIN"],
                "effective": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"]});
            spec["process"]["user"] = json!({"uid": 0, "gid": 0});
            spec["linux"]["devices"] =
                json!([{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}]);
            spec["linux"]["seccomp"] = Value::Null;
            spec["linux"]["namespaces"] = json!([]);
            spec["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
        }),
        "config.dump" => edited(&content, |config| {
            config["rootfsImage"] = json!(EVIL);
            config["rootfsImageName"] = json!(EVIL);
            config["rootfsImageRef"] = json!(format!("{EVIL}@sha256:{}", "0".repeat(64)));
        }),
        "status.dump" => edited(&content, |status| {
            status["annotations"] = annotations;
            status["image"] = json!({"image": EVIL});
            status["image_ref"] = json!(EVIL);
            status["mounts"] = json!([{"container_path": "/host", "host_path": "/"}]);
        }),
        "bind.mounts" => serde_json::to_vec(&json!([{
            "source": "/", "destination": "/host", "file_type": "directory", "permissions": 511,
        }]))
        .ok(),
        _ => Some(content),
    }
}

/// Mounts, devices, hooks, annotations and rights of a container, from its `config.json`.
fn granted(container: &kybernate_integration::Container) -> Result<Value> {
    let text = fs::read(container.bundle().join("config.json"))?;
    let spec: Value = serde_json::from_slice(&text)?;
    let mounts = spec["mounts"].as_array().cloned().unwrap_or_default();
    let destinations: Vec<_> = mounts.iter().map(|m| m["destination"].clone()).collect();
    let notes = spec["annotations"].as_object().context("no annotations")?;
    let ours = [names::RESTORE_FROM, "io.kubernetes.cri.container-attempt"];
    let notes: Vec<_> = notes
        .keys()
        .filter(|key| !ours.contains(&key.as_str()))
        .collect();
    Ok(json!({
        "mounts": destinations,
        "annotations": notes,
        "devices": spec["linux"]["devices"],
        "namespaces": spec["linux"]["namespaces"].as_array().map(Vec::len),
        "resources": spec["linux"]["resources"]["devices"],
        "hooks": spec["hooks"],
        "capabilities": spec["process"]["capabilities"],
    }))
}

/// CVE-2026-53492: annotations of the archive become devices of the container. Here nothing of its
/// records becomes anything.
pub async fn cve_2026_53492_records_grant_nothing(cx: Case) -> Result<()> {
    let work = Workload::counter();
    let fresh = work.start(&cx.pod().start().await?).await?;
    let expected = granted(&fresh)?;
    let rights = |text: String| -> Vec<String> {
        let is_right = |line: &&str| line.starts_with("Cap") || line.starts_with("NoNewPrivs");
        text.lines().filter(is_right).map(str::to_owned).collect()
    };
    let before = rights(fresh.shell("cat /proc/1/status").await?);
    let pod = cx.pod().start().await?;
    let (archive, at) = archived(&pod, &work).await?;
    let hostile = rewritten(&cx.lab, &archive, &greedy)?;
    let restored = work.restore(&pod, &hostile).await?;
    work.went_on(&restored, at).await?;
    let found = granted(&restored)?;
    ensure!(found == expected, "{found:#}\ninstead of {expected:#}");
    let after = rights(restored.shell("cat /proc/1/status").await?);
    ensure!(
        after == before && after.len() > 4,
        "{after:?} instead of {before:?}"
    );
    let seen = restored
        .shell("ls -d /host /dev/mem 2>/dev/null; true")
        .await?;
    ensure!(seen.is_empty(), "{seen}");
    ensure!(
        !cx.lab.path(CANARY).exists(),
        "a hook of the archive has run"
    );
    Ok(())
}

async fn images(lab: &Lab) -> Result<Vec<(String, String)>> {
    let listed = lab.images().list(ListImagesRequest::default()).await?;
    let name = |image: kybernate_hooks::containerd::images::Image| {
        (
            image.name,
            image.target.map(|t| t.digest).unwrap_or_default(),
        )
    };
    let mut images: Vec<_> = listed.into_inner().images.into_iter().map(name).collect();
    images.sort();
    Ok(images)
}

/// CVE-2026-50195: importing a checkpoint moves the node's image tags. Here a restore neither makes
/// nor moves one, and the image is the pod's.
pub async fn cve_2026_50195_images_stay(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let (archive, at) = archived(&pod, &work).await?;
    let hostile = rewritten(&cx.lab, &archive, &greedy)?;
    let before = images(&cx.lab).await?;
    ensure!(!before.is_empty());
    let restored = work.restore(&pod, &hostile).await?;
    work.went_on(&restored, at).await?;
    let image = restored.status().await?.image.unwrap_or_default().image;
    ensure!(image.contains("tools"), "it runs from {image}");
    ensure!(images(&cx.lab).await? == before, "images have changed");
    // The command takes the image's name from the archive, and pulls nothing.
    let next = cx.pod().start().await?;
    let command = ["kybernate", "restore", &hostile.path, "--pod", &next.id];
    let said = run(&cx.lab, &command).await?.refused()?;
    ensure!(said.contains(EVIL) && said.contains("not here"), "{said}");
    ensure!(images(&cx.lab).await? == before, "images have changed");
    Ok(())
}

/// Kind, name, target, content.
type Member<'a> = (tar::EntryType, &'a str, &'a str, &'a str);

/// A tar of members.
fn tar(members: &[Member<'_>]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (kind, name, target, content) in members {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.write_all(header.as_bytes())?;
        bytes.write_all(content.as_bytes())?;
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    Ok(bytes)
}

/// The archive with another content of one entry.
fn with(cx: &Case, archive: &Archive, (entry, content): (&str, Vec<u8>)) -> Result<Archive> {
    rewritten(&cx.lab, archive, &|name, old| {
        Some(if name == entry { content.clone() } else { old })
    })
}

/// CVE-2026-53489: a link in the archive makes the node read or write a file of its own. Here links
/// and names lead into the container's root, or the restore is refused.
pub async fn cve_2026_53489_files_of_the_host_stay(cx: Case) -> Result<()> {
    use tar::EntryType as Kind;
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let (archive, at) = archived(&pod, &work).await?;
    fs::write(cx.lab.path(CANARY), "precious")?;
    let up = format!("../../../../../../../../../..{CANARY}");
    let refusals: [(&[Member<'_>], &str); 5] = [
        (
            &[(Kind::Regular, &up, "", "hostile")],
            "must stay below the root",
        ),
        (
            &[(Kind::Regular, CANARY, "", "hostile")],
            "must stay below the root",
        ),
        (&[(Kind::Link, "mine", &up, "")], "must stay below the root"),
        (
            &[(Kind::Link, "mine", CANARY, "")],
            "must stay below the root",
        ),
        (
            &[
                (Kind::Symlink, "loop", "loop", ""),
                (Kind::Regular, "loop/file", "", "hostile"),
            ],
            "loop/file",
        ),
    ];
    for (members, reason) in refusals {
        let entry = ("rootfs-diff.tar", tar(members)?);
        let hostile = with(&cx, &archive, entry)?;
        let message = refused(&cx, &pod, &work, &hostile.path).await?;
        says(&message, &[reason])?;
        fs::remove_file(hostile.file())?;
    }
    let deletions = serde_json::to_vec(&json!(["/../../../../etc/hostname"]))?;
    let entry = ("deleted.files", deletions);
    let hostile = with(&cx, &archive, entry)?;
    let message = refused(&cx, &pod, &work, &hostile.path).await?;
    says(&message, &["must stay below the root"])?;

    // Links of the tar lead where they would lead the container.
    let members = [
        (Kind::Symlink, "way", "/", ""),
        (Kind::Symlink, "up", "../../../../../../..", ""),
        (Kind::Regular, "way/etc/from-way", "", "hostile"),
        (Kind::Regular, "up/etc/from-up", "", "hostile"),
        (Kind::Symlink, "leaf", CANARY, ""),
        (Kind::Regular, "leaf", "", "hostile"),
    ];
    let hostile = rewritten(&cx.lab, &archive, &|name, old| match name {
        // Together with what was there, which CRIU needs.
        "rootfs-diff.tar" => {
            let end = old.len() - old.iter().rev().take_while(|b| **b == 0).count();
            let mut whole = old[..end.next_multiple_of(512)].to_vec();
            whole.extend(tar(&members).ok()?);
            Some(whole)
        }
        "container.log" => Some(b"a log of the archive's own\n".to_vec()),
        _ => Some(old),
    })?;
    let restored = work.restore(&pod, &hostile).await?;
    work.went_on(&restored, at).await?;
    let seen = restored
        .shell("cat /etc/from-way /etc/from-up /leaf")
        .await?;
    ensure!(seen == "hostilehostilehostile", "{seen}");
    for made in ["/etc/from-way", "/etc/from-up"] {
        ensure!(!cx.lab.path(made).exists(), "{made} is on the node");
    }
    ensure!(fs::read_to_string(cx.lab.path(CANARY))? == "precious");
    let log = restored.stdout()?;
    ensure!(!log.contains("of the archive's own"), "{log}");
    fs::remove_file(cx.lab.path(CANARY))?;
    Ok(())
}

/// Sizes that are only claimed, and lists that are only long.
pub async fn bombs_meet_their_bounds(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let (archive, at) = archived(&pod, &work).await?;
    let mut huge = tar(&[(tar::EntryType::Regular, "huge", "", "")])?;
    let mut header = tar::Header::from_byte_slice(&huge[..512]).clone();
    header.set_size(1 << 40);
    header.set_cksum();
    huge[..512].copy_from_slice(header.as_bytes());
    huge.resize(4 << 20, 0);
    let long = [b"[\"\"".as_slice(), &b",\"\"".repeat(5 << 20), b"]"].concat();
    for (entry, reason) in [
        (("rootfs-diff.tar", huge), "bytes of content"),
        (("deleted.files", long), "at most"),
    ] {
        let hostile = with(&cx, &archive, entry)?;
        let message = refused(&cx, &pod, &work, &hostile.path).await?;
        says(&message, &[reason])?;
        fs::remove_file(hostile.file())?;
    }
    let restored = work.restore(&pod, &archive).await?;
    work.went_on(&restored, at).await?;
    Ok(())
}
