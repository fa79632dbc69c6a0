//! Files, directories and sockets.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_integration::{
    Case, Lab,
    checkpoint::{ARCHIVES, into_directory, run, take},
    eventually,
    workload::Workload,
};

use crate::scene::{FAULT, Halfway, as_nobody, below, forget};

const SETTINGS: &str = "/etc/kybernate/config.toml";
const HOOK: &str = "/run/kybernate-cri/cri.sock";
const METRICS: &str = "/run/kybernate-cri/metrics.sock";
/// Where something of a checkpoint can lie.
const PLACES: [&str; 5] = [
    "/run/kybernate",
    "/run/kybernate-cri",
    "/run/containerd/s",
    "/var/lib/kybernate",
    "/etc/kybernate/keys",
];
/// What this suite has made itself, or is open by intent: names of archives are no secret.
const OPEN: [&str; 6] = [
    "/var/lib/kybernate",
    ARCHIVES,
    "/run/kybernate-cri",
    "/etc/kybernate/keys",
    FAULT,
    "/run/kybernate/faults.reached",
];

/// Tells of each path on stdin what whoever runs it may do.
const PROBE: &str = r#"while IFS= read -r path; do
    may=
    [ -r "$path" ] && may=r
    [ -w "$path" ] && may=${may}w
    [ -z "$may" ] || echo "$may $path"
done </dev/stdin"#;

/// Connects to each socket and tells how that went.
const CONNECT: &str = r#"use IO::Socket::UNIX;
for my $path (@ARGV) {
    my $socket = IO::Socket::UNIX->new(Peer => $path);
    print $socket ? "connected" : "refused", " $path\n";
}"#;

/// The hook, killed when dropped.
struct Hook(Child, Arc<Lab>);

impl Hook {
    async fn start(lab: &Arc<Lab>) -> Result<Self> {
        let child = lab
            .command("kybernate-cri-hooks")
            .env("KYBERNATE_HOOKS_SOCKET", HOOK)
            .env("KYBERNATE_HOOKS_METRICS", format!("unix:{METRICS}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run nsenter")?;
        let hook = Self(child, lab.clone());
        eventually("the hook's socket", Duration::from_secs(10), || async {
            Ok(lab.path(HOOK).exists().then_some(()))
        })
        .await?;
        Ok(hook)
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        for pid in self.1.pids_of("kybernate-cri-hooks").unwrap_or_default() {
            let _ = self.1.kill("KILL", pid);
        }
        let _ = self.0.wait();
        let _ = fs::remove_dir_all(self.1.path("/run/kybernate-cri"));
    }
}

pub async fn others_see_nothing(cx: Case) -> Result<()> {
    let before = fs::read_to_string(cx.lab.path(SETTINGS))?;
    fs::write(
        cx.lab.path(SETTINGS),
        format!("{before}[trigger]\nallow = true\n"),
    )?;
    let looked = look(&cx).await;
    fs::write(cx.lab.path(SETTINGS), before)?;
    forget(&cx.lab);
    looked
}

async fn look(cx: &Case) -> Result<()> {
    let lab = &cx.lab;
    let _hook = Hook::start(lab).await?;
    let (pod, work) = (cx.pod().start().await?, Workload::counter());
    let container = work
        .container(&pod)
        .annotation(names::TRIGGER, "true")
        .start()
        .await?;
    work.is_well(&container, 0).await?;
    // The shim makes its directories, not this test.
    fs::remove_file(take(&container, &[]).await?.file())?;
    let key = "/etc/kybernate/keys/node.key";
    fs::create_dir_all(lab.path("/etc/kybernate/keys"))?;
    lab.exec(&["install", "-m", "0600", "/dev/null", key])?;

    for step in ["dump", "compress"] {
        let halfway = Halfway::at(&container, step).await?;
        let seen = async {
            is_hidden(lab, &[&container.bundle(), &pod.bundle()], step).await?;
            sockets_refuse(lab, &container.bundle()).await
        }
        .await;
        let archive = halfway.finish().await?;
        seen.with_context(|| format!("at {step}"))?;
        ensure!(archive.mode()? == 0o600, "mode {:o}", archive.mode()?);
        let owner = fs::metadata(archive.file())?;
        ensure!(owner.uid() == 0 && owner.gid() == 0, "not root's");
        let read = as_nobody(lab, &["cat", &archive.path]).await?;
        ensure!(read.code != 0, "anybody reads the archive");
        fs::remove_file(archive.file())?;
    }
    work.is_well(&container, work.count(&container)?).await?;
    lab.exec(&["rm", "-r", "/etc/kybernate/keys"])?;
    Ok(())
}

/// Nothing of ours can be read or written, and there is something.
async fn is_hidden(lab: &Lab, bundles: &[&std::path::Path], step: &str) -> Result<()> {
    let mut paths: Vec<String> = PLACES.iter().flat_map(|top| below(lab, top)).collect();
    for bundle in bundles {
        let inside = inside(lab, bundle);
        // What the container sees is the container's.
        let own = below(lab, &inside).into_iter();
        paths.extend(own.filter(|path| !path.starts_with(&format!("{inside}/rootfs"))));
    }
    let is_there = |part: &str| paths.iter().any(|path| path.contains(part));
    for part in [
        "/.kybernate-",
        "request.json",
        "archive.tar.zst",
        "/run/kybernate/journal/",
        "/run/kybernate/dump/",
        "criu.conf",
        "config.json",
        "/run/containerd/s/",
        HOOK,
        "trigger.sock",
        "node.key",
    ] {
        // While it is dumped, a container has no trigger socket.
        let may_lack = part == "trigger.sock" && step == "dump";
        ensure!(
            may_lack || is_there(part),
            "no {part} at {step} in {paths:?}"
        );
    }
    let list = "/tmp/exposure-paths";
    fs::write(lab.path(list), paths.join("\n") + "\n")?;
    let probe = PROBE.replace("/dev/stdin", list);
    let found = as_nobody(lab, &["sh", "-c", &probe]).await?.ok()?;
    let as_root = run(lab, &["sh", "-c", &probe]).await?.ok()?;
    fs::remove_file(lab.path(list))?;
    ensure!(
        as_root.lines().count() + 5 > paths.len(),
        "the probe does not work: {as_root}"
    );
    let open: BTreeSet<&str> = found
        .lines()
        .filter(|line| {
            let path = line.split_once(' ').map_or("", |(_, path)| path);
            !OPEN.contains(&path) || line.split(' ').next() != Some("r")
        })
        .collect();
    ensure!(open.is_empty(), "open to everybody: {open:#?}");
    Ok(())
}

/// A path of the host's view as the lab has it.
fn inside(lab: &Lab, path: &std::path::Path) -> String {
    let root = lab.path("/");
    let inside = path.strip_prefix(&root).unwrap_or(path);
    format!("/{}", inside.display().to_string().trim_start_matches('/'))
}

async fn sockets_refuse(lab: &Lab, bundle: &std::path::Path) -> Result<()> {
    let trigger = format!("{}/trigger/trigger.sock", inside(lab, bundle));
    let mut sockets: Vec<String> = [HOOK, METRICS, "/run/containerd/containerd.sock"]
        .map(str::to_owned)
        .to_vec();
    // While it is dumped, a container has none.
    sockets.extend(lab.path(&trigger).exists().then_some(trigger));
    sockets.extend(below(lab, "/run/containerd/s").split_off(1));
    ensure!(sockets.len() > 3, "no shim listens: {sockets:?}");
    let mut command = vec!["perl", "-e", CONNECT];
    command.extend(sockets.iter().map(String::as_str));
    let said = as_nobody(lab, &command).await?.ok()?;
    let open: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("connected"))
        .collect();
    ensure!(open.is_empty(), "{open:?}");
    // The same program reaches them as root.
    let said = run(lab, &command).await?.ok()?;
    let connected = said.lines().filter(|line| line.starts_with("connected"));
    ensure!(connected.count() > 1, "{said}");
    Ok(())
}

/// A directory of an administrator's own for `ctr tasks checkpoint` may be open to all: what is
/// written there is not.
pub async fn plain_images_are_roots(cx: Case) -> Result<()> {
    let (pod, work) = (cx.pod().start().await?, Workload::counter());
    let container = work.start(&pod).await?;
    let path = "/var/lib/kybernate/plain-images";
    fs::create_dir_all(cx.lab.path(path))?;
    let looked = async {
        into_directory(&cx.lab, &container.id, path, None).await?;
        let files = below(&cx.lab, path).split_off(1);
        for name in ["pages-1.img", "inventory.img", "dump.log"] {
            ensure!(
                files.iter().any(|f| f.ends_with(name)),
                "no {name}: {files:?}"
            );
        }
        for name in ["pages-1.img", "pagemap-1.img"] {
            let file = format!("{path}/{name}");
            let mode = fs::metadata(cx.lab.path(&file))?.mode() & 0o7777;
            ensure!(mode == 0o600, "{file} has mode {mode:o}");
            let read = as_nobody(&cx.lab, &["cat", &file]).await?;
            ensure!(read.code != 0, "anybody reads {file}");
        }
        let open: Vec<_> = files
            .iter()
            .filter(|file| {
                let facts = fs::metadata(cx.lab.path(file));
                facts.map_or(true, |facts| facts.mode() & 0o077 != 0)
            })
            .collect();
        ensure!(open.is_empty(), "open to everybody: {open:?}");
        Ok(())
    }
    .await;
    fs::remove_dir_all(cx.lab.path(path))?;
    looked
}
