//! containerd, its CRI plugin, and the runtime handler of the class.

use std::path::Path;

use kybernate_config::names::RUNTIME_HANDLER;
use kybernate_hooks::{client::explain, connect::Connection, cri::v1 as cri};

use super::{
    Finding,
    config::{self, Handler},
    nri, probe,
};

/// Where containerd's config lies unless it was started with another.
const CONFIG: &str = "/etc/containerd/config.toml";

/// What containerd says about this node.
#[derive(Debug, Default)]
pub struct Node {
    /// The findings.
    pub findings: Vec<Finding>,
    /// The handler of the class, if it is registered.
    pub handler: Option<Handler>,
}

/// Asks the containerd at `socket`.
pub async fn ask(socket: &Path) -> Node {
    let mut node = Node::default();
    let mut major = 2;
    let status = match Connection::open(socket).await {
        Err(error) => {
            node.findings.push(Finding::fail(
                "containerd",
                error.to_string(),
                "start containerd, or name its socket with --socket",
            ));
            None
        }
        Ok(connection) => {
            let version = connection
                .version()
                .version(())
                .await
                .map(|a| a.into_inner().version);
            let version = version.map_err(|status| explain(&status));
            major = version
                .as_ref()
                .ok()
                .and_then(|v| probe::version(v))
                .map_or(2, |v| v.0);
            node.findings.push(judge_version(socket, version));
            let config = cri_config(&connection).await;
            if config.is_ok() {
                node.findings.push(nri::ask(&connection).await);
            }
            Some(config)
        }
    };
    let handler = match status {
        Some(Ok(text)) => config::from_status(&text, RUNTIME_HANDLER),
        unknown => {
            if let Some(Err(error)) = unknown {
                node.findings.push(Finding::warn(
                    "CRI",
                    error,
                    "see that containerd's CRI plugin is not disabled; without it only \
                     containers of `ctr` can be checkpointed",
                ));
            }
            std::fs::read_to_string(CONFIG)
                .map_err(|e| format!("{CONFIG}: {e}"))
                .and_then(|text| config::from_file(&text, RUNTIME_HANDLER))
        }
    };
    match handler {
        Ok(handler) => {
            let executable = |program: &str| probe::find(program).is_some();
            node.findings
                .extend(config::judge(major, &handler, executable));
            node.handler = Some(handler);
        }
        Err(found) => node.findings.push(Finding::fail(
            "runtime handler",
            found,
            config::registration(major, RUNTIME_HANDLER),
        )),
    }
    node
}

async fn cri_config(connection: &Connection) -> Result<String, String> {
    let answer = connection
        .cri()
        .status(cri::StatusRequest { verbose: true })
        .await
        .map_err(|status| format!("the CRI does not answer: {}", explain(&status)))?;
    answer
        .into_inner()
        .info
        .remove("config")
        .ok_or_else(|| "the CRI hides its config".to_owned())
}

fn judge_version(socket: &Path, version: Result<String, String>) -> Finding {
    const CHECK: &str = "containerd";
    let socket = socket.display();
    let version = match version {
        Ok(version) => version,
        Err(error) => {
            return Finding::fail(
                CHECK,
                format!("{socket}: {error}"),
                "see that the socket is containerd's, or name it with --socket",
            );
        }
    };
    let found = format!("{version} at {socket}");
    match probe::version(&version) {
        Some((2.., _) | (1, 7..)) => Finding::ok(CHECK, found),
        Some(_) => Finding::fail(CHECK, found, "upgrade to containerd 1.7 or later"),
        None => Finding::warn(CHECK, found, "its version can't be told; use 1.7 or later"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn containerd_is_served_from_1_7_on() {
        let level = |version: &str| judge_version(Path::new("/s"), Ok(version.into())).level;
        assert_eq!(level("1.7.24~ds1"), Level::Ok);
        assert_eq!(level("v2.4.0-beta.0"), Level::Ok);
        assert_eq!(level("1.6.33"), Level::Fail);
        assert_eq!(level("devel"), Level::Warn);
        assert_eq!(
            judge_version(Path::new("/s"), Err("no".into())).level,
            Level::Fail
        );
    }
}
