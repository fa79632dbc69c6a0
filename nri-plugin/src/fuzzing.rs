//! What is fuzzed in this crate: the trunk, and what the runtime says about pods.

#[path = "../../fuzz/target.rs"]
mod target;

use std::{
    io::Cursor,
    path::{Component, Path},
};

use kybernate_config::{
    Settings,
    names::{ADD_CAPABILITIES, MANAGED, OBEYED, RESTORE_FROM, TRIGGER},
};
use protobuf::Message;
pub use target::Target;
use tokio::io::AsyncReadExt as _;

use crate::{
    nri::{
        api::{ConfigureRequest, Container, ContainerRequest, PodSandbox},
        mux::{Mux, MuxError, PLUGIN_SERVICE, RUNTIME_SERVICE},
    },
    plugin::policy::Policy,
};

/// All of it.
pub const TARGETS: &[Target] = &[
    Target {
        name: "mux",
        run: |data, _| mux(data),
        seeds: trunks,
        rounds: 3_000,
    },
    Target {
        name: "policy",
        run: |data, _| policy(data),
        seeds: requests,
        rounds: 5_000,
    },
];

/// The payloads for each connection, and whether the trunk ends within a frame.
fn frames(mut trunk: &[u8]) -> ([Vec<u8>; 2], bool) {
    let mut streams = [Vec::new(), Vec::new()];
    while let Some((header, rest)) = trunk.split_first_chunk::<8>() {
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let length = word(4) as usize;
        let (payload, behind) = rest.split_at(length.min(rest.len()));
        match word(0) {
            PLUGIN_SERVICE => streams[0].extend_from_slice(payload),
            RUNTIME_SERVICE => streams[1].extend_from_slice(payload),
            _ => {}
        }
        if payload.len() < length {
            return (streams, true);
        }
        trunk = behind;
    }
    (streams, !trunk.is_empty())
}

/// Every connection gets its frames' payloads in order, and none of another's.
fn mux(data: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().build().unwrap();
    }
    let (expected, cut_off) = frames(data);
    let trunk = tokio::io::join(Cursor::new(data.to_vec()), tokio::io::sink());
    let (read, ended) = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let mut mux = Mux::new();
            let conns = [mux.open(PLUGIN_SERVICE), mux.open(RUNTIME_SERVICE)];
            let mut trunk = mux.start(trunk);
            let read = |mut conn: crate::nri::mux::Conn| {
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    conn.read_to_end(&mut all).await.unwrap();
                    all
                })
            };
            let [one, two] = conns.map(read);
            let ended = trunk.closed().await;
            ([one.await.unwrap(), two.await.unwrap()], ended)
        })
    });
    assert!(read == expected);
    match ended {
        Ok(()) => assert!(!cut_off),
        Err(MuxError::Truncated { missing, .. }) => assert!(cut_off && missing > 0),
        Err(error) => assert!(cut_off, "{error}"),
    }
}

fn trunks() -> Vec<Vec<u8>> {
    let frame = |id: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap();
        [&id.to_be_bytes()[..], &length.to_be_bytes(), payload].concat()
    };
    vec![
        [
            frame(1, b"one"),
            frame(2, b"two"),
            frame(1, b""),
            frame(7, b"nobody"),
        ]
        .concat(),
        frame(2, &vec![3; 40_000]),
        frame(1, b"cut off")[..11].to_vec(),
        [&frame(2, b"x")[..], &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]].concat(),
    ]
}

/// Foreign pods are left alone. Others' containers get no more than was asked for and is granted.
fn policy(data: &[u8]) {
    let base = Policy::new(&Settings::default()).unwrap();
    if let Ok(configured) = ConfigureRequest::parse_from_bytes(data) {
        let _ = base.with_drop_in(&configured.config);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = base.with_drop_in(text);
    }
    let Ok(asked) = ContainerRequest::parse_from_bytes(data) else {
        return;
    };
    let (pod, container) = (
        asked.pod.unwrap_or_default(),
        asked.container.unwrap_or_default(),
    );
    let decided = base.adjust(&pod, &container);
    if !base.is_class(&pod) {
        assert_eq!(decided, Ok(None));
        return;
    }
    let Ok(adjustment) = decided else {
        return;
    };
    let adjustment = adjustment.expect("a pod of the class");
    assert!(OBEYED.iter().all(|key| !pod.annotations.contains_key(*key)));
    assert!(adjustment.annotations.contains_key(MANAGED));
    // Neither is granted by default.
    for key in [ADD_CAPABILITIES, TRIGGER] {
        assert!(!adjustment.annotations.contains_key(key), "{key}");
    }
    if let Some(source) = adjustment.annotations.get(RESTORE_FROM) {
        let path = Path::new(source);
        assert!(path.is_absolute());
        assert!(
            path.components()
                .skip(1)
                .all(|part| matches!(part, Component::Normal(_)))
        );
        let allowed = Settings::default().nri.restore_dirs;
        assert!(
            allowed
                .iter()
                .any(|dir| path.starts_with(dir) && path != dir),
            "{source}"
        );
    }
    for mount in &adjustment.mounts {
        let same = |own: &&crate::nri::api::Mount| {
            own.destination == mount.destination && own.source == mount.source
        };
        assert!(
            container.mounts.iter().any(|own| same(&own)),
            "a mount that it did not have"
        );
    }
    for device in &adjustment.linux.devices {
        assert!(
            device.path.starts_with('-'),
            "a device that it did not have"
        );
    }
}

fn requests() -> Vec<Vec<u8>> {
    let request = |handler: &str, pairs: &[(&str, &str)]| {
        let annotations = pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        let pod = PodSandbox {
            runtime_handler: handler.into(),
            namespace: "n".into(),
            annotations: annotations.collect(),
            ..Default::default()
        };
        let container = Container {
            name: "app".into(),
            mounts: vec![crate::nri::api::Mount {
                source: "/usr/lib/libcuda.so.1".into(),
                destination: "/usr/lib/libcuda.so.1".into(),
                options: vec!["rbind".into(), "shared".into()],
                ..Default::default()
            }],
            ..Default::default()
        };
        let request = ContainerRequest {
            pod: Some(pod).into(),
            container: Some(container).into(),
            ..Default::default()
        };
        request.write_to_bytes().unwrap()
    };
    vec![
        request(
            "kybernate",
            &[("restore.kybernate.io/app", "/var/lib/kybernate/a.tar.zst")],
        ),
        request(
            "kybernate",
            &[
                ("gpu.kybernate.io", "true"),
                ("criu.kybernate.io", "timeout=5"),
            ],
        ),
        request(
            "kybernate",
            &[
                ("capabilities.kybernate.io", "KILL"),
                ("trigger.kybernate.io", "true"),
            ],
        ),
        request("kybernate", &[("kybernate.io/restore-from", "/etc/shadow")]),
        request("runc", &[("restore.kybernate.io/app", "x")]),
        b"handlers = [\"kybernate\"]\nrestore_dirs = [\"/data/{namespace}\"]\n".to_vec(),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_targets_hold() {
        super::target::hold(super::TARGETS);
    }
}
