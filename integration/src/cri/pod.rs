//! Pod sandboxes.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};
use kybernate_hooks::cri::v1::{
    ContainerFilter, ContainerStatsRequest, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListContainersRequest, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus,
    PodSandboxStatusRequest, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StopPodSandboxRequest,
};

use super::{ContainerBuilder, own_pid_namespace};
use crate::lab::{Handler, Lab};

static COUNT: AtomicU32 = AtomicU32::new(1);

/// Ids of pods that somebody will remove.
pub(crate) type Made = Arc<Mutex<Vec<String>>>;

/// A pod sandbox in the making.
#[derive(Debug, Clone)]
pub struct PodBuilder {
    /// What the CRI will be asked for.
    pub config: PodSandboxConfig,
    lab: Arc<Lab>,
    handler: Handler,
    made: Made,
}

impl PodBuilder {
    /// A pod of the handler in the lab, in namespace `lab`, with a name of its own.
    ///
    /// [`crate::Case::pod`] is the way of suites: it removes what the case has made.
    pub fn new(lab: &Arc<Lab>, handler: Handler) -> Self {
        Self::tracked(lab, handler, Made::default())
    }

    pub(crate) fn tracked(lab: &Arc<Lab>, handler: Handler, made: Made) -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pod-{count}");
        let uid = format!("00000000-0000-4000-8000-{count:012}");
        Self {
            config: PodSandboxConfig {
                hostname: name.clone(),
                log_directory: format!("/var/log/pods/lab_{name}_{uid}"),
                metadata: Some(PodSandboxMetadata {
                    name,
                    namespace: "lab".into(),
                    attempt: 0,
                    uid: uid.clone(),
                }),
                linux: Some(LinuxPodSandboxConfig {
                    cgroup_parent: format!("/kubepods/pod{uid}"),
                    security_context: Some(LinuxSandboxSecurityContext {
                        namespace_options: Some(own_pid_namespace()),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            },
            lab: lab.clone(),
            handler,
            made,
        }
    }

    /// Changes the CRI's message.
    pub fn edit(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Adds an annotation.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.edit(|config| {
            config.annotations.insert(key.into(), value.into());
        })
    }

    /// Changes the namespaces of the pod and of every container made in it.
    pub fn namespaces(self, change: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.edit(|config| {
            change(
                security_of(config)
                    .namespace_options
                    .get_or_insert_default(),
            )
        })
    }

    /// Allows privileged containers in the pod.
    pub fn privileged(self) -> Self {
        self.edit(|config| security_of(config).privileged = true)
    }

    /// Runs the sandbox.
    pub async fn start(self) -> Result<Pod> {
        let response = self
            .lab
            .cri()
            .run_pod_sandbox(RunPodSandboxRequest {
                config: Some(self.config.clone()),
                runtime_handler: self.handler.to_string(),
            })
            .await
            .context("RunPodSandbox")?;
        let id = response.into_inner().pod_sandbox_id;
        self.made
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .push(id.clone());
        Ok(Pod {
            id,
            config: self.config,
            handler: self.handler,
            lab: self.lab,
        })
    }
}

/// A pod sandbox that has been run.
#[derive(Debug, Clone)]
pub struct Pod {
    /// containerd's id of it.
    pub id: String,
    /// What it was made from.
    pub config: PodSandboxConfig,
    /// The runtime handler it runs on.
    pub handler: Handler,
    /// Where it runs.
    pub lab: Arc<Lab>,
}

impl Pod {
    /// A container of this pod, of the image [`crate::image::catalog::TOOLS`].
    pub fn container(&self, name: &str) -> ContainerBuilder {
        ContainerBuilder::new(self, name)
    }

    /// The namespaces that containers of the pod are given.
    pub(super) fn namespaces(&self) -> NamespaceOption {
        self.config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|security| security.namespace_options.clone())
            .unwrap_or_else(own_pid_namespace)
    }

    /// `namespace/pod`, as `kybernate checkpoint namespace/pod/container` wants it.
    pub fn full_name(&self) -> String {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        format!("{}/{}", metadata.namespace, metadata.name)
    }

    /// What the CRI says about the sandbox.
    pub async fn status(&self) -> Result<PodSandboxStatus> {
        let response = self
            .lab
            .cri()
            .pod_sandbox_status(PodSandboxStatusRequest {
                pod_sandbox_id: self.id.clone(),
                verbose: false,
            })
            .await
            .context("PodSandboxStatus")?;
        response
            .into_inner()
            .status
            .context("PodSandboxStatus without a status")
    }

    /// Stops the sandbox and its containers.
    pub async fn stop(&self) -> Result<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.lab
            .cri()
            .stop_pod_sandbox(request)
            .await
            .context("StopPodSandbox")?;
        Ok(())
    }

    /// Removes the sandbox and its containers, running or not.
    pub async fn remove(&self) -> Result<()> {
        remove(&self.lab, &self.id).await
    }

    /// Where containerd keeps the sandbox's bundle in the lab.
    pub fn bundle(&self) -> PathBuf {
        bundle(&self.lab, &self.id)
    }

    /// Pids of the shims that serve this pod, by the socket or the id they were started with.
    pub fn shims(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for pid in self.lab.pids_of(self.handler.shim())? {
            // A process may end between being seen and being looked at.
            let text: Vec<u8> = ["cmdline", "environ"]
                .iter()
                .flat_map(|file| std::fs::read(self.lab.path(format!("/proc/{pid}/{file}"))))
                .flatten()
                .collect();
            if String::from_utf8_lossy(&text).contains(&self.id) {
                pids.push(pid);
            }
        }
        Ok(pids)
    }

    /// A request for the statistics of one of its containers.
    pub(super) fn stats_request(id: &str) -> ContainerStatsRequest {
        ContainerStatsRequest {
            container_id: id.into(),
        }
    }
}

pub(super) fn bundle(lab: &Lab, id: &str) -> PathBuf {
    lab.path(format!(
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}"
    ))
}

/// Removes the containers of a sandbox whose names are chosen, running or not.
pub async fn remove_containers(
    lab: &Lab,
    sandbox: &str,
    chosen: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut cri = lab.cri();
    let filter = Some(ContainerFilter {
        pod_sandbox_id: sandbox.into(),
        ..ContainerFilter::default()
    });
    let listed = cri
        .list_containers(ListContainersRequest { filter })
        .await
        .with_context(|| format!("ListContainers of {sandbox}"))?;
    for container in listed.into_inner().containers {
        if container.metadata.is_some_and(|m| chosen(&m.name)) {
            let container_id = container.id.clone();
            cri.remove_container(RemoveContainerRequest { container_id })
                .await
                .with_context(|| format!("RemoveContainer {}", container.id))?;
        }
    }
    Ok(())
}

/// Removes a sandbox and its containers, running or not.
pub async fn remove(lab: &Lab, id: &str) -> Result<()> {
    let mut cri = lab.cri();
    let pod_sandbox_id = id.to_owned();
    cri.stop_pod_sandbox(StopPodSandboxRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
    })
    .await
    .with_context(|| format!("StopPodSandbox {id}"))?;
    // First, as kubelet does: a containerd that removes them along with their sandbox takes a lock
    // twice, and hangs for good if an NRI plugin registers between the two.
    remove_containers(lab, id, |_| true).await?;
    cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
        .await
        .with_context(|| format!("RemovePodSandbox {id}"))?;
    Ok(())
}

fn security_of(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
}
