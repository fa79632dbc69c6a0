//! `kybernate.json`: what an archive holds, where it came from and how it was taken.
//!
//! The manifest is the archive's last tar entry and carries the digest of every other one.
//! Its structs are the format; adding an optional field keeps [`FORMAT`], anything else
//! raises it.

use serde::{Deserialize, Serialize};

/// Version of the archive format.
pub const FORMAT: u32 = 1;
/// Name of the manifest in the archive.
pub const FILE: &str = "kybernate.json";

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// When the container was frozen, RFC 3339, UTC.
    pub created: String,
    /// What wrote the archive, for example `kybernate 0.1.0`.
    pub tool: String,
    /// The container.
    pub container: Container,
    /// The machine it ran on.
    pub host: Host,
    /// The processes, parents before children.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// The container's mounts as its first process saw them.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// GPU state; absent when the container held none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// How long each phase took, in the order they ran.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// From the first freeze to the last thaw, in milliseconds.
    #[serde(default)]
    pub pause_ms: u64,
    /// Who asked for the checkpoint, as the request said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
    /// Manifest digest (hex sha256) of the archive that this container was restored from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// What a reader should know and no field says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Hex digest over the stored bytes of all frames before the manifest's own: sha256 of the
    /// frames' XXH3-64 digests, each as 8 bytes little-endian. The writer fills it in.
    #[serde(default)]
    pub frames: String,
    /// Every other entry of the archive, in order. The writer fills it in.
    pub entries: Vec<Entry>,
}

/// Identity of the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Container {
    /// containerd's id.
    pub id: String,
    /// Name in its pod, or the id where there is none.
    pub name: String,
    /// containerd namespace.
    pub namespace: String,
    /// The pod, for containers of a CRI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Image reference as the CRI annotated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether it ran or was paused when the checkpoint began.
    pub state: String,
}

/// Identity of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pod {
    /// Name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Uid.
    pub uid: String,
    /// Sandbox id.
    pub sandbox: String,
}

/// The machine, as far as a restore elsewhere depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Host {
    /// Node name.
    pub hostname: String,
    /// Architecture as Rust names it: `x86_64`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// CPU feature flags, sorted.
    pub cpu_features: Vec<String>,
    /// `v1` or `v2`.
    pub cgroup: String,
    /// runc's version line.
    pub runc: String,
    /// CRIU's version.
    pub criu: String,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Process {
    /// Pid in the container's pid namespace.
    pub pid: u32,
    /// Parent's pid there; 0 for the first process.
    pub parent: u32,
    /// Command name, at most 15 bytes.
    pub name: String,
    /// Threads.
    pub threads: u32,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is mounted in the container.
    pub destination: String,
    /// Its file system type.
    pub kind: String,
    /// Source as mountinfo names it.
    pub source: String,
    /// Read-only?
    pub read_only: bool,
    /// Whether it is from outside the container and its spec does not name it: a hook made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub injected: bool,
}

/// GPU state that is in the memory of the archived processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Gpu {
    /// Version of the driver that took it, as `580.159.04`.
    pub driver: String,
    /// CUDA version of that driver, as 13000 for 13.0.
    pub cuda: u32,
    /// The GPUs that the processes used.
    pub devices: Vec<GpuDevice>,
    /// The processes that used them.
    pub processes: Vec<GpuProcess>,
    /// Whether huge pages were in use for the copies.
    #[serde(default)]
    pub huge_pages: bool,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GpuDevice {
    /// `GPU-…`.
    pub uuid: String,
    /// The model, as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, as `9.0`.
    pub capability: String,
    /// N of `/dev/nvidiaN`.
    pub minor: u32,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// Bytes that the processes had on it.
    pub used_bytes: u64,
}

/// A process that used GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Pid in the container's pid namespace.
    pub pid: u32,
    /// Bytes of device memory on all GPUs.
    pub used_bytes: u64,
}

/// One phase of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Phase {
    /// Its name: `dump`, `rootfs`, `compress`, …
    pub name: String,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// One tar entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Path in the archive; a directory's ends in `/`.
    pub name: String,
    /// Bytes of content; 0 for a directory.
    pub size: u64,
    /// Where its tar header starts in the uncompressed archive, in bytes.
    pub offset: u64,
    /// Lower-case hex sha256; empty for a directory. Of the content, if that lies in one frame of
    /// the archive, else of the sha256 (32 bytes each) of its pieces, as frames cut it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
}
