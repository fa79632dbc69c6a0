//! Parts of messages.

use containerd_shim_protos::{
    api::Status,
    shim::oci::{CheckpointOptions, ProcessDetails},
};
use protobuf::{
    Message, MessageField,
    well_known_types::{any::Any, timestamp::Timestamp},
};

use super::TaskError;
use crate::{
    process::{Process, ProcessState},
    reaper::Exit,
};

/// `type_url` of [`ProcessDetails`].
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";
/// `type_url` of [`CheckpointOptions`].
const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// Pid, exit status and exit time; zeros and nothing while it lives.
pub(super) fn ending(process: &Process) -> (u32, u32, MessageField<Timestamp>) {
    let pid = process.pid().unwrap_or(0);
    match process.exit() {
        Some(Exit { status, at, .. }) => (pid, status, MessageField::some(Timestamp::from(at))),
        None => (pid, 0, MessageField::none()),
    }
}

pub(super) fn status(state: ProcessState) -> Status {
    match state {
        ProcessState::Created => Status::CREATED,
        ProcessState::Running => Status::RUNNING,
        ProcessState::Pausing => Status::PAUSING,
        ProcessState::Paused => Status::PAUSED,
        ProcessState::Stopped => Status::STOPPED,
    }
}

/// Options of a checkpoint, when they are there and of the known type.
pub(super) fn checkpoint_options(any: &Any) -> Result<Option<CheckpointOptions>, TaskError> {
    match any.type_url.rsplit('/').next() {
        Some(CHECKPOINT_OPTIONS) => {}
        None | Some("") => return Ok(None),
        Some(other) => {
            tracing::warn!(
                type_url = other,
                "unknown checkpoint options; they are ignored"
            );
            return Ok(None);
        }
    }
    CheckpointOptions::parse_from_bytes(&any.value)
        .map(Some)
        .map_err(|source| TaskError::Decode {
            what: "checkpoint options",
            type_url: any.type_url.clone(),
            source,
        })
}

/// What a pid is: an exec, by its id.
pub(super) fn process_details(exec_id: String) -> Result<Any, TaskError> {
    let details = ProcessDetails {
        exec_id,
        ..ProcessDetails::default()
    };
    let type_url = PROCESS_DETAILS.to_owned();
    match details.write_to_bytes() {
        Ok(value) => Ok(Any {
            type_url,
            value,
            ..Any::default()
        }),
        Err(source) => Err(TaskError::Decode {
            what: "process details",
            type_url,
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_checkpoint_options_are_none() {
        let any = |type_url: &str, value: Vec<u8>| Any {
            type_url: type_url.into(),
            value,
            ..Any::default()
        };
        assert!(checkpoint_options(&Any::new()).unwrap().is_none());
        assert!(
            checkpoint_options(&any("a.B", vec![0xff]))
                .unwrap()
                .is_none()
        );
        assert!(checkpoint_options(&any(CHECKPOINT_OPTIONS, vec![0xff])).is_err());
        let options = CheckpointOptions {
            exit: true,
            ..CheckpointOptions::default()
        };
        let bytes = options.write_to_bytes().unwrap();
        assert!(
            checkpoint_options(&any(CHECKPOINT_OPTIONS, bytes))
                .unwrap()
                .unwrap()
                .exit
        );
    }
}
