//! Images from a registry in the lab: Debian's `docker-registry`, over plain HTTP as containerd
//! takes it from `localhost`.

use std::{
    fs::{self, File},
    process::Child,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::{
    ImageSpec, ImageStatusRequest, PullImageRequest, RemoveImageRequest,
};
use kybernate_integration::{Case, Lab, checkpoint::run, eventually, image::Image};
use tonic::Code;

use kybernate_integration::hook::{Hook, images};

const ADDRESS: &str = "localhost:5000";
const LOG: &str = "/var/log/docker-registry.log";
const PID: &str = "/run/docker-registry.pid";
const CONFIG: &str = "\
version: 0.1
log: { accesslog: { disabled: false } }
storage: { filesystem: { rootdirectory: /var/lib/docker-registry } }
http: { addr: 127.0.0.1:5000 }
";
/// Of the one layer, so that the pull takes a while.
const LAYER: usize = 24 << 20;

/// A registry that lives as long as the value.
struct Registry {
    lab: Arc<Lab>,
    child: Child,
}

impl Registry {
    async fn start(lab: &Arc<Lab>) -> Result<Self> {
        fs::write(lab.path("/run/docker-registry.yml"), CONFIG)?;
        let log = File::create(lab.path(LOG))?;
        let serve = format!("echo $$ >{PID}; exec docker-registry serve /run/docker-registry.yml");
        let child = lab
            .command("sh")
            .args(["-c", &serve])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run nsenter")?;
        let registry = Self {
            lab: lab.clone(),
            child,
        };
        let ask = "exec 3<>/dev/tcp/127.0.0.1/5000";
        eventually("the registry", Duration::from_secs(10), || async {
            run(&registry.lab, &["bash", "-c", ask]).await?.ok()?;
            Ok(Some(()))
        })
        .await
        .with_context(|| registry.log())?;
        Ok(registry)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.lab.path(LOG)).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.lab.path(PID)).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            let _ = self.lab.kill("KILL", pid);
        }
        let _ = self.child.wait();
    }
}

/// A pull as kubelet makes it, a container of what came, and a pull of what is not there.
pub async fn from_a_registry(cx: Case) -> Result<()> {
    let _hook = Hook::start(&cx.lab).await?;
    let registry = Registry::start(&cx.lab).await?;
    let name = format!("{ADDRESS}/pulled:1");
    let busybox = cx.lab.path("/usr/bin/busybox");
    // Nothing that compresses.
    let mut state = 1u64;
    let noise = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u8
    });
    let (tar, bulk) = ("/run/pulled.tar", cx.lab.path("/run/pulled.bulk"));
    fs::write(&bulk, noise.take(LAYER).collect::<Vec<_>>())?;
    Image::new(&name)
        .directory("bin", 0o755)
        .file("bin/busybox", busybox, 0o755)
        .link("bin/sh", "busybox")
        .file("bulk", &bulk, 0o644)
        .write(&cx.lab.path(tar))?;
    // Into the registry, and out of containerd altogether: its namespaces share what they have.
    let push = format!(
        "ctr -n push images import {tar} && ctr -n push images push --plain-http {name} && \
         ctr -n push images rm --sync {name} && rm {tar} /run/pulled.bulk"
    );
    run(&cx.lab, &["bash", "-c", &push])
        .await?
        .ok()
        .with_context(|| registry.log())?;

    let mut client = images(&cx.lab);
    let spec = |image: &str| ImageSpec {
        image: image.into(),
        ..Default::default()
    };
    let pull = |image: &str| PullImageRequest {
        image: Some(spec(image)),
        ..Default::default()
    };
    client
        .pull_image(pull(&name))
        .await
        .with_context(|| registry.log())?;
    let log = registry.log();
    ensure!(
        log.contains("GET /v2/pulled/blobs/sha256:"),
        "nothing came from the registry: {log}"
    );
    let status = ImageStatusRequest {
        image: Some(spec(&name)),
        ..Default::default()
    };
    let there = client.image_status(status.clone()).await?.into_inner();
    let size = there.image.context("the image is not there")?.size;
    ensure!(size >= LAYER as u64, "{size} bytes");
    let pod = cx.pod().start().await?;
    let container = pod
        .container("pulled")
        .image(&name)
        .shell("busybox wc -c </bulk")
        .start()
        .await?;
    ensure!(container.wait_exit().await?.exit_code == 0);
    ensure!(container.stdout()?.trim() == LAYER.to_string());
    pod.stop().await?;
    pod.remove().await?;
    client
        .remove_image(RemoveImageRequest {
            image: Some(spec(&name)),
        })
        .await?;
    ensure!(
        client
            .image_status(status)
            .await?
            .into_inner()
            .image
            .is_none()
    );

    let missing = format!("{ADDRESS}/nothing:1");
    let refused = client.pull_image(pull(&missing)).await;
    let refused = refused.err().context("an image that is not there")?;
    ensure!(refused.code() == Code::NotFound, "{refused}");
    ensure!(refused.message().contains(&missing), "{refused}");
    Ok(())
}
