//! With the plugin in service.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kybernate_config::names::{MANAGED, RESTORE_FROM};
use kybernate_hooks::cri::v1::MountPropagation;
use kybernate_integration::{
    Case, Handler, Pod, checkpoint::take, cri::PodBuilder, workload::Workload,
};

use crate::plugin::{Launched, Plugin, annotations, is_prepared, spec};

const SOURCE: &str = "/var/lib/kybernate/archives/any.tar.zst";

/// A pod that the plugin must not touch, with annotations that it acts on elsewhere.
async fn foreign(cx: &Case) -> Result<Pod> {
    PodBuilder::new(&cx.lab, Handler::Runc)
        .annotation("restore.kybernate.io/app", "not a path")
        .start()
        .await
}

/// Creates a container, takes its spec with the id replaced, and removes it.
async fn spec_of_new(pod: &Pod, name: &str) -> Result<String> {
    let container = pod
        .container(name)
        .shell("sleep 60")
        .env("KEY", "value")
        .mount("/srv", "/srv")
        .create()
        .await?;
    let spec = spec(&pod.lab, &container.id).await;
    container.remove().await?;
    Ok(spec?.replace(&container.id, "<id>"))
}

/// Lines of a spec, one per value: `path = value`.
fn lines(spec: &str) -> Result<BTreeMap<String, String>> {
    fn walk(at: &str, value: &serde_json::Value, into: &mut BTreeMap<String, String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (key, value) in fields {
                    walk(&format!("{at}/{key}"), value, into);
                }
            }
            serde_json::Value::Array(values) => {
                for (number, value) in values.iter().enumerate() {
                    walk(&format!("{at}/{number}"), value, into);
                }
            }
            other => {
                into.insert(at.to_owned(), other.to_string());
            }
        }
    }
    let mut all = BTreeMap::new();
    walk("", &serde_json::from_str(spec)?, &mut all);
    Ok(all)
}

/// What differs, as `-` and `+` lines.
fn diff(before: &str, after: &str) -> Result<Vec<String>> {
    let (before, after) = (lines(before)?, lines(after)?);
    let only = |sign: &str, these: &BTreeMap<String, String>, those: &BTreeMap<String, String>| {
        these
            .iter()
            .filter(|(path, value)| those.get(*path) != Some(value))
            .map(|(path, value)| format!("{sign} {path} = {value}"))
            .collect::<Vec<_>>()
    };
    Ok([only("-", &before, &after), only("+", &after, &before)].concat())
}

pub async fn class_and_foreign_specs(cx: Case) -> Result<()> {
    let class = cx
        .pod()
        .annotation("restore.kybernate.io/restored", SOURCE)
        .start()
        .await?;
    let foreign = foreign(&cx).await?;
    let mut before = Vec::new();
    for (pod, name) in [(&foreign, "app"), (&class, "app"), (&class, "restored")] {
        before.push(spec_of_new(pod, name).await?);
    }
    let plugin = Plugin::start(&cx.lab).await?;
    let mut differences = Vec::new();
    for ((pod, name), before) in [(&foreign, "app"), (&class, "app"), (&class, "restored")]
        .into_iter()
        .zip(&before)
    {
        let after = spec_of_new(pod, name).await?;
        let found = diff(before, &after)?;
        println!(
            "{} {name}: {} bytes before, {} after\n{}",
            pod.handler,
            before.len(),
            after.len(),
            found.join("\n")
        );
        differences.push((*before == after, found));
    }
    ensure!(
        differences[0] == (true, Vec::new()),
        "foreign: {differences:?}"
    );
    let version = env!("CARGO_PKG_VERSION");
    let marker = format!("+ /annotations/{MANAGED} = \"{version}\"");
    let source = format!("+ /annotations/{RESTORE_FROM} = \"{SOURCE}\"");
    ensure!(differences[1].1 == [marker.clone()], "{differences:?}");
    ensure!(differences[2].1 == [marker, source], "{differences:?}");
    ensure!(plugin.end("TERM").await? == Some(0), "not a clean end");
    foreign.remove().await
}

pub async fn gpu_specs(cx: Case) -> Result<()> {
    let firmware = "/usr/lib/firmware/nvidia";
    // A mount of the host that spreads its changes, as the driver's often are.
    let prepare = format!(
        "mkdir -p {firmware} && mount --bind {firmware} {firmware} && mount --make-shared {firmware}"
    );
    cx.lab.exec(&["sh", "-c", &prepare])?;
    let outcome = gpu_specs_of(&cx, firmware).await;
    cx.lab.exec(&["umount", firmware])?;
    outcome
}

async fn gpu_specs_of(cx: &Case, firmware: &str) -> Result<()> {
    let _plugin = Plugin::start(&cx.lab).await?;
    let mut specs = Vec::new();
    for wish in ["false", "true"] {
        let pod = cx
            .pod()
            .annotation("gpu.kybernate.io", wish)
            .start()
            .await?;
        let container = pod
            .container("app")
            .shell("sleep 60")
            .env("NCCL_P2P_DISABLE", "0")
            .mount(firmware, firmware)
            .edit(|config| {
                let mount = config.mounts.last_mut().expect("the one above");
                mount.propagation = MountPropagation::PropagationHostToContainer.into();
            })
            .mount("/srv", "/srv")
            .create()
            .await?;
        let spec = spec(&pod.lab, &container.id).await?;
        container.start().await?;
        pod.stop().await?;
        // The pod is another one each time.
        let (id, uid) = (&pod.id, pod.config.metadata.clone().unwrap_or_default());
        let spec = spec.replace(&container.id, "<id>").replace(id, "<pod>");
        specs.push(spec.replace(&uid.uid, "<uid>").replace(&uid.name, "<name>"));
    }
    // Mounts are sorted anew by whoever changes one: compare them by destination.
    let found = diff(&by_destination(&specs[0])?, &by_destination(&specs[1])?)?;
    println!("{}", found.join("\n"));
    let changed = |part: &str| found.iter().any(|line| line.contains(part));
    ensure!(changed(&format!("+ /mounts/{firmware}/options")) && changed("rprivate"));
    ensure!(!changed("/mounts//srv"), "{found:?}");
    ensure!(changed("NCCL_NVLS_ENABLE=0") && !changed("NCCL_P2P_DISABLE"));
    Ok(())
}

/// A spec with its mounts under their destinations.
fn by_destination(spec: &str) -> Result<String> {
    let mut spec: serde_json::Value = serde_json::from_str(spec)?;
    let mounts = spec["mounts"].as_array().context("a spec without mounts")?;
    let named: serde_json::Map<_, _> = mounts
        .iter()
        .map(|mount| {
            let destination = mount["destination"].as_str().unwrap_or_default();
            (destination.to_owned(), mount.clone())
        })
        .collect();
    spec["mounts"] = named.into();
    Ok(spec.to_string())
}

pub async fn restored_by_annotation(cx: Case) -> Result<()> {
    let _plugin = Plugin::start(&cx.lab).await?;
    let work = Workload::counter();
    let pod = cx.pod().start().await?;
    let container = work.start(&pod).await?;
    let at = work.count(&container)?;
    let archive = take(&container, &["--exit"]).await?;
    pod.remove().await?;
    let next = cx
        .pod()
        .annotation("restore.kybernate.io/counter", &archive.path)
        .start()
        .await?;
    // Nothing here speaks of a restore: it is what kubelet does for any container.
    let restored = work.container(&next).start().await?;
    work.went_on(&restored, at).await?;
    // Another container of the pod begins as ever.
    let other = next
        .container("other")
        .shell("echo anew; sleep 60")
        .start()
        .await?;
    other.wait_stdout("anew\n").await?;
    Ok(())
}

pub async fn wrong_annotations_refuse(cx: Case) -> Result<()> {
    let plugin = Plugin::start(&cx.lab).await?;
    for (key, value) in [
        ("restore.kybernate.io/app", "/etc/shadow"),
        (
            "restore.kybernate.io/app",
            "/var/lib/kybernate/../../../etc/shadow",
        ),
        ("restore.kybernate.io/app", "relative.tar"),
        ("restore.kybernate.io/app", ""),
    ] {
        let pod = cx.pod().annotation(key, value).start().await?;
        let error = match pod.container("app").shell("true").create().await {
            Ok(_) => anyhow::bail!("{key}: {value:?} was taken"),
            Err(error) => format!("{error:#}"),
        };
        println!("{error}");
        ensure!(error.contains(key) && error.contains(value), "{error}");
        let other = pod.container("other").shell("sleep 60").start().await?;
        ensure!(is_prepared(&cx.lab, &other.id).await?);
    }
    // What the shim obeys is no way around: no container comes of it.
    if let Ok(pod) = cx.pod().annotation(RESTORE_FROM, SOURCE).start().await {
        let app = pod.container("app").shell("true").create().await;
        let error = format!("{:#}", app.err().context("the check was passed by")?);
        ensure!(error.contains("restore.kybernate.io/app"), "{error}");
    }
    // The same in a foreign pod is nobody's business.
    let pod = foreign(&cx).await?;
    let app = pod.container("app").shell("sleep 60").start().await?;
    ensure!(!is_prepared(&cx.lab, &app.id).await?);
    ensure!(
        plugin.log()?.matches("refused").count() >= 4,
        "{}",
        plugin.log()?
    );
    pod.remove().await
}

pub async fn launched_by_containerd(cx: Case) -> Result<()> {
    let config = "handlers = ['kybernate']\nrestore_dirs = ['/srv']\n";
    let launched = Launched::start(&cx.lab, config).await?;
    let pod = cx
        .pod()
        .annotation("restore.kybernate.io/inside", "/srv/a.tar.zst")
        .annotation("restore.kybernate.io/outside", SOURCE)
        .start()
        .await?;
    let app = pod.container("app").shell("sleep 60").start().await?;
    ensure!(is_prepared(&cx.lab, &app.id).await?);
    let inside = pod.container("inside").shell("true").create().await?;
    let annotations = annotations(&cx.lab, &inside.id).await?;
    ensure!(
        annotations
            .get(RESTORE_FROM)
            .is_some_and(|path| path == "/srv/a.tar.zst")
    );
    inside.remove().await?;
    let outside = pod.container("outside").shell("true").create().await;
    let error = format!(
        "{:#}",
        outside
            .err()
            .context("restore_dirs of the file not obeyed")?
    );
    ensure!(error.contains("/srv"), "{error}");
    launched.end().await?;
    // The container has outlived both.
    ensure!(app.is_running().await?);
    Ok(())
}
