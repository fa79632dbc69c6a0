//! Installing on any configuration and uninstalling again changes nothing.

use proptest::prelude::*;

use super::Node;

/// Values and tables as they stand in configurations, our runtime's name excepted.
fn arbitrary_config() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        any::<i32>().prop_map(|n| n.to_string()),
        any::<bool>().prop_map(|b| b.to_string()),
        "[a-z /.*]{0,12}".prop_map(|s| format!("\"{s}\"")),
        Just("[ 1, 2, # two\n 3 ]".to_owned()),
        Just("{ a = 1, b = { c = \"d\" } }".to_owned()),
        Just("'''\nraw\n'''".to_owned()),
    ];
    let pair = ("[a-z_]{1,8}", value).prop_map(|(key, value)| format!("{key}_ = {value}\n"));
    let comment = prop_oneof![
        Just(String::new()),
        Just("# comment\n".to_owned()),
        Just("\n\n".to_owned()),
        Just("  # >>> indented\n".to_owned()),
    ];
    let runtimes = prop_oneof![
        Just(String::new()),
        Just("[plugins.\"CRI\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n".to_owned()),
        Just("[plugins.\"CRI\".containerd]\nruntimes = { runc = { runtime_type = \"x\" } }\n".to_owned()),
        Just("[plugins.\"CRI\"]\ncontainerd.runtimes.runc.runtime_type = \"x\"\n".to_owned()),
        Just("[plugins.\"CRI\".containerd.runtimes]\n[plugins.\"CRI\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n".to_owned()),
        Just("[plugins]\n'CRI' = { sandbox_image = 'x' }\n".to_owned()),
    ];
    let nri = prop_oneof![
        Just(String::new()),
        Just("[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true # why\n".to_owned()),
        Just("[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = false\n".to_owned()),
        Just("[plugins.\"io.containerd.nri.v1.nri\"]\n".to_owned()),
        Just("[plugins.\"io.containerd.nri.v1.nri\"]\n  socket_path = \"/x\"\n".to_owned()),
    ];
    let table = (comment.clone(), prop::collection::vec(pair, 0..3));
    (
        2..=3i64,
        prop::collection::vec(table, 0..4),
        comment,
        runtimes,
        nri,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(version, tables, comment, runtimes, nri, windows, cut)| {
            let mut text = format!("{comment}version = {version}\n");
            text.push_str(&runtimes);
            text.push_str(&nri);
            for (index, (comment, pairs)) in tables.into_iter().enumerate() {
                text.push_str(&format!(
                    "{comment}[plugins.\"io.containerd.t{index}.v1.x\"]\n"
                ));
                let mut seen = Vec::new();
                for pair in pairs {
                    let key = pair.split(' ').next().unwrap_or_default().to_owned();
                    if !seen.contains(&key) {
                        text.push_str(&pair);
                        seen.push(key);
                    }
                }
            }
            let cri = if version == 3 {
                "io.containerd.cri.v1.runtime"
            } else {
                "io.containerd.grpc.v1.cri"
            };
            text = text.replace("CRI", cri);
            if windows {
                text = text.replace('\n', "\r\n");
            }
            if cut {
                text = text.trim_end().to_owned();
            }
            text
        })
        .prop_filter("valid TOML", |text| text.parse::<toml::Table>().is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn uninstalling_after_installing_changes_nothing(text in arbitrary_config()) {
        let node = Node::empty();
        node.file("/etc/containerd/config.toml", &text);
        let before = node.tree();
        node.install().unwrap();
        let after: toml::Table = node.read("/etc/containerd/config.toml").parse().unwrap();
        let plugins = after["plugins"].as_table().unwrap();
        let ours = plugins.values().filter_map(|plugin| {
            plugin.get("containerd")?.get("runtimes")?.get("kybernate")?.get("runtime_path")
        });
        prop_assert_eq!(ours.count(), 1);
        // Drifted or not, the same text comes back.
        let drifted = format!("{}\n# theirs\n", node.read("/etc/containerd/config.toml"));
        node.uninstall().unwrap();
        prop_assert_eq!(node.tree(), before);
        node.install().unwrap();
        node.file("/etc/containerd/config.toml", &drifted);
        node.uninstall().unwrap();
        prop_assert_eq!(
            node.read("/etc/containerd/config.toml"),
            format!("{text}\n# theirs\n")
        );
    }
}
