//! Whose namespaces a container sees: its pod's, its own, the node's.

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::{IdMapping, NamespaceMode, UserNamespace};
use kybernate_integration::{Case, Handler, Suite};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("pod_network", pod_network)
        .case("own_pid_namespace", own_pid_namespace)
        .case("shared_pid_namespace", shared_pid_namespace)
        .case("host_namespaces", host_namespaces)
        .case("shared_ipc_namespace", shared_ipc_namespace)
        .case("user_namespace", user_namespace)
        // containerd cannot start such pods with a runtime type of its own that has options.
        .handlers(&[Handler::Runc, Handler::Kybernate])
}

async fn pod_network(cx: Case) -> Result<()> {
    let server = cx.pod().start().await?;
    let address = server
        .status()
        .await?
        .network
        .context("a pod without network")?
        .ip;
    server
        .container("server")
        .shell("while true; do echo served | nc -l -p 8080; done")
        .start()
        .await?;
    let client = cx.pod().start().await?;
    let script = format!(
        "for i in $(seq 50); do nc -w 2 {address} 8080 </dev/null && exit; sleep 0.1; done"
    );
    let app = client.container("client").shell(&script).start().await?;
    app.wait_exit().await?;
    ensure!(app.stdout()? == "served\n", "{:?}", app.log()?);
    Ok(())
}

async fn own_pid_namespace(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .shell("echo $$; sleep 1000")
        .start()
        .await?;
    app.wait_stdout("1\n").await?;
    let other = pod.container("other").shell("sleep 1000").start().await?;
    let seen = app.shell("cat /proc/[0-9]*/comm").await?;
    ensure!(!seen.contains("pause"), "{seen}");
    ensure!(
        app.shell("readlink /proc/1/ns/pid").await?
            != other.shell("readlink /proc/1/ns/pid").await?
    );
    Ok(())
}

async fn shared_pid_namespace(cx: Case) -> Result<()> {
    let pod = cx
        .pod()
        .namespaces(|namespaces| namespaces.set_pid(NamespaceMode::Pod))
        .start()
        .await?;
    let first = pod
        .container("first")
        .shell("sleep 1001 & sleep 1002")
        .start()
        .await?;
    let second = pod.container("second").shell("sleep 2001").start().await?;
    let seen = second.shell("ps").await?;
    for part in ["/pause", "sleep 1001", "sleep 1002", "sleep 2001"] {
        ensure!(seen.contains(part), "{part} not in {seen}");
    }
    ensure!(second.shell("cat /proc/1/comm").await? == "pause");

    // The PID namespace lives on, so the first container's other processes do not die by
    // themselves: the shim must see to it.
    cx.lab.kill("KILL", first.pid().await?)?;
    ensure!(first.wait_exit().await?.exit_code == 137);
    first.remove().await?;
    let seen = second.shell("ps").await?;
    ensure!(!seen.contains("sleep 100"), "left over: {seen}");
    ensure!(second.is_running().await?);
    Ok(())
}

async fn host_namespaces(cx: Case) -> Result<()> {
    let pod = cx
        .pod()
        // As kubelet does: without a network namespace the pod has the node's name.
        .edit(|config| config.hostname.clear())
        .namespaces(|namespaces| {
            namespaces.set_network(NamespaceMode::Node);
            namespaces.set_pid(NamespaceMode::Node);
            namespaces.set_ipc(NamespaceMode::Node);
        })
        .start()
        .await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    for kind in ["net", "pid", "ipc"] {
        let inside = app.shell(&format!("readlink /proc/self/ns/{kind}")).await?;
        let outside = cx.lab.exec(&["readlink", &format!("/proc/1/ns/{kind}")])?;
        ensure!(inside == outside.trim(), "{kind}: {inside} {outside}");
    }
    let mounts = app.shell("readlink /proc/self/ns/mnt").await?;
    ensure!(mounts != cx.lab.exec(&["readlink", "/proc/1/ns/mnt"])?.trim());
    let pid = app.pid().await?;
    app.stop(0).await?;
    ensure!(!cx.lab.path(format!("/proc/{pid}")).exists());
    Ok(())
}

async fn shared_ipc_namespace(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let first = pod.container("first").shell("sleep 1000").start().await?;
    let second = pod.container("second").shell("sleep 1000").start().await?;
    first.shell("echo shared >/dev/shm/message").await?;
    ensure!(second.shell("cat /dev/shm/message").await? == "shared");
    let kind = "readlink /proc/self/ns/ipc";
    ensure!(first.shell(kind).await? == second.shell(kind).await?);
    Ok(())
}

async fn user_namespace(cx: Case) -> Result<()> {
    // Not the same twice: containerd 1.7 keeps a copy of the image for each mapping, and two
    // pods at the same time both want to make it.
    let first: u32 = match cx.handler {
        Handler::Runc => 100_000,
        _ => 200_000,
    };
    let map = |host_id| {
        vec![IdMapping {
            host_id,
            container_id: 0,
            length: 65536,
        }]
    };
    let pod = cx
        .pod()
        .namespaces(|namespaces| {
            namespaces.userns_options = Some(UserNamespace {
                mode: NamespaceMode::Pod.into(),
                uids: map(first),
                gids: map(first),
            });
        })
        .start()
        .await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    ensure!(app.shell("id -u").await? == "0");
    let map = app.shell("cat /proc/self/uid_map").await?;
    let map: Vec<_> = map.split_whitespace().collect();
    ensure!(map == ["0", &first.to_string(), "65536"], "{map:?}");
    app.shell("touch /tmp/mine && [ $(stat -c %u /tmp/mine) = 0 ]")
        .await?;
    let status =
        std::fs::read_to_string(cx.lab.path(format!("/proc/{}/status", app.pid().await?)))?;
    ensure!(status.contains(&format!("Uid:\t{first}\t")), "{status}");
    ensure!(
        app.exec(&["sh", "-c", "echo err >&2; exit 2"])
            .await?
            .stderr
            == "err\n"
    );
    Ok(())
}
