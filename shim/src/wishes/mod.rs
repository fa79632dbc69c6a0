//! What a container's annotations ask of the shim, applied to its spec before runc sees it.
//!
//! ```text
//! kybernate.io/add-capabilities   process.capabilities, as securityContext.capabilities.add
//! kybernate.io/block-io-uring     linux.seccomp
//! kybernate.io/criu-options       criu.options in the bundle: see criu::config
//! kybernate.io/trigger            a mount, and the socket in it: see trigger
//! kybernate.io/restore-from       see restore
//! kybernate.io/managed            the NRI plugin's marker; without it a warning
//! ```
//!
//! The NRI plugin and clients of the CRI, which are root on the node, write them. A pod's author
//! must not, yet `pod_annotations` in containerd's configuration may pass a pod's annotations on,
//! to the pod's sandbox and to its containers alike. So an annotation that the sandbox has with the
//! same value refuses the container. What is granted is judged here once more, by the node's settings: the
//! plugin may be away, and its settings others.

mod capabilities;
mod seccomp;

use std::{io, path::Path};

use kybernate_config::{
    Settings,
    names::{
        ADD_CAPABILITIES, BLOCK_IO_URING, CRI_CONTAINER_TYPE, CRI_SANDBOX_ID, CRIU_OPTIONS,
        MANAGED, OBEYED, TRIGGER,
    },
    settings::SettingsError,
    wishes::{Capabilities, CriuOptions, WishError, switch},
};
use serde_json::Value;

use crate::{
    criu,
    spec::{SpecError, SpecFacts},
    trigger,
};

/// Why a container is not created.
#[derive(Debug, thiserror::Error)]
pub enum RefusedWish {
    /// The pod's author has written what only the node's own programs may.
    #[error(
        "container annotation {key} comes from the pod, whose author must not set it: remove it \
         from the pod (docs/nri.md names the annotations for pods), and leave kybernate.io/* and \
         org.criu.* out of pod_annotations in containerd's configuration"
    )]
    FromPod {
        /// The annotation.
        key: &'static str,
    },
    /// It does not parse or is not granted.
    #[error("container annotation {key} {reason}")]
    Wish {
        /// The annotation.
        key: &'static str,
        /// What is wrong with the value.
        reason: WishError,
    },
    /// Where the socket would be something else is.
    #[error(
        "a volume is mounted at {destination}, where the trigger socket belongs; mount it elsewhere"
    )]
    Occupied {
        /// The place.
        destination: &'static str,
    },
    /// The spec of the pod's sandbox can't be had, so nobody can tell what comes from it.
    #[error("the spec of the container's pod: {0}")]
    Sandbox(#[source] SpecError),
    /// The settings can't be had.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Something can't be kept in the bundle.
    #[error("cannot write into the bundle: {0}")]
    Bundle(#[source] io::Error),
}

/// Applies the wishes of the spec in `bundle` to it. Returns whether it has changed.
pub fn apply(bundle: &Path, spec: &mut Value) -> Result<bool, RefusedWish> {
    let annotations = spec.get("annotations").and_then(Value::as_object);
    let note = |key: &str| annotations?.get(key)?.as_str().map(String::from);
    // Annotations of a sandbox are its pod's.
    if note(CRI_CONTAINER_TYPE).as_deref() == Some("sandbox") {
        return Ok(false);
    }
    let present: Vec<&'static str> = OBEYED
        .into_iter()
        .filter(|key| note(key).is_some())
        .collect();
    if present.is_empty() {
        return Ok(false);
    }
    if let Some(sandbox) = note(CRI_SANDBOX_ID) {
        let pod = sandbox_annotations(bundle, &sandbox)?;
        // The sandbox has org.criu.config as well, with a value of its own from the shim.
        if let Some(key) = present
            .iter()
            .find(|key| pod.get(**key) == note(key).as_ref())
        {
            return Err(RefusedWish::FromPod { key });
        }
    }
    let wishes = [ADD_CAPABILITIES, BLOCK_IO_URING, CRIU_OPTIONS, TRIGGER];
    let [capabilities, io_uring, criu_options, trigger] = wishes.map(note);
    let settings = Settings::load()?;
    let refused = |key| move |reason| RefusedWish::Wish { key, reason };
    let mut changed = false;
    if let Some(text) = capabilities {
        let wish: Capabilities = text.parse().map_err(refused(ADD_CAPABILITIES))?;
        wish.granted(&settings.wishes)
            .map_err(refused(ADD_CAPABILITIES))?;
        changed |= capabilities::add(spec, &wish);
    }
    if let Some(text) = io_uring
        && switch(&text).map_err(refused(BLOCK_IO_URING))?
    {
        seccomp::block_io_uring(spec);
        changed = true;
    }
    if let Some(text) = criu_options {
        let wish: CriuOptions = text.parse().map_err(refused(CRIU_OPTIONS))?;
        wish.granted(&settings.wishes)
            .map_err(refused(CRIU_OPTIONS))?;
        criu::config::keep_options(bundle, &wish.lines()).map_err(RefusedWish::Bundle)?;
    }
    if let Some(text) = trigger
        && switch(&text).map_err(refused(TRIGGER))?
    {
        if !settings.trigger.allow {
            return Err(refused(TRIGGER)(WishError::NoTrigger));
        }
        if !trigger::mount(bundle, spec).map_err(RefusedWish::Bundle)? {
            return Err(RefusedWish::Occupied {
                destination: trigger::DESTINATION,
            });
        }
        changed = true;
    }
    Ok(changed)
}

/// Annotations of the sandbox, whose bundle lies beside that of the container.
fn sandbox_annotations(
    bundle: &Path,
    sandbox: &str,
) -> Result<std::collections::BTreeMap<String, String>, RefusedWish> {
    let facts = SpecFacts::read(&bundle.with_file_name(sandbox)).map_err(RefusedWish::Sandbox)?;
    Ok(facts.annotations)
}

/// What is to be said about a container that nobody has prepared: at its creation, and in the
/// manifest of its checkpoints. Containers that no CRI has made need no preparation.
#[must_use]
pub fn unprepared(spec: &SpecFacts) -> Option<&'static str> {
    let is_pods = spec
        .annotations
        .get(CRI_CONTAINER_TYPE)
        .is_some_and(|kind| kind == "container");
    (is_pods && !spec.annotations.contains_key(MANAGED)).then_some(
        "the container was created without the NRI plugin (it has no annotation \
         kybernate.io/managed): what its pod's annotations ask for was not done",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::spec::CONFIG_FILE;

    /// Bundles of a sandbox `pod` and of a container `app`; returns that of the container.
    fn bundles(dir: &Path, pod: &Value) -> std::path::PathBuf {
        for name in ["pod", "app"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        let spec = json!({"annotations": pod}).to_string();
        fs::write(dir.join("pod").join(CONFIG_FILE), spec).unwrap();
        dir.join("app")
    }

    fn spec(annotations: &[(&str, &str)]) -> Value {
        let mut all = serde_json::Map::new();
        all.insert(CRI_CONTAINER_TYPE.into(), "container".into());
        all.insert(CRI_SANDBOX_ID.into(), "pod".into());
        for (key, value) in annotations {
            all.insert((*key).into(), (*value).into());
        }
        json!({"annotations": all})
    }

    #[test]
    fn nothing_asked_changes_nothing_and_reads_nothing() {
        let mut plain = spec(&[(MANAGED, "1"), ("kybernate.io/of-the-future", "x")]);
        let before = plain.clone();
        assert!(!apply(Path::new("/nonexistent/app"), &mut plain).unwrap());
        assert_eq!(plain, before);
    }

    #[test]
    fn what_the_pods_author_wrote_refuses_whatever_it_is() {
        for key in OBEYED {
            let dir = tempfile::tempdir().unwrap();
            let bundle = bundles(dir.path(), &json!({ key: "x" }));
            let error = apply(&bundle, &mut spec(&[(key, "x")])).unwrap_err();
            assert!(
                matches!(error, RefusedWish::FromPod { key: named } if named == key),
                "{key}: {error}"
            );
        }
    }

    #[test]
    fn a_pod_whose_spec_cannot_be_had_grants_nothing() {
        let mut asking = spec(&[(BLOCK_IO_URING, "true")]);
        let error = apply(Path::new("/nonexistent/app"), &mut asking).unwrap_err();
        assert!(matches!(error, RefusedWish::Sandbox(_)), "{error}");
    }

    #[test]
    fn a_sandbox_asks_for_nothing() {
        let mut sandbox = spec(&[(BLOCK_IO_URING, "true"), (CRI_CONTAINER_TYPE, "sandbox")]);
        assert!(!apply(Path::new("/nonexistent/pod"), &mut sandbox).unwrap());
    }

    #[test]
    fn a_wish_of_a_client_is_done_and_one_that_is_not_granted_refused() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundles(dir.path(), &json!({}));
        let mut asking = spec(&[(BLOCK_IO_URING, "true"), (CRIU_OPTIONS, "timeout=30")]);
        assert!(apply(&bundle, &mut asking).unwrap());
        assert!(asking.pointer("/linux/seccomp").is_some());
        criu::config::write(&bundle, None, &[]).unwrap();
        let written = fs::read_to_string(bundle.join("criu.conf")).unwrap();
        assert!(written.ends_with("\ntimeout 30\n"), "{written}");
        for (key, value) in [
            (ADD_CAPABILITIES, "SYS_ADMIN"),
            (CRIU_OPTIONS, "ghost-limit=1GiB"),
            (CRIU_OPTIONS, "libdir=/tmp"),
            (BLOCK_IO_URING, "maybe"),
            (TRIGGER, "true"),
        ] {
            let error = apply(&bundle, &mut spec(&[(key, value)])).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, RefusedWish::Wish { .. }) && text.contains(key),
                "{text}"
            );
        }
    }

    #[test]
    fn only_pods_containers_without_the_marker_are_unprepared() {
        let facts = |annotations: Value| {
            SpecFacts::parse(&json!({ "annotations": annotations }).to_string()).unwrap()
        };
        assert!(unprepared(&facts(json!({CRI_CONTAINER_TYPE: "container"}))).is_some());
        for prepared in [
            json!({CRI_CONTAINER_TYPE: "container", MANAGED: "0.1.0"}),
            json!({CRI_CONTAINER_TYPE: "sandbox"}),
            json!({}),
        ] {
            assert_eq!(unprepared(&facts(prepared)), None);
        }
    }
}
