//! `kybernate restore`: a container in a pod sandbox, from an archive.
//!
//! The restore itself is the shim's: it finds the annotation on the container that the CRI
//! creates here. For demonstrations and debugging; in a cluster the pod's annotations do this.

use std::{fs::DirBuilder, io::Write, os::unix::fs::DirBuilderExt, path::Path};

use anyhow::{Context, bail};
use kybernate_config::{
    Settings,
    names::{RESTORE_FROM, RUNTIME_HANDLER},
};
use kybernate_hooks::{
    client::explain,
    connect::Connection,
    cri::{SandboxInfo, v1 as cri},
};
use kybernate_oci::archive::Archive;
use serde::Serialize;

use super::{open, runtime};
use crate::{
    args::Restore,
    display::clean,
    interrupt::{Interrupted, interrupted},
    output::{Output, json},
    recreate::{Place, Records},
};

/// A spec is some kilobytes; more is no spec.
const RECORD_MAX: u64 = 4 << 20;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    id: &'a str,
    name: &'a str,
    sandbox: &'a str,
}

/// The pod that the container goes into.
#[derive(Debug)]
struct Pod {
    id: String,
    config: cri::PodSandboxConfig,
}

/// Creates the container, starts it and prints its id.
pub fn run(args: &Restore, settings: &Settings) -> anyhow::Result<()> {
    let archive = open(&args.file, &args.keys)?;
    let path = args
        .file
        .canonicalize()
        .with_context(|| format!("cannot resolve {}", args.file.display()))?;
    let records = Records::parse(
        &record(&archive, "spec.dump")?
            .with_context(|| format!("{} has no spec.dump", path.display()))?,
        record(&archive, "config.dump")?.as_deref(),
        record(&archive, "status.dump")?.as_deref(),
    )?;
    runtime()?.block_on(async {
        let connection = Connection::open(&settings.containerd.socket).await?;
        let pod = pod(&connection, &args.pod).await?;
        let place = place(&connection, args, &records, &archive, &pod).await?;
        let name = place.name.clone();
        make_log_directory(&pod.config, &place.log_path)?;
        let config = records.config(&path, place, &pod.config);
        let id = create(&connection, &pod, config).await?;
        let started = tokio::select! {
            started = start(&connection, &id, args.no_start) => started,
            () = interrupted()? => Err(Interrupted("the new container is removed").into()),
        };
        if let Err(error) = started {
            remove(&connection, &id).await;
            return Err(error);
        }
        if args.json {
            json(&Summary {
                id: &id,
                name: &name,
                sandbox: &pod.id,
            })?;
        } else {
            let mut out = Output::lock();
            writeln!(out, "{id}")?;
            out.flush()?;
        }
        Ok(())
    })
}

/// A small entry; `None` where the archive has none.
fn record(archive: &Archive, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    if !archive
        .manifest()
        .entries
        .iter()
        .any(|entry| entry.name == name)
    {
        return Ok(None);
    }
    let bytes = archive
        .entry(name)
        .and_then(|entry| entry.bytes(RECORD_MAX))
        .with_context(|| format!("cannot read {name}; `kybernate verify` shows what is damaged"))?;
    Ok(Some(bytes))
}

/// Finds the sandbox by id, start of an id or namespace/name.
async fn pod(connection: &Connection, wanted: &str) -> anyhow::Result<Pod> {
    let mut client = connection.cri();
    let listed = client
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .await
        .map_err(|status| call("ListPodSandbox", &status))?
        .into_inner()
        .items;
    let mut found: Vec<_> = listed
        .into_iter()
        .filter(|sandbox| names(wanted, sandbox))
        .collect();
    // A pod that was made anew leaves its old sandbox behind for a while.
    if found.len() > 1 {
        found.retain(|sandbox| sandbox.state() == cri::PodSandboxState::SandboxReady);
    }
    let sandbox = match found.len() {
        0 => bail!(
            "no pod sandbox {}; `crictl pods` shows what is there",
            clean(wanted)
        ),
        1 => found.remove(0),
        n => bail!(
            "{} fits {n} pod sandboxes; write more of the id",
            clean(wanted)
        ),
    };
    if sandbox.state() != cri::PodSandboxState::SandboxReady {
        bail!(
            "pod sandbox {} is not ready; a container needs a running pod",
            sandbox.id
        );
    }
    if sandbox.runtime_handler != RUNTIME_HANDLER {
        eprintln!(
            "kybernate: warning: pod sandbox {} has the runtime handler {:?}, not {RUNTIME_HANDLER:?}; \
             under another shim the restore does not happen",
            sandbox.id, sandbox.runtime_handler
        );
    }
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: sandbox.id.clone(),
        verbose: true,
    };
    let info = client
        .pod_sandbox_status(request)
        .await
        .map_err(|status| call("PodSandboxStatus", &status))?
        .into_inner()
        .info;
    let config = SandboxInfo::parse(&info)
        .transpose()
        .context("containerd's info about the pod sandbox does not parse")?
        .and_then(|info| info.config)
        .context("containerd does not tell the pod sandbox's config; is it containerd?")?;
    Ok(Pod {
        id: sandbox.id,
        config,
    })
}

fn names(wanted: &str, sandbox: &cri::PodSandbox) -> bool {
    match (wanted.split_once('/'), &sandbox.metadata) {
        (Some((namespace, name)), Some(m)) => m.namespace == namespace && m.name == name,
        (Some(_), None) => false,
        (None, _) => !wanted.is_empty() && sandbox.id.starts_with(wanted),
    }
}

/// Name, attempt, image and log of the new container.
async fn place(
    connection: &Connection,
    args: &Restore,
    records: &Records,
    archive: &Archive,
    pod: &Pod,
) -> anyhow::Result<Place> {
    let given = |flag: &Option<String>, record: &str| match flag {
        Some(text) => text.clone(),
        None => record.to_owned(),
    };
    let mut name = given(&args.name, &records.name);
    if name.is_empty() {
        name.clone_from(&archive.manifest().container.name);
    }
    let image = given(&args.image, &records.image);
    if image.is_empty() {
        bail!("the archive names no image; name one with --image");
    }
    // Both may come from the archive, and the name becomes part of a path.
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        bail!(
            "{:?} can't be a container's name; give one with --name",
            clean(&name)
        );
    }
    let request = cri::ImageStatusRequest {
        image: Some(cri::ImageSpec {
            image: image.clone(),
            ..Default::default()
        }),
        verbose: false,
    };
    let known = connection
        .cri_images()
        .image_status(request)
        .await
        .map_err(|status| call("ImageStatus", &status))?
        .into_inner()
        .image;
    if known.is_none() {
        let image = clean(&image);
        bail!(
            "the image {image} is not here; `crictl pull {image}` gets it, --image names another"
        );
    }
    let filter = cri::ContainerFilter {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    let containers = connection
        .cri()
        .list_containers(cri::ListContainersRequest {
            filter: Some(filter),
        })
        .await
        .map_err(|status| call("ListContainers", &status))?
        .into_inner()
        .containers;
    let attempt = containers
        .into_iter()
        .filter_map(|container| container.metadata)
        .filter(|metadata| metadata.name == name)
        .map(|metadata| metadata.attempt.saturating_add(1))
        .max()
        .unwrap_or(0);
    let log_path = args
        .log_path
        .clone()
        .unwrap_or_else(|| format!("{name}/{attempt}.log"));
    Ok(Place {
        name,
        attempt,
        image,
        mounts: args.mount.clone(),
        log_path,
    })
}

/// containerd opens the log and expects its directory, which kubelet would have made.
fn make_log_directory(pod: &cri::PodSandboxConfig, log: &str) -> anyhow::Result<()> {
    let (false, Some(parent)) = (pod.log_directory.is_empty(), Path::new(log).parent()) else {
        return Ok(());
    };
    let directory = Path::new(&pod.log_directory).join(parent);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&directory)
        .with_context(|| {
            format!(
                "cannot create the log directory {}; see --log-path",
                directory.display()
            )
        })
}

/// Creates the container and sees that the annotation has reached it.
async fn create(
    connection: &Connection,
    pod: &Pod,
    config: cri::ContainerConfig,
) -> anyhow::Result<String> {
    let mut client = connection.cri();
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config),
        sandbox_config: Some(pod.config.clone()),
    };
    let id = client
        .create_container(request)
        .await
        .map_err(|status| call("CreateContainer", &status))?
        .into_inner()
        .container_id;
    let request = cri::ContainerStatusRequest {
        container_id: id.clone(),
        verbose: true,
    };
    let arrived = match client.container_status(request).await {
        Ok(answer) => annotated(answer.into_inner().info.get("info").map(String::as_str)),
        Err(status) => {
            remove(connection, &id).await;
            return Err(call("ContainerStatus", &status));
        }
    };
    if !arrived {
        remove(connection, &id).await;
        bail!(
            "containerd keeps the annotation {RESTORE_FROM} from the container, which would start \
             afresh; add container_annotations = [\"kybernate.io/*\"] to the runtime handler in \
             containerd's config and restart containerd"
        );
    }
    Ok(id)
}

/// Whether the OCI spec in containerd's `info` has the annotation.
fn annotated(info: Option<&str>) -> bool {
    info.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok())
        .is_some_and(|info| info["runtimeSpec"]["annotations"][RESTORE_FROM].is_string())
}

async fn start(connection: &Connection, id: &str, no_start: bool) -> anyhow::Result<()> {
    if no_start {
        return Ok(());
    }
    let request = cri::StartContainerRequest {
        container_id: id.to_owned(),
    };
    connection
        .cri()
        .start_container(request)
        .await
        .map(drop)
        .map_err(|status| call("StartContainer", &status))
}

/// Takes back what was created; a container that stays is only in the way.
async fn remove(connection: &Connection, id: &str) {
    let request = cri::RemoveContainerRequest {
        container_id: id.to_owned(),
    };
    if let Err(status) = connection.cri().remove_container(request).await {
        eprintln!(
            "kybernate: warning: container {id} stays: {}",
            clean(&explain(&status))
        );
    }
}

fn call(method: &str, status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("CRI {method} failed: {}", explain(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_goes_by_id_or_by_its_pods_name() {
        let sandbox = cri::PodSandbox {
            id: "5a5b".into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: "web-0".into(),
                namespace: "shop".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        for (wanted, fits) in [
            ("5a", true),
            ("5b", false),
            ("", false),
            ("shop/web-0", true),
            ("shop/web", false),
        ] {
            assert_eq!(names(wanted, &sandbox), fits, "{wanted}");
        }
    }

    #[test]
    fn an_annotation_counts_only_in_the_spec() {
        let text = r#"{"config": {"annotations": {"kybernate.io/restore-from": "/a"}},
                       "runtimeSpec": {"annotations": {"x": "y"}}}"#;
        assert!(!annotated(Some(text)));
        assert!(!annotated(None));
        let text = r#"{"runtimeSpec": {"annotations": {"kybernate.io/restore-from": "/a"}}}"#;
        assert!(annotated(Some(text)));
    }
}
