//! Volumes: writable, read-only, and mounts that travel between node and container.

use std::fs;

use anyhow::{Result, ensure};
use kybernate_hooks::cri::v1::MountPropagation;
use kybernate_integration::{Case, Pod, Suite};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("volumes", volumes)
        .case("mounts_reach_the_container", mounts_reach_the_container)
        .case("mounts_reach_the_node", mounts_reach_the_node)
}

async fn volumes(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let shared = format!("/var/lib/kybernate/volume-{}", pod.id);
    fs::create_dir_all(cx.lab.path(&shared))?;
    fs::write(cx.lab.path(&shared).join("file"), "from the node")?;
    let writer = pod
        .container("writer")
        .mount(&shared, "/data")
        .shell("sleep 1000");
    let writer = writer.start().await?;
    let reader = pod
        .container("reader")
        .mount(&shared, "/data")
        .edit(|config| config.mounts[0].readonly = true)
        .shell("sleep 1000")
        .start()
        .await?;
    ensure!(reader.shell("cat /data/file").await? == "from the node");
    writer.shell("echo from the writer >/data/file").await?;
    ensure!(reader.shell("cat /data/file").await? == "from the writer");
    let output = reader.exec(&["touch", "/data/x"]).await?;
    ensure!(
        output.stderr.contains("Read-only file system"),
        "{output:?}"
    );
    Ok(())
}

/// A directory of the lab on a shared mount of its own.
fn shared_directory(cx: &Case, pod: &Pod) -> Result<String> {
    let path = format!("/run/shared-{}", pod.id);
    cx.lab.exec(&[
        "sh",
        "-c",
        &format!("mkdir -p {path} && mount -t tmpfs none {path} && mount --make-shared {path} && mkdir {path}/inner"),
    ])?;
    Ok(path)
}

async fn mounts_reach_the_container(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let path = shared_directory(&cx, &pod)?;
    let with = |name, propagation: MountPropagation| {
        pod.container(name)
            .mount(&path, "/data")
            .edit(|config| config.mounts[0].set_propagation(propagation))
            .shell("sleep 1000")
    };
    let slave = with("slave", MountPropagation::PropagationHostToContainer)
        .start()
        .await?;
    let private = with("private", MountPropagation::PropagationPrivate)
        .start()
        .await?;
    let mount = format!("mount -t tmpfs none {path}/inner && touch {path}/inner/late");
    cx.lab.exec(&["sh", "-c", &mount])?;
    ensure!(slave.shell("ls /data/inner").await? == "late");
    ensure!(private.shell("ls /data/inner").await?.is_empty());
    pod.remove().await?;
    cx.lab.exec(&["umount", "-R", &path])?;
    Ok(())
}

async fn mounts_reach_the_node(cx: Case) -> Result<()> {
    let pod = cx.pod().privileged().start().await?;
    let path = shared_directory(&cx, &pod)?;
    let app = pod
        .container("app")
        .mount(&path, "/data")
        .edit(|config| config.mounts[0].set_propagation(MountPropagation::PropagationBidirectional))
        .security(|security| security.privileged = true)
        .shell("sleep 1000")
        .start()
        .await?;
    app.shell("mount -t tmpfs none /data/inner && touch /data/inner/from-container")
        .await?;
    ensure!(cx.lab.path(&path).join("inner/from-container").exists());
    pod.remove().await?;
    cx.lab.exec(&["umount", "-R", &path])?;
    Ok(())
}
