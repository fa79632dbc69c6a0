//! Restarting what uses changed files, and waiting until it is back.

use std::{path::Path, time::Duration};

use kybernate_config::profile::Node;

use super::{hooks, host::Host, ready, receipt::Kind};

/// Whether containerd has to read its configuration anew.
pub fn needs_restart(kinds: &[Kind]) -> bool {
    kinds
        .iter()
        .any(|kind| matches!(kind, Kind::Containerd | Kind::Plugin))
}

/// Restarts what uses changed files, and waits until it is back. `installed` says whether the
/// runtime should be there then.
pub fn activate(
    host: &Host,
    node: &Node,
    kinds: &[Kind],
    installed: bool,
    patience: Duration,
) -> Result<(), String> {
    let run = |line: &str| {
        let said = host
            .shell(line)
            .map_err(|e| format!("cannot run `{line}`: {e}"))?;
        match said.success {
            true => Ok(()),
            false => Err(format!("`{line}` failed: {}", said.stderr.trim())),
        }
    };
    if needs_restart(kinds) {
        run(&node.containerd_restart)?;
        let socket = host
            .root
            .target(&node.containerd_socket)
            .map_err(|e| e.to_string())?;
        wait_for(ready::wait(&socket, installed, patience))
            .flatten()
            .map_err(|why| format!("containerd did not come back as it should: {why}"))?;
    }
    let unit_exists = host.root.exists(Path::new(hooks::UNITS).join(hooks::UNIT));
    let services = kinds
        .iter()
        .any(|kind| matches!(kind, Kind::Unit | Kind::Kubelet));
    if services {
        run("systemctl daemon-reload")?;
    }
    if services && unit_exists {
        run(&format!("systemctl enable --now {}", hooks::UNIT))?;
    } else if unit_exists && kinds.contains(&Kind::Program) {
        run(&format!("systemctl try-restart {}", hooks::UNIT))?;
    }
    if kinds.contains(&Kind::Kubelet) {
        run(&node.kubelet_restart)?;
    }
    if services && !unit_exists {
        // kubelet has left it; what `enable` has made goes along.
        run(&format!(
            "systemctl stop {socket} {unit}; rm -f {units}/multi-user.target.wants/{unit} \
             {units}/sockets.target.wants/{socket}; systemctl daemon-reload",
            unit = hooks::UNIT,
            socket = hooks::SOCKET_UNIT,
            units = hooks::UNITS,
        ))?;
    }
    Ok(())
}

/// Waits for something that talks to containerd.
pub fn wait_for<T>(future: impl Future<Output = T>) -> Result<T, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(future))
        .map_err(|e| format!("cannot wait for containerd: {e}"))
}
