//! Whether containerd and its CRI are back, and which pods are of the class.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use kybernate_config::names::RUNTIME_HANDLER;
use kybernate_hooks::{client::explain, connect::Connection, cri::v1 as cri};

use crate::doctor::from_status;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Whether something answers at the socket.
pub async fn answers(socket: &Path) -> bool {
    has_handler(socket).await.is_ok()
}

/// Waits until the CRI is there and has our handler, or has it no more.
pub async fn wait(socket: &Path, wanted: bool, limit: Duration) -> Result<(), String> {
    let until = Instant::now() + limit;
    loop {
        let found = has_handler(socket).await;
        if found == Ok(wanted) {
            return Ok(());
        }
        if Instant::now() >= until {
            let what = match found {
                Ok(true) => "the CRI still has the runtime".to_owned(),
                Ok(false) => "the CRI does not have the runtime".to_owned(),
                Err(why) => why,
            };
            return Err(format!("after {} s {what}", limit.as_secs()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Pods of the class that are not stopped, as namespace/name.
pub async fn class_pods(socket: &Path) -> Result<Vec<String>, String> {
    let connection = Connection::open(socket).await.map_err(|e| e.to_string())?;
    let request = cri::ListPodSandboxRequest {
        filter: Some(cri::PodSandboxFilter {
            state: Some(cri::PodSandboxStateValue {
                state: cri::PodSandboxState::SandboxReady.into(),
            }),
            ..Default::default()
        }),
    };
    let answer = connection.cri().list_pod_sandbox(request).await;
    let pods = answer
        .map_err(|status| explain(&status))?
        .into_inner()
        .items;
    Ok(pods
        .into_iter()
        .filter(|pod| pod.runtime_handler == RUNTIME_HANDLER)
        .map(|pod| {
            let metadata = pod.metadata.unwrap_or_default();
            format!("{}/{}", metadata.namespace, metadata.name)
        })
        .collect())
}

/// Whether the CRI has our handler.
pub async fn has_handler(socket: &Path) -> Result<bool, String> {
    let connection = Connection::open(socket).await.map_err(|e| e.to_string())?;
    let answer = connection
        .cri()
        .status(cri::StatusRequest { verbose: true })
        .await
        .map_err(|status| format!("the CRI does not answer: {}", explain(&status)))?
        .into_inner();
    let config = answer
        .info
        .get("config")
        .ok_or("the CRI hides its config")?;
    Ok(from_status(config, RUNTIME_HANDLER).is_ok())
}
