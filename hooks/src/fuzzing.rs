//! What is fuzzed in this crate: messages of the CRI that are read here.

#[path = "../../fuzz/target.rs"]
mod target;

use std::collections::HashMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use prost::Message;
pub use target::Target;

use crate::{
    cri::{SandboxInfo, v1 as cri},
    proxy::grpc,
};

/// All of it.
pub const TARGETS: &[Target] = &[Target {
    name: "cri",
    run: |data, _| messages(data),
    seeds,
    rounds: 10_000,
}];

/// What decodes encodes to what decodes as the same.
fn again<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    assert_eq!(
        M::decode(&message.encode_to_vec()[..]).ok().as_ref(),
        Some(&message)
    );
    Some(message)
}

/// The first byte chooses a message, or text.
fn messages(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 8 {
        0 => framed(rest),
        1 => drop(again::<cri::CheckpointContainerRequest>(rest)),
        2 => {
            if let Some(answer) = again::<cri::ContainerStatusResponse>(rest) {
                // status.dump, and back.
                let json = serde_json::to_vec(&answer.status).unwrap();
                let read: Option<cri::ContainerStatus> = serde_json::from_slice(&json).unwrap();
                assert_eq!(read.is_some(), answer.status.is_some());
            }
        }
        3 => drop(again::<cri::PodSandboxStatusResponse>(rest)),
        4 => drop(again::<cri::ListContainersResponse>(rest)),
        5 => drop(again::<cri::ListPodSandboxResponse>(rest)),
        6 => timeout(rest),
        _ => sandbox(rest),
    }
}

/// A frame is one message, with all that is behind its five bytes.
fn framed(body: &[u8]) {
    let body = Bytes::copy_from_slice(body);
    if let Ok(message) = grpc::message(&body) {
        assert_eq!(message, body[5..]);
        let length = u32::try_from(message.len()).unwrap();
        assert_eq!(body[..5], [&[0][..], &length.to_be_bytes()].concat());
    }
}

fn timeout(text: &[u8]) {
    let mut headers = HeaderMap::new();
    let Ok(value) = HeaderValue::from_bytes(text) else {
        return;
    };
    headers.insert("grpc-timeout", value);
    if let Some(time) = grpc::timeout(&headers) {
        assert!(time.as_secs() <= 99_999_999 * 3600);
    }
}

fn sandbox(text: &[u8]) {
    let text = String::from_utf8_lossy(text).into_owned();
    let info = HashMap::from([("info".to_owned(), text)]);
    if let Some(Ok(info)) = SandboxInfo::parse(&info) {
        let json = serde_json::to_vec(&info.config).unwrap();
        let config: Option<cri::PodSandboxConfig> = serde_json::from_slice(&json).unwrap();
        assert_eq!(config, info.config);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let asked = cri::CheckpointContainerRequest {
        container_id: "abc".into(),
        location: "/var/lib/kubelet/checkpoints/x.tar".into(),
        timeout: 5,
    };
    let container = cri::Container {
        id: "abc".into(),
        pod_sandbox_id: "pod".into(),
        metadata: Some(cri::ContainerMetadata {
            name: "app".into(),
            attempt: 1,
        }),
        labels: HashMap::from([("a".into(), "b".into())]),
        ..Default::default()
    };
    let status = cri::ContainerStatusResponse {
        status: Some(cri::ContainerStatus {
            id: "abc".into(),
            metadata: container.metadata.clone(),
            image: Some(cri::ImageSpec {
                image: "a:1".into(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        info: HashMap::from([("info".into(), "{}".into())]),
    };
    let listed = cri::ListContainersResponse {
        containers: vec![container],
    };
    let message = asked.encode_to_vec();
    let frame = [&[0, 0, 0, 0, message.len() as u8][..], &message].concat();
    let config = r#"{"config":{"metadata":{"name":"w","namespace":"n"},"linux":{"security_context":
        {"namespace_options":{"pid":1},"run_as_user":{"value":65535},"seccomp":{"profile_type":1}}}}}"#;
    [
        (0, frame),
        (1, message),
        (2, status.encode_to_vec()),
        (4, listed.encode_to_vec()),
        (6, b"11998765u".to_vec()),
        (6, b"99999999H".to_vec()),
        (7, config.as_bytes().to_vec()),
    ]
    .map(|(kind, bytes)| [&[kind][..], &bytes].concat())
    .to_vec()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_targets_hold() {
        super::target::hold(super::TARGETS);
    }
}
