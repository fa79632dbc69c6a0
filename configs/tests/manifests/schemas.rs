//! Every object is one that Kubernetes takes: no unknown field, none of a wrong type, none missing.
//!
//! The schemas are those of Kubernetes' OpenAPI description, made strict, as kubernetes-validate
//! carries them.

use std::process::Command;

use crate::{PRODUCTION, objects::objects, render, run, tool};

/// The oldest version that the manifests are for (`appArmorProfile`), and the newest with schemas.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

fn validate(yaml: &str, version: &str) -> Option<Result<String, String>> {
    let mut command = Command::new(tool("kubernetes-validate")?);
    Some(run(command.args(["-k", version, "--strict", "-"]), yaml))
}

#[test]
fn every_object_is_valid() {
    for directory in PRODUCTION
        .into_iter()
        .chain(["overlays/development", "examples"])
    {
        let Some(yaml) = render(directory) else {
            return;
        };
        for version in VERSIONS {
            let Some(judged) = validate(&yaml, version) else {
                return;
            };
            let said = judged.unwrap_or_else(|e| panic!("{directory}, {version}: {e}"));
            assert_eq!(
                said.matches(" passed for resource ").count(),
                objects(&yaml).len(),
                "{directory}, {version}: {said}"
            );
        }
    }
}

#[test]
fn mistakes_are_found() {
    let Some(yaml) = render("base") else { return };
    for (right, wrong, named) in [
        ("hostPID:", "hostPid:", "hostPid"),
        ("handler: kybernate", "handlers: kybernate", "handler"),
        ("runAsUser: 0", "runAsUser: root", "runAsUser"),
    ] {
        assert!(yaml.contains(right), "{right}");
        let Some(judged) = validate(&yaml.replace(right, wrong), VERSIONS[0]) else {
            return;
        };
        let said = judged.expect_err(wrong);
        assert!(said.contains(named), "{wrong}: {said}");
    }
}
