//! `-info`: what this runtime can do, for containerd's start-up and for kubelet.
//!
//! containerd reads a `containerd.types.RuntimeInfo` from stdout. `features` is the JSON of
//! the OCI features structure in an `Any`; without it kubelet takes the runtime for one that
//! has neither user namespaces nor recursive read-only mounts.

use std::{
    io::{self, Write},
    process::Command,
};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use kybernate_config::names::RUNTIME_TYPE;
use protobuf::{Message, MessageField, well_known_types::any::Any};

use crate::{
    options::{Options, OptionsError},
    start,
};

/// `type_url` of the OCI features structure; its value is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Why there is no information.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// stdin is no `Any`.
    #[error("stdin holds no runtime options: {0}")]
    Stdin(protobuf::Error),
    /// The options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// stdin or stdout.
    #[error("cannot {action}: {source}")]
    Stdio {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The answer.
    #[error("the information does not encode: {0}")]
    Encode(protobuf::Error),
}

/// Runs the action.
pub fn run() -> Result<(), InfoError> {
    let stdio = |action| move |source| InfoError::Stdio { action, source };
    let input = start::read_stdin().map_err(stdio("read stdin"))?;
    let any = Any::parse_from_bytes(&input).map_err(InfoError::Stdin)?;
    let options = Options::from_any(Some(&any))?;
    let info = info(&any, features(options.binary()));
    let bytes = info.write_to_bytes().map_err(InfoError::Encode)?;
    io::stdout()
        .lock()
        .write_all(&bytes)
        .map_err(stdio("reply"))
}

/// The JSON that runc prints about itself; none when it can't be asked.
fn features(runc: &str) -> Option<Vec<u8>> {
    let output = Command::new(runc).arg("features").output().ok()?;
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(&output.stdout).is_ok();
    (output.status.success() && json).then_some(output.stdout)
}

fn info(options: &Any, features: Option<Vec<u8>>) -> RuntimeInfo {
    let features = features.map(|value| Any {
        type_url: FEATURES.into(),
        value,
        ..Any::default()
    });
    RuntimeInfo {
        name: RUNTIME_TYPE.into(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..RuntimeVersion::default()
        }),
        options: Some(options.clone())
            .filter(|any| !any.type_url.is_empty())
            .into(),
        features: features.into(),
        ..RuntimeInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_json_under_their_go_type() {
        let info = info(&Any::new(), Some(b"{}".to_vec()));
        assert_eq!(info.features.type_url, FEATURES);
        assert_eq!(info.features.value, b"{}");
        assert!(info.options.is_none());
    }

    #[test]
    fn a_runc_without_features_leaves_them_out() {
        assert_eq!(features("/bin/false"), None);
        assert_eq!(features("/bin/true"), None);
        assert_eq!(features("/nonexistent"), None);
        assert!(info(&Any::new(), None).features.is_none());
    }
}
