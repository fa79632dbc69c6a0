//! What is fuzzed in this crate: settings, and what pods wish for.

#[path = "../../fuzz/target.rs"]
mod target;

use std::path::Path;

pub use target::Target;

use crate::{
    Settings, layers,
    request::{CheckpointRequest, CheckpointResult, Progress},
    size,
    wishes::{Capabilities, CriuOptions, WishSettings, switch},
};

/// All of it.
pub const TARGETS: &[Target] = &[
    Target {
        name: "settings",
        run: |data, _| settings(data),
        seeds: files,
        rounds: 2_000,
    },
    Target {
        name: "wishes",
        run: |data, _| wishes(data),
        seeds: texts,
        rounds: 50_000,
    },
];

/// What is read can be written down and read again; a file on top of a node's leaves no other trace
/// than its own values.
fn settings(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let path = Path::new("config.toml");
    let Ok(read) = Settings::parse(path, &text) else {
        return;
    };
    let written = toml::to_string(&read).expect("settings are TOML");
    assert_eq!(Settings::parse(path, &written).unwrap(), read, "{written}");
    let whole = layers::settings((Path::new("node.toml"), &text), (path, &written)).unwrap();
    assert_eq!(whole, read);
    let values = layers::effective((Path::new("node.toml"), ""), (path, &text), |_| None, &[]);
    assert!(!values.unwrap().is_empty());
}

fn files() -> Vec<Vec<u8>> {
    let all = toml::to_string(&Settings::default()).expect("settings are TOML");
    [
        all.as_str(),
        "[checkpoint]\nlevel = \"high\"\nbuffer = \"1GiB\"\ntimeout_s = 5\n",
        "[restore]\nrequire_signature = true\ntrusted_keys = [\"/k\"]\n[retention]\ntotal = \"50GiB\"\n",
        "[node]\nprofile = \"k3s\"\n[wishes]\ncapabilities = [\"KILL\"]\n[trigger]\nallow = true\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// A wish that parses prints as what parses as itself, and nothing is granted that is not listed.
fn wishes(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let granting = WishSettings::default();
    assert!(granting.capabilities.is_empty());
    if let Ok(wish) = text.parse::<Capabilities>() {
        assert_eq!(wish.to_string().parse().as_ref(), Ok(&wish));
        assert!(wish.names().all(|name| name.starts_with("CAP_")));
        let asks = wish.names().next().is_some();
        assert_eq!(wish.granted(&granting).is_err(), asks);
    }
    if let Ok(wish) = text.parse::<CriuOptions>() {
        assert_eq!(wish.to_string().parse().as_ref(), Ok(&wish));
        const KNOWN: [&str; 4] = ["force-irmap", "ghost-fiemap", "ghost-limit", "timeout"];
        for line in wish.lines().lines() {
            let (name, value) = line.split_once(' ').unwrap_or((line, "0"));
            assert!(KNOWN.contains(&name), "{line}");
            assert!(value.bytes().all(|b| b.is_ascii_digit()), "{line}");
        }
        let limited = wish.lines().contains("ghost-limit");
        assert_eq!(wish.granted(&granting).is_err(), limited);
    }
    if let Ok(on) = switch(&text) {
        assert_eq!(text, on.to_string());
    }
    if let Ok(bytes) = size::parse(&text) {
        assert_eq!(size::parse(&bytes.to_string()), Ok(bytes));
        let shown = size::display(bytes);
        assert!(shown.ends_with('B'), "{shown}");
    }
    if let Ok(request) = serde_json::from_str::<CheckpointRequest>(&text) {
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(
            serde_json::from_str::<CheckpointRequest>(&json).unwrap(),
            request
        );
    }
    let _ = serde_json::from_str::<CheckpointResult>(&text);
    let _ = serde_json::from_str::<Progress>(&text);
}

fn texts() -> Vec<Vec<u8>> {
    [
        "CHECKPOINT_RESTORE,sys_ptrace, CAP_KILL",
        "timeout=120, force-irmap,ghost-fiemap",
        "ghost-limit=4GiB",
        "true",
        " 16777215 TiB ",
        r#"{"version":1,"level":"fast","include":[{"name":"a","path":"/b"}]}"#,
        r#"{"phase":"dump","read_bytes":1,"written_bytes":2,"elapsed_ms":3}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_targets_hold() {
        super::target::hold(super::TARGETS);
    }
}
