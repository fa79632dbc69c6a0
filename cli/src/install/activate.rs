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
    let hooks = host.root.exists(Path::new(hooks::UNITS).join(hooks::UNIT));
    services(node, kinds, hooks)
        .iter()
        .try_for_each(|line| run(line))
}

/// The commands that bring the hooks and kubelet to changed files. `hooks` says whether their unit
/// is there now.
fn services(node: &Node, kinds: &[Kind], hooks: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let units = kinds
        .iter()
        .any(|kind| matches!(kind, Kind::Unit | Kind::Kubelet));
    if units {
        lines.push("systemctl daemon-reload".to_owned());
    }
    let stale = kinds
        .iter()
        .any(|kind| matches!(kind, Kind::Program | Kind::Settings | Kind::Unit));
    if hooks && stale {
        // Only where it runs: what is enabled below starts it, and leaves one that runs alone.
        lines.push(format!("systemctl try-restart {}", hooks::UNIT));
    }
    if hooks && units {
        lines.push(format!("systemctl enable --now {}", hooks::UNIT));
    }
    if kinds.contains(&Kind::Kubelet) {
        lines.push(node.kubelet_restart.clone());
    }
    if units && !hooks {
        // kubelet has left it; what `enable` has made goes along.
        lines.push(format!(
            "systemctl stop {socket} {unit}; rm -f {units}/multi-user.target.wants/{unit} \
             {units}/sockets.target.wants/{socket}; systemctl daemon-reload",
            unit = hooks::UNIT,
            socket = hooks::SOCKET_UNIT,
            units = hooks::UNITS,
        ));
    }
    lines
}

/// Waits for something that talks to containerd.
pub fn wait_for<T>(future: impl Future<Output = T>) -> Result<T, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(future))
        .map_err(|e| format!("cannot wait for containerd: {e}"))
}

#[cfg(test)]
mod tests {
    use kybernate_config::profile::{Root, all, find, resolve};

    use super::*;

    #[test]
    fn hooks_that_run_are_restarted_whatever_else_changes() {
        let all = all();
        let profile = find(&all, "kubeadm").unwrap();
        let node = resolve(profile, &Root::new("/nonexistent"), &[])
            .unwrap()
            .node;
        let lines = |kinds: &[Kind], hooks| services(&node, kinds, hooks).join("\n");
        let restart = format!("systemctl try-restart {}", hooks::UNIT);
        let enable = format!("systemctl enable --now {}", hooks::UNIT);
        for with in [Kind::Program, Kind::Settings] {
            assert_eq!(lines(&[with], true), restart);
            assert_eq!(
                lines(&[with, Kind::Kubelet], true),
                format!("systemctl daemon-reload\n{restart}\n{enable}\nsystemctl restart kubelet")
            );
            assert_eq!(lines(&[with], false), "");
        }
        assert_eq!(
            lines(&[Kind::Unit], true),
            format!("systemctl daemon-reload\n{restart}\n{enable}")
        );
        assert_eq!(
            lines(&[Kind::Kubelet], true),
            format!("systemctl daemon-reload\n{enable}\nsystemctl restart kubelet")
        );
        assert_eq!(lines(&[Kind::Containerd, Kind::Plugin], true), "");
        let gone = lines(&[Kind::Program, Kind::Unit, Kind::Kubelet], false);
        assert!(
            !gone.contains("try-restart") && gone.contains("systemctl stop"),
            "{gone}"
        );
    }
}
