//! containerd restarted, the hook restarted: who notices what.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::{ContainerEventResponse, GetEventsRequest, VersionRequest};
use kybernate_integration::{Case, Lab, eventually, within, workload::Workload};
use tokio::task::JoinHandle;
use tonic::{Code, Status, Streaming};

use kybernate_integration::hook::{Hook, SOCKET};

/// Of calls that fail, a client remembers so many.
const REMEMBERED: usize = 16;

/// Clients that ask all the time, each call on a connection of its own as `crictl` makes them.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<Status>>>,
}

impl Load {
    fn start(lab: &Arc<Lab>) -> Self {
        let (stop, calls) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let client = |_| {
            let (stop, calls, lab) = (stop.clone(), calls.clone(), lab.clone());
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match lab.cri().version(VersionRequest::default()).await {
                        Ok(_) => drop(calls.fetch_add(1, Ordering::Relaxed)),
                        Err(status) => {
                            if failed.len() < REMEMBERED {
                                failed.push(status);
                            }
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    }
                }
                failed
            })
        };
        let clients = (0..8).map(client).collect();
        Self {
            stop,
            calls,
            clients,
        }
    }

    /// Waits for so many more answers.
    async fn more(&self, count: u64) -> Result<()> {
        let end = self.calls.load(Ordering::Relaxed) + count;
        eventually("answers", Duration::from_secs(10), || async {
            Ok((self.calls.load(Ordering::Relaxed) >= end).then_some(()))
        })
        .await
    }

    /// Ends it; returns what has failed.
    async fn end(mut self) -> Result<Vec<Status>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            failed.extend(client.await?);
        }
        Ok(failed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Also of a case that has failed.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What a stream of events ends with.
async fn end_of(events: &mut Streaming<ContainerEventResponse>) -> Result<Status> {
    within("end of the events", Duration::from_secs(20), async {
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                Ok(None) => anyhow::bail!("the stream has ended as if all were said"),
                Err(status) => return Ok(status),
            }
        }
    })
    .await
}

pub async fn containerd_killed(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let mut cri = cx.lab.cri();
    let mut events = cri
        .get_container_events(GetEventsRequest {})
        .await?
        .into_inner();
    cx.lab.kill_containerd().await?;
    let status = end_of(&mut events).await?;
    ensure!(status.code() == Code::Unavailable, "{status}");
    for _ in 0..3 {
        // The same connection of the client, and no waiting.
        let begun = Instant::now();
        let status = cri.version(VersionRequest::default()).await;
        let status = status.err().context("an answer of a dead containerd")?;
        ensure!(status.code() == Code::Unavailable, "{status}");
        ensure!(status.message().contains("containerd"), "{status}");
        ensure!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
    }
    cx.lab.start_containerd().await?;
    cri.version(VersionRequest::default()).await?;
    ensure!(container.is_running().await?);
    work.is_well(&container, work.count(&container)?).await?;
    Ok(())
}

/// Another process at the same path: the earlier one hands over and ends, and no call fails.
pub async fn taken_over(cx: Case) -> Result<()> {
    let mut old = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let mut events = cx
        .lab
        .cri()
        .get_container_events(GetEventsRequest {})
        .await?
        .into_inner();
    // A call that is in flight all the time.
    let container = pod.container("app").shell("sleep 1000").start().await?;
    let waiting = tokio::spawn(async move { container.exec(&["sleep", "3"]).await });
    let load = Load::start(&cx.lab);
    load.more(50).await?;
    for _ in 0..3 {
        let new = Hook::spawn(&cx.lab, &[], None).await?;
        load.more(50).await?;
        // Its own end does not take the route away that the next one serves.
        let mut gone = std::mem::replace(&mut old, new);
        gone.gone(Duration::from_secs(20)).await?;
        drop(gone);
        cx.lab.route_cri(Some(SOCKET));
        load.more(50).await?;
    }
    let failed = load.end().await?;
    ensure!(
        failed.is_empty(),
        "{} calls failed: {:?}",
        failed.len(),
        failed[0]
    );
    ensure!(waiting.await??.exit_code == 0);
    let status = end_of(&mut events).await?;
    ensure!(status.code() == Code::Unavailable, "{status}");
    ensure!(status.message().contains("restarted"), "{status}");
    Ok(())
}

/// With a socket of systemd's a hook may crash: calls wait in its queue for the next one.
pub async fn killed_with_a_socket_unit(cx: Case) -> Result<()> {
    let path = cx.lab.path(SOCKET);
    fs::create_dir_all(path.parent().context("no directory")?)?;
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let mut hook = Hook::spawn(&cx.lab, &[], Some(&listener)).await?;
    cx.lab.route_cri(Some(SOCKET));
    for signal in ["KILL", "TERM", "KILL"] {
        let load = Load::start(&cx.lab);
        load.more(50).await?;
        hook.signal(signal)?;
        hook.gone(Duration::from_secs(10)).await?;
        let begun = Instant::now();
        // What comes now waits.
        let mut cri = cx.lab.cri();
        let waiting = tokio::spawn(async move { cri.version(VersionRequest::default()).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        hook = Hook::spawn(&cx.lab, &[], Some(&listener)).await?;
        cx.lab.route_cri(Some(SOCKET));
        waiting.await??;
        let away = begun.elapsed();
        load.more(50).await?;
        let failed = load.end().await?;
        // Those that the dead process had, one per client; none when it was asked to end.
        let most = if signal == "TERM" { 0 } else { 8 };
        ensure!(
            failed.len() <= most,
            "{signal}: {} failed: {failed:?}",
            failed.len()
        );
        ensure!(
            away < Duration::from_secs(1),
            "{signal}: back after {away:?}"
        );
    }
    ensure!(path.exists(), "the hook has removed systemd's socket");
    drop(hook);
    let _ = fs::remove_file(path);
    Ok(())
}
