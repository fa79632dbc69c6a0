//! Calls to containerd with and without `kybernate-cri-hooks` between, by turns in one lab or on a
//! node.
//!
//! 16 clients with a connection each, as kubelet and node agents are. Paced clients wait between
//! calls, which shows what the hook adds to a call; unpaced ones ask as fast as they get answers,
//! which shows what it costs when the processors are the limit.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::{ListContainersRequest, VersionRequest};
use tokio::{net::UnixStream, task::JoinSet};

use crate::{
    Distro, Handler, Lab, LabOptions,
    cri::PodBuilder,
    eventually,
    lab::{Cri, cri_at},
};

const CLIENTS: usize = 16;
/// Between the calls of a paced client.
const PACE: Duration = Duration::from_millis(25);
/// Calls of a client in a round.
const CALLS: usize = 200;
/// Containers that are listed.
const CONTAINERS: usize = 10;
/// Connections and calls on each that are made all at once.
const BURST: (usize, usize) = (32, 125);
const SOCKET: &str = "/run/kybernate-bench.sock";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Version,
    ListContainers,
}

/// Where the CRI is served.
#[derive(Debug, Clone)]
pub struct Sockets {
    /// By containerd.
    pub direct: PathBuf,
    /// By the hook.
    pub hooked: PathBuf,
}

/// Measures so many rounds, then makes so many calls through the hook, and reports in Markdown.
/// Without sockets, in a lab.
///
/// # Errors
/// There is no lab, or a call has failed.
pub fn run(rounds: u64, soak: u64, sockets: Option<Sockets>) -> Result<String> {
    tokio::runtime::Runtime::new()?.block_on(async {
        match sockets {
            Some(sockets) => report(&sockets, rounds, soak).await,
            None => in_lab(rounds, soak).await,
        }
    })
}

async fn in_lab(rounds: u64, soak: u64) -> Result<String> {
    let lab = Lab::start(Distro::Forky, LabOptions::default()).await?;
    let pod = PodBuilder::new(&lab, Handler::Kybernate).start().await?;
    for n in 0..CONTAINERS {
        pod.container(&format!("c{n}"))
            .shell("true")
            .create()
            .await?;
    }
    let mut hook = lab
        .command("kybernate-cri-hooks")
        .env("KYBERNATE_HOOKS_SOCKET", SOCKET)
        .env("KYBERNATE_HOOKS_METRICS", "")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let sockets = Sockets {
        direct: lab.socket(),
        hooked: lab.path(SOCKET),
    };
    let reported = report(&sockets, rounds, soak).await;
    for pid in lab.pids_of("kybernate-cri-hooks")? {
        lab.kill("KILL", pid)?;
    }
    hook.wait()?;
    pod.remove().await?;
    lab.close()?;
    reported
}

async fn report(sockets: &Sockets, rounds: u64, soak: u64) -> Result<String> {
    let clients = |socket: &Path, count| -> Vec<Cri> {
        (0..count).map(|_| cri_at(socket.to_owned())).collect()
    };
    let direct = clients(&sockets.direct, CLIENTS);
    let hooked = clients(&sockets.hooked, CLIENTS);
    eventually("the hook", Duration::from_secs(10), || async {
        hooked[0].clone().version(VersionRequest::default()).await?;
        Ok(Some(()))
    })
    .await?;
    let hook = server_of(&sockets.hooked).await?;
    let mut text =
        String::from("| call | clients | | median | 99 % | calls/s |\n|---|---|---|---|---|---|\n");
    for pace in [Some(PACE), None] {
        for method in [Method::Version, Method::ListContainers] {
            let mut taken = [Taken::default(), Taken::default()];
            for _ in 0..rounds {
                for (way, clients) in [&direct, &hooked].into_iter().enumerate() {
                    taken[way].add(round(clients, method, pace).await?);
                }
            }
            let how = pace.map_or("16, as fast as they can".to_owned(), |pace| {
                format!("16, a call each {} ms", pace.as_millis())
            });
            for (way, taken) in ["direct", "hook"].iter().zip(&mut taken) {
                let (median, late) = (taken.at(0.5), taken.at(0.99));
                writeln!(
                    text,
                    "| {method:?} | {how} | {way} | {:.3} ms | {:.3} ms | {:.0} |",
                    millis(median),
                    millis(late),
                    taken.rate()
                )?;
            }
            let added =
                |part| millis(taken[1].clone().at(part)) - millis(taken[0].clone().at(part));
            writeln!(
                text,
                "| | | **added** | **{:.3} ms** | **{:.3} ms** | |",
                added(0.5),
                added(0.99)
            )?;
        }
    }
    writeln!(
        text,
        "\nResident memory of the hook after that: {} KiB.",
        resident(hook)?
    )?;
    if soak > 0 {
        let begun = Instant::now();
        soaked(&hooked, soak).await?;
        writeln!(
            text,
            "{soak} calls in {:.0} s without a failure; resident memory then: {} KiB.",
            begun.elapsed().as_secs_f64(),
            resident(hook)?
        )?;
    }
    let burst = clients(&sockets.hooked, BURST.0);
    at_once(&burst, BURST.1).await?;
    writeln!(
        text,
        "After {} calls at once on {} connections: {} KiB.",
        BURST.0 * BURST.1,
        BURST.0,
        resident(hook)?
    )?;
    Ok(text)
}

/// Times of calls.
#[derive(Debug, Clone, Default)]
struct Taken {
    times: Vec<Duration>,
    lasted: Duration,
}

impl Taken {
    fn add(&mut self, (times, lasted): (Vec<Duration>, Duration)) {
        self.times.extend(times);
        self.lasted += lasted;
    }

    fn at(&mut self, part: f64) -> Duration {
        self.times.sort_unstable();
        let last = self.times.len().saturating_sub(1);
        self.times[(last as f64 * part).round() as usize]
    }

    fn rate(&self) -> f64 {
        self.times.len() as f64 / self.lasted.as_secs_f64()
    }
}

async fn round(
    clients: &[Cri],
    method: Method,
    pace: Option<Duration>,
) -> Result<(Vec<Duration>, Duration)> {
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for (index, client) in clients.iter().enumerate() {
        let mut client = client.clone();
        running.spawn(async move {
            if let Some(pace) = pace {
                // Not all at the same moment.
                tokio::time::sleep(pace * index as u32 / CLIENTS as u32).await;
            }
            let mut times = Vec::with_capacity(CALLS);
            for _ in 0..CALLS {
                let asked = Instant::now();
                call(&mut client, method).await?;
                times.push(asked.elapsed());
                if let Some(pace) = pace {
                    tokio::time::sleep(pace.saturating_sub(asked.elapsed())).await;
                }
            }
            anyhow::Ok(times)
        });
    }
    let mut all = Vec::new();
    while let Some(times) = running.join_next().await {
        all.extend(times??);
    }
    Ok((all, begun.elapsed()))
}

async fn call(client: &mut Cri, method: Method) -> Result<()> {
    match method {
        Method::Version => drop(client.version(VersionRequest::default()).await?),
        Method::ListContainers => {
            let listed = client
                .list_containers(ListContainersRequest::default())
                .await?;
            ensure!(listed.into_inner().containers.len() >= CONTAINERS);
        }
    }
    Ok(())
}

async fn soaked(clients: &[Cri], calls: u64) -> Result<()> {
    let mut running = JoinSet::new();
    for client in clients {
        let mut client = client.clone();
        let share = calls / clients.len() as u64;
        running.spawn(async move {
            for n in 0..share {
                let method = if n % 10 == 0 {
                    Method::ListContainers
                } else {
                    Method::Version
                };
                call(&mut client, method).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

async fn at_once(clients: &[Cri], calls: usize) -> Result<()> {
    let mut running = JoinSet::new();
    for client in clients {
        for _ in 0..calls {
            let mut client = client.clone();
            running.spawn(async move { call(&mut client, Method::Version).await });
        }
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

/// Pid of the process that listens at a socket.
async fn server_of(socket: &Path) -> Result<i32> {
    let peer = UnixStream::connect(socket).await?.peer_cred()?;
    peer.pid().context("the hook is in another PID namespace")
}

fn resident(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("no VmRSS")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
