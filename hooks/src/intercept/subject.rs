//! Whose container a request is about.

use tonic::Code;

use crate::{client::CheckpointError, connect::Connection, cri::v1 as cri};

/// The runtime handler of the pod that a container belongs to, and the container's whole id;
/// `None` for a container that the CRI does not know, or that is one of several.
pub(super) async fn handler_of(
    connection: &Connection,
    id: &str,
) -> Result<Option<(String, String)>, CheckpointError> {
    let found = connection
        .containers(id)
        .await
        .map_err(CheckpointError::call("CRI ListContainers"))?;
    let [container] = found.as_slice() else {
        return Ok(None);
    };
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: container.pod_sandbox_id.clone(),
        verbose: false,
    };
    let answer = match connection.cri().pod_sandbox_status(request).await {
        Ok(answer) => answer.into_inner(),
        // Removed since.
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        Err(status) => return Err(CheckpointError::call("CRI PodSandboxStatus")(status)),
    };
    let handler = answer.status.unwrap_or_default().runtime_handler;
    Ok(Some((handler, container.id.clone())))
}
