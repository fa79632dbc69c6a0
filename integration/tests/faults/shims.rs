//! What is about the programs themselves.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_config::names::SHIM_BINARY;
use kybernate_integration::{
    Case,
    checkpoint::{Archive, run},
    eventually,
    node::Node,
};

use crate::{
    fault::{Fault, Kind, are_there, has_faults},
    world::{Has, PROMISE, World, nothing_left, remove},
};

/// Debug builds have faults, or this suite proves nothing; release builds have none: neither what
/// the compiler makes of their source without debug assertions, nor a release build that is there.
pub async fn released(cx: Case) -> Result<()> {
    ensure!(
        are_there(&cx.lab),
        "the shim in the lab has no faults: use a debug build"
    );
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|dir| dir.ends_with("debug"));
    let target = target
        .and_then(Path::parent)
        .context("no target directory")?;
    let release = target.join("release").join(SHIM_BINARY);
    let shim = fs::read(release).unwrap_or_default();
    ensure!(!has_faults(&shim), "the shim in target/release has faults");
    let compiled = without_debug_assertions()?;
    ensure!(!has_faults(&compiled), "faults without debug assertions");
    let manifest = include_str!("../../../Cargo.toml");
    ensure!(
        !manifest.contains("debug-assertions"),
        "a profile of Cargo.toml decides on debug assertions itself"
    );
    Ok(())
}

/// The module of faults as release builds have it. It then needs no other crate: nothing in it
/// reads a file, kills or waits.
fn without_debug_assertions() -> Result<Vec<u8>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shim/src/fault.rs");
    let object = tempfile::NamedTempFile::new()?;
    let compiled = Command::new(Path::new(env!("CARGO")).with_file_name("rustc"))
        .args(["--edition=2024", "--crate-type=lib", "--crate-name=fault"])
        .args(["-Copt-level=0", "-Cdebug-assertions=off", "--emit=obj"])
        .arg("-o")
        .arg(object.path())
        .arg(source)
        .output()
        .context("cannot run rustc")?;
    let said = String::from_utf8_lossy(&compiled.stderr);
    ensure!(compiled.status.success(), "rustc: {said}");
    Ok(fs::read(object.path())?)
}

/// With the guardian dead as well, `kybernate doctor` sees what is left and `--repair` undoes it.
pub async fn doctor_repairs(cx: Case) -> Result<()> {
    let world = World::mute(&cx, Has::Gpu).await?;
    let remains = world.remains().await?;
    let archive = Archive::new(&cx.lab)?;
    let fault = Fault::set(&cx.lab, "rootfs", Kind::KillShimAlone)?;
    let taking = {
        let (archive, id) = (archive.clone(), world.container.id.clone());
        tokio::spawn(async move { archive.try_take(&id, &[]).await })
    };
    fault.reached().await?;
    for pid in cx.lab.pids_of("kybernate-guardian")? {
        cx.lab.kill("KILL", pid)?;
    }
    fault
        .strike(Kind::KillShimAlone, &world.pod.shims()?)
        .await?;
    let seen = run(&cx.lab, &["kybernate", "doctor"]).await?;
    ensure!(seen.stdout.contains("--repair"), "{}", seen.stdout);
    let repaired = run(&cx.lab, &["kybernate", "doctor", "--repair"]).await?;
    let said = format!("{}{}", repaired.stdout, repaired.stderr);
    ensure!(said.contains("rootfs: undone"), "{said}");
    remains.run().await?;
    eventually("nothing left", PROMISE, || async {
        nothing_left(&cx.lab).map(Some)
    })
    .await?;
    taking.await??.refused()?;
    cx.lab.start_containerd().await?;
    remove(&world.pod, &cx.lab).await
}

/// A runc that comes to its freeze only when the checkpoint has been stopped: it must not freeze what
/// runs again by then.
pub async fn late_freeze(cx: Case) -> Result<()> {
    const LATE: &str = "/usr/local/bin/runc";
    let world = World::new(&cx, Has::Cpu).await?;
    let node = Node::look(&cx.lab)?;
    let before = world.work.count(&world.container)?;
    let real = cx.lab.exec(&["sh", "-c", "command -v runc"])?;
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' pause '*) sleep 3 ;; esac\nexec {} \"$@\"\n",
        real.trim()
    );
    fs::write(cx.lab.path(LATE), script)?;
    cx.lab.exec(&["chmod", "755", LATE])?;
    let archive = Archive::new(&cx.lab)?;
    let taken = archive.try_take(&world.container.id, &["--timeout", "1"]);
    let said = taken.await?.refused()?;
    // When it would have frozen it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    fs::remove_file(cx.lab.path(LATE))?;
    ensure!(said.contains("not done within"), "{said}");
    world.is_unharmed(before, &node).await?;
    remove(&world.pod, &cx.lab).await
}
