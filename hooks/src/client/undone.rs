//! Whether a checkpoint that nobody wants any more was undone.
//!
//! Only the shim knows. It words it as `shim/src/checkpoint/error.rs` and `stop.rs` do; whatever
//! else it says, or containerd says in its place, is for the caller to read.

use tonic::Status;

use super::error::CheckpointError;

/// Why a checkpoint is rolled back whose container runs on: not because it was killed.
const REASONS: [&str; 3] = [
    "its deadline passed",
    "the client that asked for it went away",
    "the call that asked for it ended",
];

/// What was said other than that all is as it was.
pub(super) fn otherwise(id: &str, status: Status) -> Option<String> {
    (!is_plain(id, status.message()))
        .then(|| CheckpointError::task_call("Tasks.Checkpoint", id)(status).to_string())
}

/// Whether a text tells of a rollback and of nothing besides; further failures come after a
/// semicolon. containerd puts words of its own before and after it.
fn is_plain(id: &str, said: &str) -> bool {
    let rolled_back = format!("checkpoint of container {id} was rolled back: ");
    said.split_once(&rolled_back)
        .is_some_and(|(_, why)| REASONS.iter().any(|reason| why.starts_with(reason)))
        && !said.contains(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLLED_BACK: &str =
        "checkpoint of container c1 was rolled back: the client that asked for it went away";

    #[test]
    fn a_plain_rollback_needs_no_words() {
        for said in [
            ROLLED_BACK.to_owned(),
            format!("{ROLLED_BACK} (at step dump): context canceled"),
            "checkpoint of container c1 was rolled back: its deadline passed: unknown".to_owned(),
            "checkpoint of container c1 was rolled back: the call that asked for it ended \
             (deadline or disconnect)"
                .to_owned(),
        ] {
            assert_eq!(otherwise("c1", Status::cancelled(&said)), None, "{said}");
        }
    }

    #[test]
    fn anything_else_is_told() {
        for (status, told) in [
            (
                Status::cancelled(format!(
                    "{ROLLED_BACK}; and not everything is as before: /x: EBUSY; `kybernate doctor \
                     --repair` tries again"
                )),
                "doctor --repair",
            ),
            (
                Status::cancelled(format!(
                    "{ROLLED_BACK}; and container c1 is not as before: EIO"
                )),
                "not as before",
            ),
            (
                Status::cancelled("checkpoint of container c1 was rolled back: it was killed"),
                "it was killed",
            ),
            (
                Status::unknown("container c1 could not be thawed after its checkpoint: EIO"),
                "could not be thawed",
            ),
            (Status::unavailable("transport error"), "went away"),
            (Status::not_found("task c1 not found"), "without a process"),
            (
                Status::cancelled(
                    "checkpoint of container c2 was rolled back: its deadline passed",
                ),
                "c2",
            ),
        ] {
            let said = otherwise("c1", status).unwrap();
            assert!(said.contains(told), "{said}");
        }
    }
}
