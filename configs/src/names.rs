//! Names that more than one part uses. A name that only one part uses lives there.

/// Prefix of every annotation that Kybernate reads or writes.
pub const ANNOTATION_PREFIX: &str = "kybernate.io/";

/// Container annotation: absolute path of the archive that the container is restored from.
pub const RESTORE_FROM: &str = "kybernate.io/restore-from";

/// Container annotation: set by the NRI plugin on every container that it has prepared.
pub const MANAGED: &str = "kybernate.io/managed";

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
