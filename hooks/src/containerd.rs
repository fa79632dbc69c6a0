//! containerd's gRPC API, as far as Kybernate uses it.
//!
//! Every call but `Version` wants the header `containerd-namespace`. Payloads travel as
//! `google.protobuf.Any` with bare type names (`containerd.events.TaskExit`, no prefix).

use prost::{DecodeError, Name};
use prost_types::Any;

pub use crate::proto::containerd::{
    events,
    runc::v1 as runc,
    services::{
        containers::v1 as containers, content::v1 as content, events::v1 as event_service,
        images::v1 as images, introspection::v1 as introspection, leases::v1 as leases,
        snapshots::v1 as snapshots, tasks::v1 as tasks, version::v1 as version,
    },
    types,
    v1::types as task,
};

/// Header that carries the containerd namespace of a call.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";

/// Packs a message as containerd does: with its bare name as the type.
pub fn pack<M: Name>(message: &M) -> Any {
    Any {
        type_url: M::full_name(),
        value: message.encode_to_vec(),
    }
}

/// Whether the payload is an `M`, whatever prefix its type name carries.
pub fn is<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(M::full_name().as_str())
}

/// Unpacks a payload of type `M`; `None` when it is of another type.
pub fn unpack<M: Name + Default>(any: &Any) -> Option<Result<M, DecodeError>> {
    is::<M>(any).then(|| M::decode(any.value.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_types_are_bare_names() {
        let options = runc::CheckpointOptions {
            exit: true,
            image_path: "/a".into(),
            ..Default::default()
        };
        let any = pack(&options);
        assert_eq!(any.type_url, "containerd.runc.v1.CheckpointOptions");
        assert_eq!(any.value, [0x08, 1, 0x42, 2, b'/', b'a']);
        assert_eq!(unpack::<runc::CheckpointOptions>(&any), Some(Ok(options)));
        assert_eq!(unpack::<events::TaskExit>(&any), None);
    }

    #[test]
    fn a_prefix_before_the_type_is_tolerated() {
        let mut any = pack(&events::TaskOom {
            container_id: "c".into(),
        });
        any.type_url = format!("type.googleapis.com/{}", any.type_url);
        assert!(is::<events::TaskOom>(&any));
    }
}
