//! From what a user calls a container to what containerd and the CRI know about it.

use prost_types::Timestamp;
use tonic::Code;

use super::{
    error::CheckpointError,
    shim::{self, Shim},
    target::{Target, id_filter},
};
use crate::{
    connect::{Connection, Containerd},
    containerd::{
        containers::{self, GetContainerRequest, ListContainersRequest},
        task::Status,
        tasks,
    },
    cri::v1 as cri,
};
use kybernate_config::names::KUBERNETES_NAMESPACE;

/// Label of the CRI plugin on its containers.
const KIND_LABEL: &str = "io.cri-containerd.kind";

/// A container that can be checkpointed.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// containerd's id.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's runtime type.
    pub runtime: String,
    /// Name of the image, empty where there is none.
    pub image: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// What the CRI adds, for containers that it made.
    pub pod: Option<PodContainer>,
    /// Pid of the first process as containerd sees it.
    pub pid: u32,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether its shim was seen to be ours; if not, nothing was seen.
    pub shim_is_known: bool,
}

/// What the CRI knows about a container.
#[derive(Debug, Clone, PartialEq)]
pub struct PodContainer {
    /// Its status.
    pub status: cri::ContainerStatus,
    /// Its pod.
    pub pod: cri::PodSandboxMetadata,
    /// The pod's sandbox.
    pub sandbox_id: String,
}

/// Finds the target and sees that a checkpoint of it can be asked for. `namespace` is
/// containerd's, for targets that are ids.
///
/// # Errors
/// No such container or several; a sandbox; another shim; not running.
pub async fn resolve(
    connection: &Connection,
    namespace: &str,
    target: &Target,
) -> Result<Subject, CheckpointError> {
    let (containerd, container) = match target {
        Target::Id(prefix) => {
            let containerd = connection.namespace(namespace)?;
            let container = by_id(&containerd, prefix).await?;
            (containerd, container)
        }
        Target::Pod {
            namespace,
            pod,
            container,
        } => {
            let containerd = connection.namespace(KUBERNETES_NAMESPACE)?;
            let found = by_pod(connection, namespace, pod, container).await?;
            let id = found.ok_or_else(|| CheckpointError::NotFound {
                target: target.to_string(),
                namespace: KUBERNETES_NAMESPACE.to_owned(),
            })?;
            let container = by_id(&containerd, &id).await?;
            (containerd, container)
        }
    };
    let kind = container.labels.get(KIND_LABEL).map(String::as_str);
    if kind == Some("sandbox") {
        return Err(CheckpointError::Sandbox { id: container.id });
    }
    let process = process(&containerd, &container.id).await?;
    let runtime = container.runtime.unwrap_or_default().name;
    let shim = shim::of(&runtime, process.pid);
    if let Shim::Other(found) = shim {
        return Err(CheckpointError::OtherShim {
            id: container.id,
            found,
        });
    }
    if !shim::is_runc(&runtime) {
        let version = connection
            .version()
            .version(())
            .await
            .map_err(CheckpointError::call("Version"))?
            .into_inner()
            .version;
        if is_1(&version) {
            return Err(CheckpointError::RuntimeType {
                id: container.id,
                version,
                runtime,
            });
        }
    }
    let paused = match process.status() {
        Status::Running => false,
        Status::Paused | Status::Pausing => true,
        status => {
            return Err(CheckpointError::State {
                id: container.id,
                state: state_name(status),
            });
        }
    };
    let pod = match kind {
        Some("container") => pod_container(connection, &container.id).await?,
        _ => None,
    };
    Ok(Subject {
        id: container.id,
        namespace: containerd.name().to_owned(),
        runtime,
        image: container.image,
        created: container.created_at,
        pod,
        pid: process.pid,
        paused,
        shim_is_known: shim == Shim::Ours,
    })
}

/// Whether a version is one of containerd 1, whose `getCheckpointPath` in
/// `services/tasks/local.go` looks at the options of runc's runtime types only (1.7.24).
fn is_1(version: &str) -> bool {
    version.trim_start_matches('v').starts_with("1.")
}

async fn by_id(
    containerd: &Containerd,
    prefix: &str,
) -> Result<containers::Container, CheckpointError> {
    let mut client = containerd.containers();
    let missing = || CheckpointError::NotFound {
        target: prefix.to_owned(),
        namespace: containerd.name().to_owned(),
    };
    match client
        .get(GetContainerRequest {
            id: prefix.to_owned(),
        })
        .await
    {
        Ok(answer) => return answer.into_inner().container.ok_or_else(missing),
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(CheckpointError::call("Containers.Get")(status)),
    }
    let filters = vec![id_filter(prefix)];
    let mut found = client
        .list(ListContainersRequest { filters })
        .await
        .map_err(CheckpointError::call("Containers.List"))?
        .into_inner()
        .containers;
    match found.len() {
        0 => Err(missing()),
        1 => Ok(found.remove(0)),
        _ => Err(CheckpointError::Ambiguous {
            prefix: prefix.to_owned(),
            ids: found.into_iter().map(|c| c.id).collect(),
        }),
    }
}

/// The id of a pod's container, by metadata: labels are kubelet's, metadata everybody's.
async fn by_pod(
    connection: &Connection,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Option<String>, CheckpointError> {
    let mut client = connection.cri();
    let sandboxes = client
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .await
        .map_err(CheckpointError::call("CRI ListPodSandbox"))?
        .into_inner()
        .items;
    let ids: Vec<String> = sandboxes
        .into_iter()
        .filter(|s| {
            s.metadata
                .as_ref()
                .is_some_and(|m| m.name == pod && m.namespace == namespace)
        })
        .map(|s| s.id)
        .collect();
    let containers = client
        .list_containers(cri::ListContainersRequest::default())
        .await
        .map_err(CheckpointError::call("CRI ListContainers"))?
        .into_inner()
        .containers;
    Ok(newest(containers.into_iter().filter(|c| {
        ids.contains(&c.pod_sandbox_id) && c.metadata.as_ref().is_some_and(|m| m.name == container)
    }))
    .map(|c| c.id))
}

/// Of a container's attempts the one that runs, else the last.
fn newest(containers: impl Iterator<Item = cri::Container>) -> Option<cri::Container> {
    containers.max_by_key(|c| {
        (
            c.state() == cri::ContainerState::ContainerRunning,
            c.created_at,
        )
    })
}

/// The first process of a container. A container without a task has none.
async fn process(
    containerd: &Containerd,
    id: &str,
) -> Result<crate::containerd::task::Process, CheckpointError> {
    let request = tasks::GetRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    let answer = containerd
        .tasks()
        .get(request)
        .await
        .map_err(CheckpointError::task_call("Tasks.Get", id))?;
    answer
        .into_inner()
        .process
        .ok_or_else(|| CheckpointError::without_process(id))
}

async fn pod_container(
    connection: &Connection,
    id: &str,
) -> Result<Option<PodContainer>, CheckpointError> {
    let mut client = connection.cri();
    let listed = match connection.containers(id).await {
        Ok(containers) => containers.into_iter().find(|c| c.id == id),
        // containerd without its CRI plugin still knows the container.
        Err(status) if status.code() == Code::Unimplemented => None,
        Err(status) => return Err(CheckpointError::call("CRI ListContainers")(status)),
    };
    let Some(listed) = listed else {
        return Ok(None);
    };
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    let status = client
        .container_status(request)
        .await
        .map_err(CheckpointError::call("CRI ContainerStatus"))?
        .into_inner()
        .status
        .unwrap_or_default();
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: listed.pod_sandbox_id.clone(),
        verbose: false,
    };
    let pod = client
        .pod_sandbox_status(request)
        .await
        .map_err(CheckpointError::call("CRI PodSandboxStatus"))?
        .into_inner()
        .status
        .and_then(|status| status.metadata)
        .unwrap_or_default();
    Ok(Some(PodContainer {
        status,
        pod,
        sandbox_id: listed.pod_sandbox_id,
    }))
}

fn state_name(status: Status) -> &'static str {
    match status {
        Status::Unknown => "in an unknown state",
        Status::Created => "created and not started",
        Status::Running => "running",
        Status::Stopped => "stopped",
        Status::Paused => "paused",
        Status::Pausing => "being paused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, created_at: i64, state: cri::ContainerState) -> cri::Container {
        cri::Container {
            id: id.into(),
            created_at,
            state: state.into(),
            ..Default::default()
        }
    }

    #[test]
    fn only_containerd_1_is_1() {
        for (version, is) in [
            ("1.7.24~ds1", true),
            ("v1.6.0", true),
            ("2.1.9+unknown", false),
            ("v2.1.1", false),
        ] {
            assert_eq!(is_1(version), is, "{version}");
        }
    }

    #[test]
    fn the_running_attempt_comes_before_a_newer_one_that_has_ended() {
        use cri::ContainerState::{ContainerExited, ContainerRunning};
        let found = newest(
            [
                container("old", 1, ContainerExited),
                container("runs", 2, ContainerRunning),
                container("new", 3, ContainerExited),
            ]
            .into_iter(),
        );
        assert_eq!(found.unwrap().id, "runs");
        let found = newest(
            [
                container("old", 1, ContainerExited),
                container("new", 3, ContainerExited),
            ]
            .into_iter(),
        );
        assert_eq!(found.unwrap().id, "new");
    }
}
