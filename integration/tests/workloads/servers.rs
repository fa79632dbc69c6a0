//! Servers: what they hold comes back, and they serve.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;
use kybernate_integration::{
    Case, Container, Pod, beyond_this_machine,
    checkpoint::{Archive, take},
    cri::ContainerBuilder,
    eventually,
    image::catalog,
    workload::Workload,
};

use crate::programs::put_away;

/// CRIU before 4.2 reads two options of TCP sockets that Linux 6.16 knows for Unix sockets
/// alone, and gives up.
fn tcp_can_be_dumped(cx: &Case) -> Result<()> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = kernel
        .split(['.', '-'])
        .map_while(|number| number.parse::<u32>().ok());
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let old = cx
        .lab
        .exec(&["criu", "--version"])?
        .contains("Version: 4.1");
    if old && kernel >= (6, 16) {
        return beyond_this_machine("CRIU 4.1 can't dump TCP sockets on Linux 6.16 and newer");
    }
    Ok(())
}

/// Address of a pod in the lab.
async fn address(pod: &Pod) -> Result<String> {
    let network = pod
        .status()
        .await?
        .network
        .context("the pod has no network")?;
    ensure!(!network.ip.is_empty(), "the pod has no address");
    Ok(network.ip)
}

/// What a TCP server answers to a client in the lab's network.
fn dial(cx: &Case, address: &str, port: u16) -> Result<String> {
    let script = format!("busybox nc -w 3 {address} {port} </dev/null");
    cx.lab.exec(&["sh", "-c", &script])
}

pub async fn connections(cx: Case) -> Result<()> {
    tcp_can_be_dumped(&cx)?;
    let pod = cx.pod().start().await?;
    // A server outside of the pod, which keeps its connection for as long as we read it.
    let mut outside = tokio::process::Command::from(cx.lab.command("busybox"));
    let outside = outside
        .args(["nc", "-l", "-p", "7001"])
        .stdin(Stdio::piped());
    let mut outside = outside.stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    let gateway = eventually("the bridge", Duration::from_secs(5), || async {
        let text = cx
            .lab
            .exec(&["ip", "-4", "-o", "addr", "show", "dev", "lab0"])?;
        let address = text
            .split_whitespace()
            .nth(3)
            .and_then(|a| a.split('/').next());
        Ok(address.map(str::to_owned))
    })
    .await?;
    let mut work = Workload::listener(8080);
    work.argv.extend([gateway, "7001".to_owned()]);
    let container = work.start(&pod).await?;
    container.wait_stdout("loopback=up outside=up").await?;
    ensure!(dial(&cx, &address(&pod).await?, 8080)?.starts_with("pong 1"));

    // With the container going on, its connections do too.
    take(&container, &[]).await?;
    work.is_well(&container, work.count(&container)?).await?;
    let log = container.stdout()?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(
        last.contains("loopback=up outside=up"),
        "after the checkpoint: {last}"
    );
    ensure!(dial(&cx, &address(&pod).await?, 8080)?.starts_with("pong 2"));

    let (archive, at) = put_away(&work, &container).await?;
    pod.remove().await?;
    let next = cx.pod().start().await?;
    let restored = work.restore(&next, &archive).await?;
    work.went_on(&restored, at).await?;
    // Connections are closed, and say so; the listener serves as before.
    let log = restored.stdout()?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(
        last.contains("loopback=closed outside=closed"),
        "after the restore: {last}"
    );
    ensure!(dial(&cx, &address(&next).await?, 8080)?.starts_with("pong 3"));
    outside.kill().await?;
    Ok(())
}

/// Takes a server into an archive and brings it back in another pod.
async fn move_on(
    cx: &Case,
    pod: &Pod,
    container: &Container,
    make: impl Fn(&Pod) -> ContainerBuilder,
) -> Result<(Pod, Container)> {
    let archive: Archive = take(container, &["--exit"]).await?;
    container.wait_exit().await?;
    pod.remove().await?;
    let next = cx.pod().start().await?;
    let restored = make(&next)
        .annotation(names::RESTORE_FROM, &archive.path)
        .start()
        .await?;
    Ok((next, restored))
}

async fn answers(container: &Container, script: &str, wanted: &str) -> Result<()> {
    eventually(script, Duration::from_secs(20), || async {
        let answer = container.shell(script).await?;
        ensure!(
            answer.contains(wanted),
            "{script}: {answer:?}, expected {wanted:?}"
        );
        Ok(Some(()))
    })
    .await
}

pub async fn redis(cx: Case) -> Result<()> {
    tcp_can_be_dumped(&cx)?;
    let make = |pod: &Pod| {
        pod.container("redis").image(catalog::APPS).command([
            "redis-server",
            "--dir",
            "/tmp",
            "--save",
            "",
            "--enable-debug-command",
            "yes",
            "--bind",
            "0.0.0.0",
            "--protected-mode",
            "no",
        ])
    };
    let pod = cx.pod().start().await?;
    let container = make(&pod).start().await?;
    answers(&container, "redis-cli ping", "PONG").await?;
    let fill = "redis-cli eval \"for i=1,50000 do redis.call('set','key:'..i,'value '..i*i) end \
                redis.call('rpush','list',1,2,3) redis.call('incr','counter') return 'filled'\" 0";
    answers(&container, fill, "filled").await?;
    let digest = container.shell("redis-cli debug digest").await?;

    // While it goes on, it serves.
    take(&container, &[]).await?;
    answers(&container, "redis-cli incr live", "1").await?;
    answers(&container, "redis-cli del live", "1").await?;

    let (next, restored) = move_on(&cx, &pod, &container, make).await?;
    answers(&restored, "redis-cli ping", "PONG").await?;
    ensure!(
        restored.shell("redis-cli debug digest").await? == digest,
        "its data has changed"
    );
    ensure!(restored.shell("redis-cli get key:777").await? == "value 603729");
    ensure!(restored.shell("redis-cli dbsize").await? == "50002");
    ensure!(restored.shell("redis-cli incr counter").await? == "2");
    let script = format!(
        "printf 'PING\\r\\nQUIT\\r\\n' | busybox nc -w 3 {} 6379",
        address(&next).await?
    );
    let outside = cx.lab.exec(&["sh", "-c", &script])?;
    ensure!(outside.starts_with("+PONG"), "from outside: {outside:?}");
    Ok(())
}

const NGINX: &str = "mkdir -p /var/lib/nginx /var/log/nginx /run /www && cat >/nginx.conf <<END
daemon off; pid /run/nginx.pid; user root root; worker_processes 2; error_log /dev/stderr;
events { worker_connections 64; }
http { access_log off; server { listen 8081; root /www;
  location /state { return 200 'connection \\$connection'; } } }
END
exec nginx -c /nginx.conf";

pub async fn nginx(cx: Case) -> Result<()> {
    tcp_can_be_dumped(&cx)?;
    let make = |pod: &Pod| pod.container("nginx").image(catalog::APPS).shell(NGINX);
    let pod = cx.pod().start().await?;
    let container = make(&pod).start().await?;
    let page = "wget -qO- http://127.0.0.1:8081/page";
    answers(
        &container,
        &format!("echo page one >/www/page; {page}"),
        "page one",
    )
    .await
    .with_context(|| container.stderr().unwrap_or_default())?;
    let state = "wget -qO- http://127.0.0.1:8081/state";
    for _ in 0..5 {
        container.shell(state).await?;
    }

    take(&container, &[]).await?;
    answers(&container, page, "page one").await?;

    let (next, restored) = move_on(&cx, &pod, &container, make).await?;
    answers(&restored, page, "page one").await?;
    // The number of the connection counts since the server's start.
    let number = restored.shell(state).await?;
    let number: u32 = number
        .trim_start_matches("connection ")
        .parse()
        .context(number.clone())?;
    ensure!(number > 6, "the server is a new one: connection {number}");
    ensure!(
        restored.shell("ps | grep -c '[n]ginx:'").await? == "3",
        "master and two workers"
    );
    let script = format!(
        "busybox wget -qO- http://{}:8081/page",
        address(&next).await?
    );
    ensure!(cx.lab.exec(&["sh", "-c", &script])?.trim() == "page one");
    // Its signals work: a reload makes new workers.
    restored.shell("kill -HUP 1").await?;
    answers(&restored, page, "page one").await?;
    Ok(())
}
