//! What happens to GPU state.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[gpu]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GpuSettings {
    /// The program `kybernate-cuda`; empty for the one beside the shim.
    pub helper: PathBuf,
    /// The driver's `libcuda.so.1`; empty to search for it.
    pub libcuda: PathBuf,
    /// Roots of driver installations, searched after the dynamic linker's path.
    pub driver_roots: Vec<PathBuf>,
    /// Whether host memory for device memory comes in huge pages, which halves the time that the
    /// driver needs: `auto` and `always` switch the kernel to `always` for the operation alone,
    /// `auto` only when there is enough memory to matter; `inherit` leaves it as it is.
    pub thp: Thp,
    /// Seconds that CUDA calls which run may take to end.
    pub lock_timeout_s: u64,
    /// Seconds that the driver may take to move the memory of one process.
    pub timeout_s: u64,
    /// Whether a container's memory limit may be raised while its device memory is in host memory.
    pub raise_memory_limit: bool,
    /// Where it is noted which kernel settings are to be put back.
    pub records: PathBuf,
}

/// Use of transparent huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thp {
    /// `always`, where it matters.
    #[default]
    Auto,
    /// For every operation.
    Always,
    /// As the node has it.
    Inherit,
}

impl Default for GpuSettings {
    fn default() -> Self {
        Self {
            helper: PathBuf::new(),
            libcuda: PathBuf::new(),
            driver_roots: vec![
                "/".into(),
                "/run/nvidia/driver".into(),
                "/usr/local/nvidia".into(),
                "/home/kubernetes/bin/nvidia".into(),
            ],
            thp: Thp::Auto,
            lock_timeout_s: 10,
            timeout_s: 600,
            raise_memory_limit: true,
            records: "/run/kybernate/levers".into(),
        }
    }
}
