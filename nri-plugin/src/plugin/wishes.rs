//! What a pod's author wishes for its containers, beside a restore source.
//!
//! ```yaml
//! metadata:
//!   annotations:
//!     block-io-uring.kybernate.io: "true"              # for every container of the pod
//!     capabilities.kybernate.io/app: CHECKPOINT_RESTORE   # for one of them, which comes first
//! ```
//!
//! The runtime lets a plugin change neither capabilities nor, in most versions, seccomp. So
//! what was checked here becomes an annotation of the container, and the shim, which owns the
//! container's `config.json`, acts on it. What does not parse or is not granted refuses the
//! container: one without what its author counts on would be worse.

use kybernate_config::{
    names::{ADD_CAPABILITIES, BLOCK_IO_URING, CRIU_CONFIG, CRIU_OPTIONS, RESTORE_FROM, TRIGGER},
    wishes::{Capabilities, CriuOptions, WishError, switch},
};

use super::{
    policy::{Policy, Refusal},
    restore::RESTORE_PREFIX,
};
use crate::nri::api::{Container, PodSandbox};

/// Pod annotation: the container uses GPUs and is to be made checkpointable.
pub const GPU: &str = "gpu.kybernate.io";

/// One kind of wish.
#[derive(Debug)]
pub struct Wish {
    /// Pod annotation, with `/<container>` behind it or without.
    pub prefix: &'static str,
    /// The container annotation that the shim obeys.
    pub own: &'static str,
    /// Parses a value and judges it; returns what the shim is told, if anything.
    pub judge: fn(&str, &Policy) -> Result<Option<String>, WishError>,
}

/// All of them.
pub const ALL: [Wish; 4] = [
    Wish {
        prefix: "capabilities.kybernate.io",
        own: ADD_CAPABILITIES,
        judge: |text, policy| {
            let wish: Capabilities = text.parse()?;
            wish.granted(&policy.wishes)?;
            Ok(Some(wish.to_string()).filter(|text| !text.is_empty()))
        },
    },
    Wish {
        prefix: "criu.kybernate.io",
        own: CRIU_OPTIONS,
        judge: |text, policy| {
            let wish: CriuOptions = text.parse()?;
            wish.granted(&policy.wishes)?;
            Ok(Some(wish.to_string()).filter(|text| !text.is_empty()))
        },
    },
    Wish {
        prefix: "block-io-uring.kybernate.io",
        own: BLOCK_IO_URING,
        judge: |text, _| Ok(switch(text)?.then(|| "true".into())),
    },
    Wish {
        prefix: "trigger.kybernate.io",
        own: TRIGGER,
        judge: |text, policy| match switch(text)? {
            true if !policy.trigger => Err(WishError::NoTrigger),
            on => Ok(on.then(|| "true".into())),
        },
    },
];

/// The pod's annotation for a container, or else for all of its containers: key and value.
pub fn find<'a>(
    prefix: &str,
    pod: &'a PodSandbox,
    container: &Container,
) -> (String, Option<&'a String>) {
    let one = format!("{prefix}/{}", container.name);
    match pod.annotations.get(&one) {
        Some(value) => (one, Some(value)),
        None => (prefix.into(), pod.annotations.get(prefix)),
    }
}

/// Whether a wish that the plugin itself fulfils is on.
pub fn is_on(prefix: &str, pod: &PodSandbox, container: &Container) -> Result<bool, Refusal> {
    let (key, asked) = find(prefix, pod, container);
    asked.map_or(Ok(false), |text| {
        switch(text).map_err(|reason| Refusal::Wish { key, reason })
    })
}

/// The annotation by which a pod says what it has tried to say with one that is not for pods.
pub fn instead(own: &str, container: &str) -> String {
    match own {
        RESTORE_FROM => format!("{RESTORE_PREFIX}{container}"),
        CRIU_CONFIG => format!("criu.kybernate.io/{container}"),
        _ => ALL
            .iter()
            .find(|wish| wish.own == own)
            .map_or_else(String::new, |wish| format!("{}/{container}", wish.prefix)),
    }
}
