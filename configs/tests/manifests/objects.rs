//! Rendered manifests as values, and what overlays and examples are for.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{PRODUCTION, render, text};

/// The objects of some YAML, by kind and name.
pub fn objects(yaml: &str) -> BTreeMap<String, Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
    let named = documents
        .into_iter()
        .filter(|object| !object.is_null())
        .map(|object| {
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let key = word(&object["kind"]) + "/" + &word(&object["metadata"]["name"]);
            (key, object)
        });
    let mut found = BTreeMap::new();
    for (key, object) in named {
        let twice = found.insert(key.clone(), object);
        assert!(twice.is_none(), "{key} is there twice");
    }
    found
}

/// The pod that an object describes.
pub fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str()? {
        "Pod" => Some(&object["spec"]),
        "DaemonSet" | "Deployment" | "Job" => Some(&object["spec"]["template"]["spec"]),
        _ => None,
    }
}

/// All containers of a pod.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|key| pod[key].as_array().into_iter().flatten())
}

/// The installer's container of an overlay.
pub fn installer(objects: &BTreeMap<String, Value>) -> &Value {
    &pod(&objects["DaemonSet/kybernate-installer"]).unwrap()["initContainers"][0]
}

#[test]
fn every_overlay_installs_and_has_the_class() {
    for overlay in PRODUCTION {
        let Some(text) = render(overlay) else { return };
        let objects = objects(&text);
        assert_eq!(objects["RuntimeClass/kybernate"]["handler"], "kybernate");
        let verb = match overlay {
            "overlays/uninstall" => "uninstall",
            _ => "install",
        };
        let args = &installer(&objects)["args"];
        assert_eq!(args[0], verb, "{overlay}");
        assert_eq!([&args[1], &args[2]], ["--root=/host", "--host"]);
        let more = match overlay.trim_start_matches("overlays/") {
            "hooks" => json!("--with-hooks"),
            name @ ("eks" | "k3s" | "microk8s" | "rke2") => json!(format!("--profile={name}")),
            _ => Value::Null,
        };
        assert_eq!(args.get(3).unwrap_or(&Value::Null), &more, "{overlay}");
    }
}

#[test]
fn a_quota_allows_the_priority_of_the_installer() {
    for overlay in PRODUCTION {
        let Some(text) = render(overlay) else { return };
        let objects = objects(&text);
        let installer = &objects["DaemonSet/kybernate-installer"];
        let quota = &objects["ResourceQuota/node-critical"];
        let namespace = |object: &Value| object["metadata"]["namespace"].clone();
        assert_eq!(namespace(quota), namespace(installer), "{overlay}");
        let scope = &quota["spec"]["scopeSelector"]["matchExpressions"][0];
        assert_eq!(scope["scopeName"], "PriorityClass", "{overlay}");
        let priority = &pod(installer).unwrap()["priorityClassName"];
        assert_eq!(scope["values"], json!([priority]), "{overlay}");
    }
}

#[test]
fn the_image_is_that_of_this_version() {
    let kustomization = objects(&text("kubernetes/base/kustomization.yaml"));
    let images = &kustomization["Kustomization/"]["images"];
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(images[0]["newTag"], version);
    let chart: Value = serde_saphyr::from_str(&text("chart/Chart.yaml")).unwrap();
    assert_eq!(chart["version"], version);
    assert_eq!(chart["appVersion"], version);
    let values: Value = serde_saphyr::from_str(&text("chart/values.yaml")).unwrap();
    assert_eq!(values["image"]["repository"], images[0]["newName"]);
}

#[test]
fn examples_are_of_the_class_and_need_no_rights() {
    let Some(text) = render("examples") else {
        return;
    };
    let objects = objects(&text);
    let label = "pod-security.kubernetes.io/enforce";
    let namespace = &objects["Namespace/kybernate-examples"];
    assert_eq!(namespace["metadata"]["labels"][label], "restricted");
    let pods = ["counter", "counter-restored", "training", "inference"];
    for name in pods {
        let object = &objects[&format!("Pod/{name}")];
        let pod = pod(object).unwrap();
        assert_eq!(pod["runtimeClassName"], "kybernate", "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        for container in containers(pod) {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        }
    }
    assert_eq!(
        objects["Pod/counter-restored"]["metadata"]["annotations"]["restore.kybernate.io/counter"],
        "/var/lib/kybernate/counter.tar.zst"
    );
    // What restores it is the same container.
    let container = |name: &str| &pod(&objects[name]).unwrap()["containers"];
    assert_eq!(container("Pod/counter"), container("Pod/counter-restored"));
    for name in ["Pod/training", "Pod/inference"] {
        let object = &objects[name];
        let annotations = &object["metadata"]["annotations"];
        assert_eq!(annotations["block-io-uring.kybernate.io"], "true", "{name}");
        assert_eq!(annotations["gpu.kybernate.io"], "true", "{name}");
        let gpus = &pod(object).unwrap()["containers"][0]["resources"]["limits"];
        assert_eq!(gpus["nvidia.com/gpu"], 1, "{name}");
    }
}
