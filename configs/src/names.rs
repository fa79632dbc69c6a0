//! Names that more than one part uses. A name that only one part uses lives there.

/// Prefix of every annotation that Kybernate reads or writes.
pub const ANNOTATION_PREFIX: &str = "kybernate.io/";

/// Container annotation: absolute path of the archive that the container is restored from.
pub const RESTORE_FROM: &str = "kybernate.io/restore-from";

/// Container annotation: set by the NRI plugin on every container that it has prepared.
pub const MANAGED: &str = "kybernate.io/managed";

/// Container annotation: capabilities that the container gets beyond those of its pod's
/// security context, as [`crate::wishes::Capabilities`].
pub const ADD_CAPABILITIES: &str = "kybernate.io/add-capabilities";

/// Container annotation: `true` keeps io_uring, which CRIU can't dump, from its processes.
pub const BLOCK_IO_URING: &str = "kybernate.io/block-io-uring";

/// Container annotation: options for CRIU, as [`crate::wishes::CriuOptions`].
pub const CRIU_OPTIONS: &str = "kybernate.io/criu-options";

/// Container annotation: `true` gives the container a socket by which it asks for checkpoints.
pub const TRIGGER: &str = "kybernate.io/trigger";

/// Container annotation: the CRIU configuration file that runc uses, on the host.
pub const CRIU_CONFIG: &str = "org.criu.config";

/// The container annotations that the shim or runc obeys. A client of the CRI, which is root
/// on the node, sets them, or the NRI plugin, which has checked what the pod's author wrote. A
/// pod must not: its author is nobody on the node.
pub const OBEYED: [&str; 6] = [
    RESTORE_FROM,
    ADD_CAPABILITIES,
    BLOCK_IO_URING,
    CRIU_OPTIONS,
    TRIGGER,
    CRIU_CONFIG,
];

/// Default runtime handler, the one that the `kybernate` runtime class names.
pub const RUNTIME_HANDLER: &str = "kybernate";

/// File name of the shim; containerd derives it from the type `io.containerd.kybernate.v1`.
pub const SHIM_BINARY: &str = "containerd-shim-kybernate-v1";

/// File name of the program that speaks to the CUDA driver.
pub const CUDA_BINARY: &str = "kybernate-cuda";

/// containerd's runtime type for a registration by type.
pub const RUNTIME_TYPE: &str = "io.containerd.kybernate.v1";

/// containerd's runtime type for a registration by `runtime_path`, the default one.
pub const RUNC_RUNTIME_TYPE: &str = "io.containerd.runc.v2";

/// CRI annotation: `sandbox` or `container`.
pub const CRI_CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// CRI annotation: id of the pod sandbox a container belongs to.
pub const CRI_SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// CRI annotation: name of the pod.
pub const CRI_SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
/// CRI annotation: namespace of the pod.
pub const CRI_SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
/// CRI annotation: uid of the pod.
pub const CRI_SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// CRI annotation: name of the container in its pod.
pub const CRI_CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
/// CRI annotation: image the container was created from.
pub const CRI_IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// containerd namespace of everything that kubelet creates.
pub const KUBERNETES_NAMESPACE: &str = "k8s.io";
