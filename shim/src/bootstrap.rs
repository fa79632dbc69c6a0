//! What containerd says on stdin of `start`, and what it wants to hear on stdout.
//!
//! | containerd | stdin | reply |
//! |---|---|---|
//! | 1.6 to 2.2 | runtime options as `Any`, or nothing | the address alone |
//! | 2.3 and later | `BootstrapParams` with the options among its extensions | `BootstrapResult` |
//!
//! The address alone is what every version up to 2.2 takes for a shim of task API version 2;
//! JSON would be refused by 1.6, and version 3 by 1.7. An `Any` also decodes as
//! `BootstrapParams`: its type lands in `instance_id` and its value in `namespace`. So the
//! message counts only if it names this container (containerd 2.3 pkg/shim/compat.go).

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use protobuf::{Message, well_known_types::any::Any};

use crate::{
    options::{RUNC_OPTIONS, TOML_OPTIONS},
    socket::Address,
};

/// Version of the task API that containerd 2.3 is told. With it there is no `start` for the
/// other containers of a pod.
const TASK_API: i32 = 3;

/// What containerd said.
#[derive(Debug, Default, PartialEq)]
pub struct Bootstrap {
    /// Options of the runtime.
    pub options: Option<Any>,
    /// What only the new form carries.
    pub params: Option<Params>,
}

/// From `BootstrapParams`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// Where events go.
    pub ttrpc_address: String,
    /// containerd's gRPC address.
    pub grpc_address: String,
    /// Directory of the sockets, when it is not the default.
    pub socket_directory: Option<String>,
    /// More in the log.
    pub debug: bool,
}

/// Why stdin was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// Meant for another shim.
    #[error(
        "stdin is for container {found_id} in namespace {found_namespace}, the flags for {id} in \
         {namespace}"
    )]
    Mismatch {
        /// Namespace of stdin.
        found_namespace: String,
        /// Container of stdin.
        found_id: String,
        /// Namespace of the flags.
        namespace: String,
        /// Container of the flags.
        id: String,
    },
    /// No message.
    #[error("stdin holds {0} bytes that are neither runtime options nor bootstrap parameters")]
    Garbage(usize),
}

impl Bootstrap {
    /// Parses stdin, given the container and namespace of the flags.
    pub fn parse(input: &[u8], id: &str, namespace: &str) -> Result<Self, BootstrapError> {
        if input.is_empty() {
            return Ok(Self::default());
        }
        if let Ok(params) = BootstrapParams::parse_from_bytes(input) {
            if params.instance_id == id && params.namespace == namespace {
                return Ok(Self::from_params(params));
            }
            let more = !params.containerd_grpc_address.is_empty()
                || !params.containerd_ttrpc_address.is_empty()
                || !params.containerd_binary.is_empty();
            if more {
                return Err(BootstrapError::Mismatch {
                    found_namespace: params.namespace,
                    found_id: params.instance_id,
                    namespace: namespace.into(),
                    id: id.into(),
                });
            }
        }
        match Any::parse_from_bytes(input) {
            Ok(any) if any.type_url.is_empty() => Ok(Self::default()),
            Ok(any) => Ok(Self {
                options: Some(any),
                params: None,
            }),
            Err(_) => Err(BootstrapError::Garbage(input.len())),
        }
    }

    fn from_params(params: BootstrapParams) -> Self {
        let debug = params.log_level.value() <= LogLevel::LOG_LEVEL_DEBUG as i32;
        let options = params
            .extensions
            .into_iter()
            .filter_map(|extension| extension.value.into_option())
            .find(|any| {
                matches!(
                    any.type_url.rsplit('/').next(),
                    Some(RUNC_OPTIONS | TOML_OPTIONS)
                )
            });
        Self {
            options,
            params: Some(Params {
                ttrpc_address: params.containerd_ttrpc_address,
                grpc_address: params.containerd_grpc_address,
                socket_directory: params.socket_dir.filter(|dir| !dir.is_empty()),
                debug,
            }),
        }
    }

    /// The reply with a shim's address.
    #[must_use]
    pub fn reply(&self, address: &Address) -> Vec<u8> {
        if self.params.is_none() {
            return address.to_string().into_bytes();
        }
        let result = BootstrapResult {
            version: TASK_API,
            address: address.to_string(),
            protocol: "ttrpc".into(),
            ..BootstrapResult::default()
        };
        // Encoding into memory fails only for messages that lack what they must have.
        result.write_to_bytes().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;
    use protobuf::MessageField;

    use super::*;

    fn any(type_url: &str) -> Any {
        Any {
            type_url: type_url.into(),
            value: b"k8s.io".to_vec(),
            ..Any::default()
        }
    }

    fn params() -> BootstrapParams {
        let extension = |type_url| Extension {
            value: MessageField::some(any(type_url)),
            ..Extension::default()
        };
        BootstrapParams {
            instance_id: "abc".into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "/t".into(),
            containerd_grpc_address: "/g".into(),
            extensions: vec![extension("other.Thing"), extension(RUNC_OPTIONS)],
            socket_dir: Some("/run/s".into()),
            ..BootstrapParams::default()
        }
    }

    fn address() -> Address {
        Address::parse("unix:///run/containerd/s/0").unwrap()
    }

    #[test]
    fn options_of_old_versions_are_an_any() {
        for kind in [RUNC_OPTIONS, TOML_OPTIONS] {
            let input = any(kind).write_to_bytes().unwrap();
            let bootstrap = Bootstrap::parse(&input, "abc", "k8s.io").unwrap();
            assert_eq!(bootstrap.options.as_ref().unwrap().type_url, kind);
            assert_eq!(bootstrap.reply(&address()), b"unix:///run/containerd/s/0");
        }
    }

    #[test]
    fn nothing_is_no_options() {
        let bootstrap = Bootstrap::parse(&[], "abc", "k8s.io").unwrap();
        assert_eq!(bootstrap, Bootstrap::default());
        assert_eq!(bootstrap.reply(&address()), b"unix:///run/containerd/s/0");
    }

    #[test]
    fn parameters_of_new_versions_carry_options_among_extensions() {
        let input = params().write_to_bytes().unwrap();
        let bootstrap = Bootstrap::parse(&input, "abc", "k8s.io").unwrap();
        assert_eq!(bootstrap.options.as_ref().unwrap().type_url, RUNC_OPTIONS);
        let found = bootstrap.params.as_ref().unwrap();
        assert_eq!((found.ttrpc_address.as_str(), found.debug), ("/t", false));
        assert_eq!(found.socket_directory.as_deref(), Some("/run/s"));
        let reply = BootstrapResult::parse_from_bytes(&bootstrap.reply(&address())).unwrap();
        assert_eq!((reply.version, reply.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(reply.address, "unix:///run/containerd/s/0");
    }

    #[test]
    fn the_log_level_of_new_versions_counts() {
        let mut params = params();
        params.log_level = protobuf::EnumOrUnknown::new(LogLevel::LOG_LEVEL_DEBUG);
        let input = params.write_to_bytes().unwrap();
        assert!(
            Bootstrap::parse(&input, "abc", "k8s.io")
                .unwrap()
                .params
                .unwrap()
                .debug
        );
    }

    #[test]
    fn parameters_for_another_container_are_refused() {
        let input = params().write_to_bytes().unwrap();
        let error = Bootstrap::parse(&input, "xyz", "k8s.io")
            .unwrap_err()
            .to_string();
        assert!(error.contains("abc") && error.contains("xyz"), "{error}");
        assert_eq!(
            Bootstrap::parse(&[0xff], "a", "b"),
            Err(BootstrapError::Garbage(1))
        );
    }
}
