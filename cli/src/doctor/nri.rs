//! Whether the NRI plugin has prepared the class's containers.

use std::collections::HashMap;

use kybernate_config::names::{KUBERNETES_NAMESPACE, MANAGED, RUNTIME_HANDLER};
use kybernate_hooks::{
    client::explain, connect::Connection, containerd::containers::GetContainerRequest,
    cri::v1 as cri,
};
use serde::Deserialize;

use super::Finding;

const CHECK: &str = "NRI plugin";
/// How many containers are named.
const NAMED: usize = 3;

/// The part of a runtime spec that tells.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    annotations: Option<HashMap<String, String>>,
}

/// Looks at every running container of the class.
pub async fn ask(connection: &Connection) -> Finding {
    match containers(connection).await {
        Ok(found) => judge(&found),
        Err(error) => Finding::warn(
            CHECK,
            format!("the containers of the class can't be listed: {error}"),
            "see that containerd's CRI plugin is not disabled",
        ),
    }
}

/// Names of the class's running containers, and whether each has the plugin's marker.
async fn containers(connection: &Connection) -> Result<Vec<(String, bool)>, String> {
    let status = |status: tonic::Status| explain(&status);
    let mut client = connection.cri();
    let pods = client.list_pod_sandbox(cri::ListPodSandboxRequest::default());
    let pods: HashMap<_, _> = pods
        .await
        .map_err(status)?
        .into_inner()
        .items
        .into_iter()
        .filter(|pod| pod.runtime_handler == RUNTIME_HANDLER)
        .map(|pod| (pod.id, pod.metadata.unwrap_or_default()))
        .collect();
    let listed = client.list_containers(cri::ListContainersRequest::default());
    let containerd = connection
        .namespace(KUBERNETES_NAMESPACE)
        .map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for container in listed.await.map_err(status)?.into_inner().containers {
        let Some(pod) = pods.get(&container.pod_sandbox_id) else {
            continue;
        };
        if container.state() != cri::ContainerState::ContainerRunning {
            continue;
        }
        let name = container.metadata.unwrap_or_default().name;
        let id = container.id;
        let record = containerd
            .containers()
            .get(GetContainerRequest { id })
            .await;
        // One that has gone meanwhile needs nothing.
        let Ok(record) = record else { continue };
        let spec = record.into_inner().container.and_then(|record| record.spec);
        let spec: Spec = spec
            .and_then(|spec| serde_json::from_slice(&spec.value).ok())
            .unwrap_or_default();
        let is_prepared = spec
            .annotations
            .is_some_and(|annotations| annotations.contains_key(MANAGED));
        found.push((
            format!("{}/{}/{name}", pod.namespace, pod.name),
            is_prepared,
        ));
    }
    Ok(found)
}

fn judge(found: &[(String, bool)]) -> Finding {
    let without: Vec<&str> = found
        .iter()
        .filter(|(_, is_prepared)| !is_prepared)
        .map(|(name, _)| name.as_str())
        .collect();
    if found.is_empty() {
        return Finding::ok(CHECK, "no container of the class runs");
    }
    if without.is_empty() {
        return Finding::ok(
            CHECK,
            format!("has prepared all {} containers of the class", found.len()),
        );
    }
    let named = without[..without.len().min(NAMED)].join(", ");
    let more = if without.len() > NAMED { ", …" } else { "" };
    Finding::warn(
        CHECK,
        format!(
            "was away when {} of {} containers of the class were created: {named}{more}",
            without.len(),
            found.len()
        ),
        "see that kybernate-nri runs and that NRI is on in containerd's config, then create \
         these pods anew: what their annotations ask for was not done",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn containers_without_the_marker_are_named() {
        let container = |number: usize, is_prepared| (format!("ns/pod/{number}"), is_prepared);
        assert_eq!(judge(&[]).level, Level::Ok);
        assert_eq!(judge(&[container(1, true)]).level, Level::Ok);
        let found: Vec<_> = (0..6)
            .map(|number| container(number, number == 0))
            .collect();
        let finding = judge(&found);
        assert_eq!(finding.level, Level::Warn);
        assert_eq!(
            finding.found,
            "was away when 5 of 6 containers of the class were created: ns/pod/1, ns/pod/2, \
             ns/pod/3, …"
        );
    }
}
