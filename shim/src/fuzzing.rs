//! What is fuzzed in this crate: whatever comes from CRIU, containerd, a client or a container.

#[path = "../../fuzz/target.rs"]
mod target;

use std::{
    fs,
    path::{Component, Path},
};

use containerd_shim_protos::shim::oci;
use kybernate_cuda::protocol::{Request as Asked, Response};
use protobuf::Message;
use serde_json::Value;
pub use target::Target;

use crate::{
    bootstrap::Bootstrap,
    checkpoint::fuzzing as checkpoint,
    criu,
    io::uri::Output,
    journal::Record,
    mount::{idmap::IdMap, options::MountOptions},
    options::{Options, parse_toml_options},
    socket::Address,
    spec::SpecFacts,
    trigger, wishes,
};

/// All of it.
pub const TARGETS: &[Target] = &[
    Target {
        name: "page_server",
        run: |data, _| checkpoint::page_server(data),
        seeds: checkpoint::dumps,
        rounds: 2_000,
    },
    Target {
        name: "criu",
        run: |data, _| checkpoint::criu(data),
        seeds: checkpoint::criu_texts,
        rounds: 10_000,
    },
    Target {
        name: "spec",
        run: spec,
        seeds: specs,
        rounds: 5_000,
    },
    Target {
        name: "calls",
        run: |data, _| calls(data),
        seeds: messages,
        rounds: 10_000,
    },
    Target {
        name: "records",
        run: records,
        seeds: lines,
        rounds: 5_000,
    },
];

/// A spec grants no more after its wishes than before: nothing is granted by default.
fn spec(data: &[u8], scratch: &Path) {
    let text = String::from_utf8_lossy(data);
    if let Ok(facts) = SpecFacts::parse(&text) {
        let group = facts.group("id");
        assert!(!group.is_empty());
        let _ = (facts.has_systemd_cgroup(), wishes::unprepared(&facts));
    }
    let Ok(mut spec) = serde_json::from_str::<Value>(&text) else {
        return;
    };
    let bundle = scratch.join("app");
    fs::create_dir(&bundle).unwrap();
    let before = spec.pointer("/process/capabilities").cloned();
    let _ = wishes::apply(&bundle, &mut spec);
    assert_eq!(spec.pointer("/process/capabilities").cloned(), before);
    if criu::config::annotate(&bundle, &mut spec) {
        assert!(!criu::config::annotate(&bundle, &mut spec));
    }
    fs::remove_dir_all(bundle).unwrap();
}

fn specs() -> Vec<Vec<u8>> {
    [
        r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.kubernetes.cri.container-type":
            "container","kybernate.io/block-io-uring":"true"},"linux":{"cgroupsPath":"a.slice:b:c",
            "namespaces":[{"type":"pid"}]},"root":{"path":"rootfs","readonly":true}}"#,
        r#"{"annotations":{"kybernate.io/block-io-uring":"true","kybernate.io/criu-options":
            "timeout=5","kybernate.io/trigger":"false"},"linux":{"seccomp":{"syscalls":[{"names":
            ["read","io_uring_setup"]}]}},"mounts":[{"destination":"/run/kybernate"}]}"#,
        r#"{"annotations":{"kybernate.io/add-capabilities":"SYS_ADMIN"},"process":{"capabilities":
            {"bounding":["CAP_KILL"],"effective":null}}}"#,
        r#"{"annotations":null,"linux":null,"process":[],"root":null}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// What containerd sends: bootstrap parameters, options, mounts, outputs.
fn calls(data: &[u8]) {
    if let Ok(bootstrap) = Bootstrap::parse(data, "abc", "k8s.io") {
        let address = Address::parse("unix:///run/containerd/s/0").unwrap();
        assert!(!bootstrap.reply(&address).is_empty());
    }
    if let Ok(message) = oci::Options::parse_from_bytes(data) {
        let bytes = message.write_to_bytes().unwrap();
        assert_eq!(oci::Options::parse_from_bytes(&bytes).unwrap(), message);
    }
    let _ = oci::CheckpointOptions::parse_from_bytes(data);
    let text = match parse_toml_options(data) {
        Ok((_, body)) if !body.is_empty() => body,
        _ => String::from_utf8_lossy(data).into_owned(),
    };
    if let Ok(mut options) = Options::from_toml("here", &text) {
        let json = serde_json::to_vec(&options).unwrap();
        options.unknown.clear();
        assert_eq!(serde_json::from_slice::<Options>(&json).unwrap(), options);
        assert!(!options.binary().is_empty());
        assert!(options.runc_root("ns").ends_with("ns"));
    }
    for line in text.lines() {
        if let Ok(Output::File(path) | Output::Program { program: path, .. }) = Output::parse(line)
        {
            assert!(path.is_absolute());
        }
        if let Some(address) = Address::parse(line) {
            assert!(address.path().is_absolute());
        }
        let (uids, gids) = line.split_once(' ').unwrap_or((line, line));
        let _ = IdMap::parse(uids, gids);
    }
    mounts(&text);
}

/// Layers that are named relative to their common directory are the same layers.
fn mounts(text: &str) {
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut options = MountOptions::parse(&lines);
    let layers = |options: &MountOptions| -> Vec<String> {
        let lower = options
            .data
            .iter()
            .find_map(|o| o.strip_prefix("lowerdir="));
        lower.map_or_else(Vec::new, |list| {
            list.split(':').map(str::to_owned).collect()
        })
    };
    let before = layers(&options);
    if let Some(base) = options.make_layers_relative() {
        let plain = |path: &Path| -> Vec<String> {
            path.components()
                .filter(|part| *part != Component::CurDir)
                .map(|part| part.as_os_str().to_str().unwrap().to_owned())
                .collect()
        };
        for (layer, relative) in before.iter().zip(layers(&options)) {
            assert_eq!(plain(Path::new(layer)), plain(&base.join(relative)));
        }
    }
}

fn messages() -> Vec<Vec<u8>> {
    let options = oci::Options {
        binary_name: "crun".into(),
        systemd_cgroup: true,
        io_uid: 7,
        ..Default::default()
    };
    let toml = "BinaryName = \"/opt/runc\"\nSystemdCgroup = true\nIoUid = 3\n";
    let mut tabled = vec![3 << 3 | 2, toml.len() as u8];
    tabled.extend(toml.bytes());
    let any = protobuf::well_known_types::any::Any {
        type_url: crate::options::TOML_OPTIONS.into(),
        value: tabled.clone(),
        ..Default::default()
    };
    let params = containerd_shim_protos::bootstrap_api::BootstrapParams {
        instance_id: "abc".into(),
        namespace: "k8s.io".into(),
        containerd_ttrpc_address: "/t".into(),
        ..Default::default()
    };
    vec![
        options.write_to_bytes().unwrap(),
        any.write_to_bytes().unwrap(),
        params.write_to_bytes().unwrap(),
        tabled,
        b"lowerdir=/a/b/1:/a/b/2:/a/b/3\nro\nrshared\nuidmap=0:5:9\ngidmap=0:5:9\n".to_vec(),
        b"binary:///bin/l?tag=a+b&-v&path=%2Fx\nfile:///a%20b\nunix:///s\n0:1:2 0:1:2,9:9:9\n"
            .to_vec(),
    ]
}

/// Lines that a dead shim, a container, a client or the GPU helper has left.
fn records(data: &[u8], scratch: &Path) {
    let text = String::from_utf8_lossy(data);
    if let Ok(record) = Record::parse(&text) {
        let json = serde_json::to_string(&record.intent).unwrap();
        let again = Record::parse(&json).unwrap();
        assert_eq!(again.intent, record.intent);
    }
    trigger::fuzz_line(data);
    if let Ok(asked) = serde_json::from_slice::<Asked>(data) {
        let json = serde_json::to_vec(&asked).unwrap();
        assert_eq!(serde_json::from_slice::<Asked>(&json).unwrap(), asked);
    }
    let _ = serde_json::from_slice::<Response>(data);
    checkpoint::request(data, scratch);
}

fn lines() -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = [
        concat!(
            r#"{"version":1,"operation":"checkpoint","namespace":"k8s.io","id":"abc","shim":"#,
            r#"{"pid":7,"start":42},"freezer":null,"paused":"no","gpu":{},"remove":["/a"],"#,
            r#""fills":{"directory":"/d","before":[]}}"#,
            "\n",
            r#"{"step":"gpu-lock","helper":{"pid":8,"start":1},"locked":[{"pid":9,"start":1}]}"#,
            "\n",
            r#"{"step":"dump","programs":[{"pid":10,"start":1}]}"#,
            "\n"
        ),
        r#"{"op":"checkpoint"}"#,
        r#"{"op":"watch"}"#,
        r#"{"id":1,"op":"lock","pid":4711,"timeout_ms":10000}"#,
        r#"{"id":1,"op":"restore","pid":1,"device_map":[["GPU-a","GPU-b"]]}"#,
        r#"{"id":1,"error":{"kind":"driver","code":702,"text":"x"}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    lines.extend(checkpoint::requests());
    lines
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_targets_hold() {
        super::target::hold(super::TARGETS);
    }
}
