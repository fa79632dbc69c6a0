//! `config.dump` and `status.dump`: what other readers of checkpoints want to know about a
//! container.
//!
//! `config.dump` is the `ContainerConfig` of checkpointctl's `lib/metadata.go`, which
//! containerd, CRI-O and podman share; readers ignore keys that they do not know, so it
//! carries podman's and our own too. Where they contradict each other:
//!
//! | key | containerd wants | CRI-O wants | written |
//! |---|---|---|---|
//! | `rootfsImageRef` | name@digest | 64 hex digits or nothing | 64 hex digits or nothing |
//! | `runtime` | anything | anything (podman: a runtime it knows) | `runc` |
//!
//! containerd's own form is under `kybernateImageRef` and `kybernateRuntime`.
//!
//! `status.dump` is the CRI's `ContainerStatus` as Go prints it: field names of the proto,
//! enums and nanoseconds as numbers, empty fields left out.

use std::time::SystemTime;

use prost_types::Timestamp;
use serde::Serialize;

use super::resolve::{PodContainer, Subject};

/// How Go prints a time that was never set.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigDump {
    id: String,
    name: String,
    rootfs_image: String,
    rootfs_image_ref: String,
    #[serde(rename = "rootfsImageID", skip_serializing_if = "String::is_empty")]
    rootfs_image_id: String,
    rootfs_image_name: String,
    runtime: &'static str,
    kybernate_runtime: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    kybernate_image_ref: String,
    created_time: String,
    checkpointed_time: String,
    restored_time: &'static str,
    restored: bool,
}

/// The content of `config.dump`.
pub(crate) fn config_dump(subject: &Subject, now: SystemTime) -> serde_json::Result<Vec<u8>> {
    let (name, image, image_ref, image_id) = match &subject.pod {
        Some(pod) => (
            long_name(pod),
            pod.status
                .image
                .as_ref()
                .map_or(&subject.image, |image| &image.image)
                .clone(),
            pod.status.image_ref.clone(),
            image_id(&pod.status.image_id, &pod.status.image_ref),
        ),
        None => (
            subject.id.clone(),
            subject.image.clone(),
            String::new(),
            String::new(),
        ),
    };
    let image = if image.is_empty() {
        subject.image.clone()
    } else {
        image
    };
    serde_json::to_vec_pretty(&ConfigDump {
        id: subject.id.clone(),
        name,
        rootfs_image: image.clone(),
        rootfs_image_ref: image_id.clone(),
        rootfs_image_id: image_id,
        rootfs_image_name: image,
        runtime: "runc",
        kybernate_runtime: subject.runtime.clone(),
        kybernate_image_ref: image_ref,
        created_time: subject
            .created
            .as_ref()
            .map_or_else(|| ZERO_TIME.into(), rfc3339),
        checkpointed_time: rfc3339(&Timestamp::from(now)),
        restored_time: ZERO_TIME,
        restored: false,
    })
}

/// The content of `status.dump`.
pub(crate) fn status_dump(pod: &PodContainer) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(&pod.status)
}

/// The name under which containerd's CRI plugin keeps a container.
fn long_name(pod: &PodContainer) -> String {
    let metadata = pod.status.metadata.clone().unwrap_or_default();
    let sandbox = &pod.pod;
    format!(
        "{}_{}_{}_{}_{}",
        metadata.name, sandbox.name, sandbox.namespace, sandbox.uid, metadata.attempt
    )
}

/// 64 hex digits of the image's id, if either text is one.
fn image_id(id: &str, reference: &str) -> String {
    [id, reference]
        .into_iter()
        .map(|text| text.strip_prefix("sha256:").unwrap_or(text))
        .find(|text| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()))
        .unwrap_or_default()
        .to_owned()
}

fn rfc3339(time: &Timestamp) -> String {
    time.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cri::v1 as cri;

    const HEX: &str = "a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4";

    fn pod_subject() -> Subject {
        let status = cri::ContainerStatus {
            id: "c1".into(),
            metadata: Some(cri::ContainerMetadata {
                name: "web".into(),
                attempt: 2,
            }),
            state: cri::ContainerState::ContainerRunning.into(),
            created_at: 1_700_000_000_123_456_789,
            image: Some(cri::ImageSpec {
                image: "docker.io/library/web:1".into(),
                ..Default::default()
            }),
            image_ref: format!("docker.io/library/web@sha256:{HEX}"),
            image_id: format!("sha256:{HEX}"),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            mounts: vec![cri::Mount {
                container_path: "/data".into(),
                host_path: "/srv".into(),
                readonly: true,
                uid_mappings: vec![cri::IdMapping {
                    host_id: 1,
                    container_id: 0,
                    length: 5,
                }],
                ..Default::default()
            }],
            log_path: "/var/log/pods/x/web/2.log".into(),
            ..Default::default()
        };
        Subject {
            id: "c1".into(),
            namespace: "k8s.io".into(),
            runtime: "io.containerd.runc.v2".into(),
            image: "docker.io/library/web:1".into(),
            created: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 123_456_789,
            }),
            pod: Some(PodContainer {
                status,
                pod: cri::PodSandboxMetadata {
                    name: "web-0".into(),
                    uid: "u1".into(),
                    namespace: "shop".into(),
                    attempt: 0,
                },
                sandbox_id: "s1".into(),
            }),
            pid: 4711,
            paused: false,
            shim_is_known: true,
        }
    }

    #[test]
    fn config_dump_has_the_keys_that_go_readers_look_for() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_100);
        let text = config_dump(&pod_subject(), now).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            found,
            serde_json::json!({
                "id": "c1",
                "name": "web_web-0_shop_u1_2",
                "rootfsImage": "docker.io/library/web:1",
                "rootfsImageRef": HEX,
                "rootfsImageID": HEX,
                "rootfsImageName": "docker.io/library/web:1",
                "runtime": "runc",
                "kybernateRuntime": "io.containerd.runc.v2",
                "kybernateImageRef": format!("docker.io/library/web@sha256:{HEX}"),
                "createdTime": "2023-11-14T22:13:20.123456789Z",
                "checkpointedTime": "2023-11-14T22:15:00Z",
                "restoredTime": "0001-01-01T00:00:00Z",
                "restored": false,
            })
        );
    }

    #[test]
    fn a_container_without_a_pod_goes_by_its_id() {
        let subject = Subject {
            pod: None,
            created: None,
            ..pod_subject()
        };
        let text = config_dump(&subject, SystemTime::UNIX_EPOCH).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(found["name"], "c1");
        assert_eq!(found["rootfsImageRef"], "");
        assert_eq!(found["rootfsImageName"], "docker.io/library/web:1");
        assert_eq!(found["createdTime"], ZERO_TIME);
        assert_eq!(found.get("rootfsImageID"), None);
    }

    #[test]
    fn status_dump_is_json_as_go_prints_structs() {
        let text = status_dump(&pod_subject().pod.unwrap()).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            found,
            serde_json::json!({
                "id": "c1",
                "metadata": {"name": "web", "attempt": 2},
                "state": 1,
                "created_at": 1_700_000_000_123_456_789_u64,
                "image": {"image": "docker.io/library/web:1"},
                "image_ref": format!("docker.io/library/web@sha256:{HEX}"),
                "image_id": format!("sha256:{HEX}"),
                "labels": {"app": "web"},
                "mounts": [{
                    "container_path": "/data",
                    "host_path": "/srv",
                    "readonly": true,
                    "uidMappings": [{"host_id": 1, "length": 5}],
                }],
                "log_path": "/var/log/pods/x/web/2.log",
            })
        );
        let back: cri::ContainerStatus = serde_json::from_slice(&text).unwrap();
        assert_eq!(back, pod_subject().pod.unwrap().status);
    }
}
