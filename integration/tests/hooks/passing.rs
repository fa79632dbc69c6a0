//! What passes: everything that kubelet and others do, on both sides of a hook that they don't
//! notice.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::{
    AttachRequest, ContainerEventType, ExecRequest, GetEventsRequest, ImageFsInfoRequest,
    ListContainersRequest, ListImagesRequest, PortForwardRequest, StatusRequest, VersionRequest,
};
use kybernate_integration::{Case, checkpoint::run, within, workload::Workload};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinSet,
};

use kybernate_integration::hook::{Hook, SOCKET, images};

pub async fn whole_life_of_a_pod(cx: Case) -> Result<()> {
    let hook = Hook::start(&cx.lab).await?;
    let status = cx
        .lab
        .cri()
        .status(StatusRequest::default())
        .await?
        .into_inner();
    ensure!(
        status
            .status
            .is_some_and(|s| s.conditions.iter().all(|c| c.status))
    );
    let pod = cx.pod().start().await?;
    let container = Workload::counter().start(&pod).await?;
    ensure!(container.shell("echo hello").await? == "hello");
    ensure!(container.stats().await?.memory.is_some());
    container.reopen_log().await?;
    let mut ended = pod
        .container("ended")
        .shell("echo bye; exit 3")
        .start()
        .await?;
    ensure!(ended.wait_exit().await?.exit_code == 3);
    ensure!(ended.stdout()? == "bye\n");
    // An error keeps its code and its text.
    ended.id = "0123456789".into();
    let direct = Box::pin(ended.exec(&["true"])).await.unwrap_err();
    ensure!(format!("{direct:#}").contains("0123456789"), "{direct:#}");
    let listed = images(&cx.lab)
        .list_images(ListImagesRequest::default())
        .await?;
    ensure!(!listed.into_inner().images.is_empty());
    images(&cx.lab).image_fs_info(ImageFsInfoRequest {}).await?;
    pod.stop().await?;
    pod.remove().await?;
    let text = hook.get("/metrics").await?;
    for method in [
        "RunPodSandbox",
        "ExecSync",
        "StopPodSandbox",
        "RemovePodSandbox",
    ] {
        let line =
            format!("kybernate_cri_calls_total{{method=\"RuntimeService/{method}\",code=\"OK\"}}");
        ensure!(text.contains(&line), "{line} is not in {text}");
    }
    ensure!(text.contains("ImageService/ListImages"));
    ensure!(hook.get("/healthz").await?.starts_with("HTTP/1.1 200"));
    ensure!(hook.get("/readyz").await?.starts_with("HTTP/1.1 200"));
    Ok(())
}

/// Exec, attach and port-forward give addresses of containerd's own server, which answers there.
pub async fn streaming_addresses(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let container = Workload::counter().start(&pod).await?;
    let mut cri = cx.lab.cri();
    let exec = ExecRequest {
        container_id: container.id.clone(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    let attach = AttachRequest {
        container_id: container.id.clone(),
        stdout: true,
        ..Default::default()
    };
    let forward = PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![80],
    };
    let urls = [
        cri.exec(exec).await?.into_inner().url,
        cri.attach(attach).await?.into_inner().url,
        cri.port_forward(forward).await?.into_inner().url,
    ];
    for url in urls {
        let rest = url.strip_prefix("http://").context(url.clone())?;
        let (address, path) = rest.split_once('/').context(url.clone())?;
        let (host, port) = address.rsplit_once(':').context(url.clone())?;
        // No upgrade is asked for, so containerd refuses; that it is containerd is what counts.
        let script = format!(
            "exec 3<>/dev/tcp/{host}/{port}; printf 'GET /{path} HTTP/1.0\\r\\n\\r\\n' >&3; head -n 1 <&3"
        );
        let answer = run(&cx.lab, &["bash", "-c", &script]).await?.ok()?;
        ensure!(answer.starts_with("HTTP/1."), "{url}: {answer}");
    }
    Ok(())
}

pub async fn stream_of_events(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let mut events = cx
        .lab
        .cri()
        .get_container_events(GetEventsRequest {})
        .await?
        .into_inner();
    let pod = cx.pod().start().await?;
    let container = pod.container("app").shell("sleep 1000").start().await?;
    container.stop(0).await?;
    let mut seen = BTreeSet::new();
    within(
        "all events of the container",
        Duration::from_secs(20),
        async {
            while seen.len() < 3 {
                let event = events.message().await?.context("the stream has ended")?;
                if event.container_id == container.id {
                    seen.insert(event.container_event_type);
                }
            }
            Ok(())
        },
    )
    .await?;
    for kind in [
        ContainerEventType::ContainerCreatedEvent,
        ContainerEventType::ContainerStartedEvent,
        ContainerEventType::ContainerStoppedEvent,
    ] {
        ensure!(seen.contains(&i32::from(kind)), "{kind:?} not in {seen:?}");
    }
    Ok(())
}

/// containerd's own command is a grpc-go client like kubelet, and its import a stream of many
/// messages in both directions.
pub async fn a_go_client(cx: Case) -> Result<()> {
    let hook = Hook::start(&cx.lab).await?;
    let through = |script: &str| {
        let script = script.replace("ctr", &format!("ctr -a {SOCKET} -n through"));
        let lab = cx.lab.clone();
        async move {
            run(&lab, &["bash", "-euo", "pipefail", "-c", &script])
                .await?
                .ok()
        }
    };
    let version = through("ctr version").await?;
    ensure!(version.contains("Server:"), "{version}");
    let images = through("ctr -n k8s.io images ls -q").await?;
    let image = images
        .lines()
        .find(|line| line.contains("tools"))
        .context(images.clone())?;
    let copy = format!(
        "ctr -n k8s.io images export - {image} | ctr images import - >/dev/null; \
         ctr images ls -q; ctr images rm {image} >/dev/null"
    );
    let copied = through(&copy).await?;
    ensure!(copied.contains(image), "{copied}");
    // What nobody has is UNIMPLEMENTED by containerd, and the hook is none the worse.
    let refused = run(
        &cx.lab,
        &["ctr", "-a", SOCKET, "-n", "through", "sandboxes", "nothing"],
    )
    .await?;
    ensure!(
        hook.get("/healthz").await?.starts_with("HTTP/1.1 200"),
        "{refused:?}"
    );
    Ok(())
}

/// A list that is larger than what gRPC libraries take by default.
pub async fn two_hundred_containers(cx: Case) -> Result<()> {
    let hook = Hook::start(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let mut making = JoinSet::new();
    for n in 0..200 {
        let container = pod
            .container(&format!("c{n}"))
            .annotation("large", &"x".repeat(30_000))
            .shell("true");
        making.spawn(async move { container.create().await });
        if making.len() >= 8 {
            making.join_next().await.context("none")???;
        }
    }
    while let Some(made) = making.join_next().await {
        made??;
    }
    let mut calls = JoinSet::new();
    for _ in 0..16 {
        let mut cri = cx.lab.cri();
        calls.spawn(async move {
            let listed = cri
                .list_containers(ListContainersRequest::default())
                .await?;
            anyhow::Ok(listed.into_inner().containers.len())
        });
    }
    while let Some(count) = calls.join_next().await {
        let count = count??;
        ensure!(count >= 200, "{count} containers are listed");
    }
    let resident = hook.resident_kib()?;
    eprintln!("resident after 16 lists of 6 MB at once: {resident} KiB");
    Ok(())
}

pub async fn thousands_of_calls(cx: Case) -> Result<()> {
    let hook = Hook::start(&cx.lab).await?;
    let mut calls = JoinSet::new();
    for _ in 0..32 {
        // Calls of a connection go on beside each other.
        let cri = cx.lab.cri();
        for _ in 0..125 {
            let mut cri = cri.clone();
            calls.spawn(async move { cri.version(VersionRequest::default()).await });
        }
    }
    while let Some(call) = calls.join_next().await {
        call??;
    }
    let resident = hook.resident_kib()?;
    eprintln!("resident after 4000 calls at once: {resident} KiB");
    let text = hook.get("/metrics").await?;
    ensure!(text.contains("kybernate_cri_calls_in_flight 0"), "{text}");
    Ok(())
}

/// Clients that talk nonsense, fall silent, stop half way or never read are nobody's trouble.
pub async fn rude_clients(cx: Case) -> Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let hook = Hook::start(&cx.lab).await?;
    let path = cx.lab.path(SOCKET);
    let nonsense: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xff; 4096],
        // A frame longer than any may be, and HPACK that is none.
        &[PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        &[PREFACE, &SETTINGS, &[0, 0, 2, 1, 5, 0, 0, 0, 1, 0xff, 0xff]].concat(),
    ];
    let mut open = Vec::new();
    for bytes in nonsense.iter().cycle().take(40) {
        let mut stream = UnixStream::connect(&path).await?;
        stream.write_all(bytes).await?;
        let mut answer = Vec::new();
        let mut rest = stream.take(1 << 20);
        let read = rest.read_to_end(&mut answer);
        // Ended by the hook, with or without a word.
        let _ = tokio::time::timeout(Duration::from_secs(5), read).await?;
        ensure!(answer.len() < 1024, "{} bytes for nonsense", answer.len());
    }
    for n in 0..100 {
        let mut stream = UnixStream::connect(&path).await?;
        if n % 2 == 0 {
            stream.write_all(&PREFACE[..n % PREFACE.len()]).await?;
        }
        if n % 4 == 0 {
            stream.shutdown().await?;
        }
        open.push(stream);
    }
    // Calls whose answers nobody reads.
    let call = version_call(PREFACE, &SETTINGS);
    for _ in 0..100 {
        let mut stream = UnixStream::connect(&path).await?;
        stream.write_all(&call).await?;
        open.push(stream);
    }
    let pod = cx.pod().start().await?;
    let container = Workload::counter().start(&pod).await?;
    ensure!(container.shell("echo well").await? == "well");
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        cx.lab.cri().version(VersionRequest::default()).await?;
    }
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(5), "100 calls took {took:?}");
    ensure!(hook.get("/healthz").await?.starts_with("HTTP/1.1 200"));
    eprintln!(
        "resident beside 200 rude clients: {} KiB",
        hook.resident_kib()?
    );
    Ok(())
}

/// What a client writes that calls `Version`, with every header spelled out.
fn version_call(preface: &[u8], settings: &[u8]) -> Vec<u8> {
    let headers: Vec<u8> = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/runtime.v1.RuntimeService/Version"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    .into_iter()
    .flat_map(|(name, value)| {
        // Literal, not indexed, not Huffman-coded.
        let name = [&[0, name.len() as u8], name.as_bytes()].concat();
        [&name, &[value.len() as u8][..], value.as_bytes()].concat()
    })
    .collect();
    // HEADERS with END_HEADERS, and DATA of one empty message with END_STREAM, of stream 1.
    let head = [0, 0, headers.len() as u8, 1, 4, 0, 0, 0, 1];
    let data = [0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    [preface, settings, &head, &headers, &data].concat()
}
