//! Pods and containers through the CRI, as kubelet makes them.
//!
//! Builders carry the CRI message itself as a public field: what no method sets, a test sets
//! there.

mod container;
mod logs;
pub(crate) mod pod;

use kybernate_hooks::cri::v1::{NamespaceMode, NamespaceOption};

pub use container::{Container, ContainerBuilder, ExecOutput};
pub use logs::LogLine;
pub use pod::{Pod, PodBuilder, remove as remove_pod, remove_containers};

/// The namespaces of an ordinary pod's container: all of the pod but the PID namespace.
fn own_pid_namespace() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}
