//! The Helm chart renders what Kustomize renders, object by object.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use crate::{CONFIGS, objects::objects, render, run, tool};

/// Helm itself, as a library: prints what a chart makes of the values on standard input.
const HELM: &str = "
import json, sys
import helm_python
with helm_python.Chart.load(sys.argv[1]) as chart:
    values = json.load(sys.stdin)
    chart.validate_schema(values)
    made = chart.render(values, name='kybernate', namespace='default')
    print('\\n---\\n'.join(made[name] for name in sorted(made) if made[name].strip()))
";

fn helm(values: &Value) -> Option<Result<String, String>> {
    // The validator comes from the same place: where it is, so is Helm.
    let tools = tool("kubernetes-validate")?;
    let python = tools.with_file_name("python3");
    let chart = Path::new(CONFIGS).join("chart");
    let mut command = Command::new(python);
    Some(run(
        command.args(["-c", HELM]).arg(chart),
        &values.to_string(),
    ))
}

#[test]
fn helm_renders_what_kustomize_renders() {
    for (overlay, values) in [
        ("base", json!({})),
        ("overlays/confined", json!({"confined": true})),
        ("overlays/development", json!({"development": true})),
        ("overlays/eks", json!({"profile": "eks"})),
        (
            "overlays/gke",
            json!({"nodeSelector": {"cloud.google.com/gke-nodepool": "kybernate"}}),
        ),
        ("overlays/hooks", json!({"hooks": true})),
        ("overlays/k3s", json!({"profile": "k3s"})),
        ("overlays/microk8s", json!({"profile": "microk8s"})),
        ("overlays/rke2", json!({"profile": "rke2"})),
        ("overlays/uninstall", json!({"uninstall": true})),
    ] {
        let Some(kustomized) = render(overlay) else {
            return;
        };
        let Some(rendered) = helm(&values) else {
            return;
        };
        let rendered = rendered.unwrap_or_else(|e| panic!("{overlay}: {e}"));
        let (kustomized, rendered) = (objects(&kustomized), objects(&rendered));
        let names = |objects: &std::collections::BTreeMap<String, Value>| -> Vec<String> {
            objects.keys().cloned().collect()
        };
        assert_eq!(names(&kustomized), names(&rendered), "{overlay}");
        for (name, object) in &kustomized {
            assert_eq!(object, &rendered[name], "{overlay}: {name}");
        }
    }
}

#[test]
fn values_that_mean_nothing_are_refused() {
    let Some(refused) = helm(&json!({"hook": true})) else {
        return;
    };
    let said = refused.expect_err("an unknown value");
    assert!(said.contains("hook"), "{said}");
}
