//! What the shim and `kybernate-cuda serve` say to each other: one JSON object per line.
//!
//! ```text
//! > {"id":1,"op":"lock","pid":4711,"timeout_ms":10000}
//! > {"id":2,"op":"lock","pid":4712,"timeout_ms":10000}
//! < {"id":2,"ok":{}}
//! < {"id":1,"error":{"kind":"driver","code":702,"text":"cuCheckpointProcessLock: …"}}
//! ```
//!
//! Every request runs on a thread of its own and is answered when it is done, in any order.
//! When the input ends without [`Op::Release`], its writer has died: everything is undone.

use serde::{Deserialize, Serialize};

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller, comes back in the reply.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub op: Op,
}

/// What to do. Pids are those of the PID namespace of `kybernate-cuda`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// The driver, its GPUs, and who uses them: [`Facts`].
    Facts,
    /// The state of a process: [`Reply::state`]. A frozen process does not answer.
    State {
        /// Of whom.
        pid: u32,
    },
    /// Stops CUDA calls of a process.
    Lock {
        /// Whose.
        pid: u32,
        /// How long calls that run may take to end, in milliseconds; 0 waits for ever.
        timeout_ms: u32,
    },
    /// Moves the device memory of a locked process into its host memory.
    Checkpoint {
        /// Whose.
        pid: u32,
    },
    /// Moves the memory back. The process stays locked.
    Restore {
        /// Whose.
        pid: u32,
        /// GPUs that took the place of others: old and new UUID, as `GPU-…`. Empty for the same.
        #[serde(default)]
        device_map: Vec<(String, String)>,
    },
    /// Lets CUDA calls go on.
    Unlock {
        /// Whose.
        pid: u32,
    },
    /// Writes a kernel setting, and writes back what was there at [`Op::Release`], at the end of
    /// the input, or when a later run finds that this one has died.
    Hold {
        /// The file, as `/sys/kernel/mm/transparent_hugepage/enabled`.
        path: String,
        /// What to write.
        value: String,
    },
    /// Names a file that thaws the processes, written before anything else when all is undone.
    Guard {
        /// The file, as `/sys/fs/cgroup/…/cgroup.freeze`.
        path: String,
        /// What to write.
        value: String,
    },
    /// All is well: nothing is to be undone any more. Settings are written back.
    Release,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is done.
    Ok(Box<Reply>),
    /// It is not.
    Error(Failure),
}

/// What was asked for; empty where nothing was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Answer to [`Op::State`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Answer to [`Op::Facts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
}

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It uses no CUDA.
    None,
    /// Its CUDA calls run.
    Running,
    /// Its CUDA calls wait.
    Locked,
    /// Its device memory is in its host memory, and it holds no GPU.
    Checkpointed,
    /// It can't be brought back.
    Failed,
}

impl State {
    /// Its name, as NVIDIA's cuda-checkpoint prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Running => "running",
            Self::Locked => "locked",
            Self::Checkpointed => "checkpointed",
            Self::Failed => "failed",
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Who refused.
    pub kind: FailureKind,
    /// The driver's `CUresult`, if it was the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// What was tried and what was found.
    pub text: String,
}

/// Who refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// The driver's library is missing or lacks the call.
    Library,
    /// The driver.
    Driver,
    /// The kernel.
    Host,
    /// The request makes no sense.
    Request,
}

/// The driver, its GPUs and their users.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Version of the driver, as `580.159.04`; empty when NVML does not tell.
    pub driver: String,
    /// CUDA version of the driver, as 13000 for 13.0.
    pub cuda: u32,
    /// The library in use.
    pub library: String,
    /// The GPUs.
    pub devices: Vec<Device>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Device {
    /// `GPU-…`.
    pub uuid: String,
    /// The model, as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// N of `/dev/nvidiaN`.
    pub minor: u32,
    /// Compute capability, as `9.0`.
    pub capability: String,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Free memory in bytes.
    pub memory_free: u64,
    /// Whether it is partitioned (MIG).
    pub mig: bool,
    /// Its processes.
    pub users: Vec<User>,
}

/// A process that has memory on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct User {
    /// Its pid.
    pub pid: u32,
    /// Bytes of device memory.
    pub memory: u64,
    /// Whether it shares the GPU through the multi-process service (MPS).
    pub mps: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_one_flat_object() {
        let request = Request {
            id: 7,
            op: Op::Lock {
                pid: 4711,
                timeout_ms: 10,
            },
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"id":7,"op":"lock","pid":4711,"timeout_ms":10}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        let restore: Request = serde_json::from_str(r#"{"id":1,"op":"restore","pid":2}"#).unwrap();
        assert_eq!(
            restore.op,
            Op::Restore {
                pid: 2,
                device_map: Vec::new()
            }
        );
    }

    #[test]
    fn answers_say_ok_or_error() {
        for (text, ok) in [
            (r#"{"id":1,"ok":{"state":"running"}}"#, true),
            (
                r#"{"id":1,"error":{"kind":"driver","code":801,"text":"no"}}"#,
                false,
            ),
        ] {
            let response: Response = serde_json::from_str(text).unwrap();
            assert_eq!(matches!(response.outcome, Outcome::Ok(_)), ok);
            assert_eq!(serde_json::to_string(&response).unwrap(), text);
        }
    }
}
