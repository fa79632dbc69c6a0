//! What each part may do is what docs/privileges.md says: in manifests, units and AppArmor profiles.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    CONFIGS, PRODUCTION,
    objects::{containers, installer, objects, pod},
    render, run, text, tool,
};

const CAPABILITIES: [&str; 6] = [
    "SYS_ADMIN",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "DAC_OVERRIDE",
    "CHOWN",
    "FOWNER",
];

#[test]
fn production_has_the_capabilities_of_the_table() {
    for overlay in PRODUCTION {
        let Some(text) = render(overlay) else { return };
        let objects = objects(&text);
        let added = &installer(&objects)["securityContext"]["capabilities"]["add"];
        assert_eq!(added, &json!(CAPABILITIES), "{overlay}");
        for (name, object) in &objects {
            let Some(pod) = pod(object) else { continue };
            assert_eq!(pod["hostNetwork"], false, "{overlay}: {name}");
            assert_ne!(pod["hostIPC"], true, "{overlay}: {name}");
            assert_eq!(pod["automountServiceAccountToken"], false);
            for container in containers(pod) {
                let security = &container["securityContext"];
                assert_ne!(security["privileged"], true, "{overlay}: {name}");
                assert_eq!(security["readOnlyRootFilesystem"], true);
                assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
                assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            }
            // What stays has no right and sees nothing of the node.
            for idle in pod["containers"].as_array().unwrap() {
                let security = &idle["securityContext"];
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
                assert_eq!(security["runAsNonRoot"], true);
                assert_eq!(security["allowPrivilegeEscalation"], false);
                assert_eq!(idle["volumeMounts"], Value::Null);
            }
        }
        let binding = objects.keys().find(|key| key.contains("RoleBinding/"));
        assert_eq!(binding, None, "{overlay} binds somebody to a role");
    }
    let docs = text("../docs/privileges.md");
    for name in CAPABILITIES {
        assert!(docs.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn development_is_privileged_and_nothing_else_is_different() {
    let (Some(base), Some(development)) = (render("base"), render("overlays/development")) else {
        return;
    };
    let (mut base, mut development) = (objects(&base), objects(&development));
    let security = |objects: &mut std::collections::BTreeMap<String, Value>| {
        let daemon_set = objects.get_mut("DaemonSet/kybernate-installer").unwrap();
        let container = &mut daemon_set["spec"]["template"]["spec"]["initContainers"][0];
        container["securityContext"].take()
    };
    assert_eq!(
        security(&mut development),
        json!({"privileged": true, "runAsUser": 0})
    );
    security(&mut base);
    assert_eq!(base, development);
}

#[test]
fn confined_is_under_the_profile_that_is_shipped() {
    let Some(text) = render("overlays/confined") else {
        return;
    };
    let objects = objects(&text);
    assert_eq!(
        installer(&objects)["securityContext"]["appArmorProfile"],
        json!({"type": "Localhost", "localhostProfile": "kybernate-installer"})
    );
    assert_eq!(
        capabilities("kybernate-installer"),
        CAPABILITIES.map(str::to_owned).into()
    );
}

/// The capabilities that an AppArmor profile grants.
fn capabilities(profile: &str) -> BTreeSet<String> {
    text(&format!("apparmor/{profile}"))
        .lines()
        .filter_map(|line| line.trim().strip_prefix("capability "))
        .flat_map(|line| line.trim_end_matches(',').split_whitespace())
        .map(str::to_uppercase)
        .collect()
}

/// The capabilities that a unit keeps.
fn bounding_set(unit: &str) -> BTreeSet<String> {
    text(&format!("systemd/{unit}"))
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .expect("a bounding set")
        .split_whitespace()
        .map(|name| name.trim_start_matches("CAP_").to_owned())
        .collect()
}

#[test]
fn units_and_profiles_keep_the_same_capabilities() {
    assert_eq!(bounding_set("kybernate-nri.service"), BTreeSet::new());
    assert_eq!(capabilities("kybernate-nri"), BTreeSet::new());
    assert_eq!(
        bounding_set("kybernate-cri-hooks.service"),
        capabilities("kybernate-cri-hooks")
    );
    for unit in ["kybernate-nri.service", "kybernate-cri-hooks.service"] {
        let text = text(&format!("systemd/{unit}"));
        assert!(text.contains("NoNewPrivileges=yes"), "{unit}");
        assert!(text.contains("MemoryDenyWriteExecute=yes"), "{unit}");
    }
}

#[test]
fn apparmor_takes_the_profiles() {
    let Some(parser) = tool("apparmor_parser") else {
        return;
    };
    // Parsed and compiled; nothing is loaded, so the kernel need not know AppArmor.
    let parse = |input: &str| {
        let mut command = Command::new(&parser);
        run(
            command.args(["--skip-kernel-load", "--skip-cache", "--quiet"]),
            input,
        )
    };
    for profile in [
        "kybernate-nri",
        "kybernate-cri-hooks",
        "kybernate-installer",
    ] {
        let source = text(&format!("apparmor/{profile}"));
        parse(&source).unwrap_or_else(|e| panic!("{profile}: {e}"));
        let broken = source.replacen("include <abstractions/base>", "capability fly,", 1);
        parse(&broken).expect_err("a capability that is none");
    }
}

#[test]
fn seccomp_profiles_say_enosys_to_io_uring() {
    let directory = Path::new(CONFIGS).join("kubernetes/security");
    let source = std::fs::read_to_string(directory.join("seccomp-no-io-uring.json")).unwrap();
    let profile: Value = serde_json::from_str(&source).unwrap();
    let rule = &profile["syscalls"][0];
    assert_eq!(rule["action"], "SCMP_ACT_ERRNO");
    assert_eq!(rule["errnoRet"], 38);
    let names = json!(["io_uring_setup", "io_uring_enter", "io_uring_register"]);
    assert_eq!(rule["names"], names);
}
