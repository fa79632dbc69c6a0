//! What is about the programs themselves.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use kybernate_config::names::SHIM_BINARY;
use kybernate_integration::{
    Case, beyond_this_machine,
    checkpoint::{Archive, run},
    eventually,
};

use crate::{
    fault::{Fault, Kind, are_there, has_faults},
    world::{Has, PROMISE, World, nothing_left, remove},
};

/// Debug builds have faults, or this suite proves nothing; release builds have none.
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
    match fs::read(target.join("release").join(SHIM_BINARY)) {
        Ok(shim) => {
            ensure!(!has_faults(&shim), "the shim in target/release has faults");
            Ok(())
        }
        Err(_) => beyond_this_machine("target/release has no shim to look at: `make build`"),
    }
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
