//! From nothing to a checkpoint, and back to nothing.

use anyhow::{Context, Result, ensure};
use kybernate_hooks::cri::v1::CheckpointContainerRequest;
use kybernate_integration::{Handler, workload::Workload};

use crate::node::{KUBELET_RESTARTED, Node, PACKAGE};

/// Where a newer package is unpacked.
const NEWER: &str = "/tmp/newer";
const ARCHIVE: &str = "/var/lib/kybernate/counter.tar.zst";

pub fn and_back(node: &Node) -> Result<()> {
    let counter = Workload::counter();
    let stock = node.wait(node.pod(Handler::Runc).start())?;
    let old = node.wait(counter.start(&stock))?;
    let before = node.tree()?;

    let dry = node.install(&["--dry-run"])?.ok()?;
    ensure!(
        dry.contains("+++ b") && dry.contains("runtimes.kybernate]"),
        "{dry}"
    );
    ensure!(node.tree()? == before, "a dry run has changed something");

    let said = node.install(&[])?.ok()?;
    ensure!(said.contains("Kybernate is installed"), "{said}");
    ensure!(!said.contains("not checked"), "{said}");
    ensure!(!said.contains("not restarted"), "{said}");
    node.run(&["kybernate", "status"])?.ok()?;
    let config = node.run(&["kybernate", "config", "show"])?.ok()?;
    ensure!(config.contains("node profile"), "{config}");

    let pid = node.containerd()?;
    let again = node.install(&[])?.ok()?;
    ensure!(again.contains("Nothing had to be changed"), "{again}");
    ensure!(
        node.containerd()? == pid,
        "containerd was restarted for nothing"
    );

    let pod = node.wait(node.pod(Handler::Kybernate).start())?;
    let first = node.wait(counter.start(&pod))?;
    let at = node.wait(counter.is_well(&first, 3))?;
    let name = pod.config.metadata.clone().unwrap_or_default().name;
    let container = first_name(&first)?;
    let target = format!("lab/{name}/{container}");
    node.run(&["kybernate", "checkpoint", &target, "-o", ARCHIVE])?
        .ok()?;
    node.run(&["kybernate", "verify", ARCHIVE])?.ok()?;
    node.wait(counter.is_well(&first, at))?;

    let second = node.wait(node.pod(Handler::Kybernate).start())?;
    let id = node
        .run(&["kybernate", "restore", ARCHIVE, "--pod", &second.id])?
        .ok()?;
    ensure!(id.trim().len() == 64, "{id}");

    let refused = node.run(&["kybernate", "uninstall"])?.refused()?;
    ensure!(refused.contains(&format!("lab/{name}")), "{refused}");
    node.wait(pod.remove())?;
    node.wait(second.remove())?;
    node.lab.exec(&["rm", ARCHIVE])?;
    let said = node.install(&["--uninstall"])?.ok()?;
    ensure!(said.contains("uninstalled"), "{said}");
    is_as_it_was(&before, &node.tree()?)?;
    ensure!(!node.lab.path("/usr/local/bin/kybernate").exists());
    ensure!(node.lab.path(PACKAGE).exists());

    let seen = counter.count(&old)?;
    node.wait(counter.is_well(&old, seen))?;
    let refused = node.wait(node.pod(Handler::Kybernate).start());
    ensure!(refused.is_err(), "containerd still has the runtime");
    node.wait(stock.remove())
}

pub fn with_hooks(node: &Node) -> Result<()> {
    let before = node.tree()?;
    node.install(&["--with-hooks"])?.ok()?;
    let kubelet = node.kubelet()?;
    let endpoint = "--container-runtime-endpoint=unix:///run/kybernate/cri.sock\n";
    ensure!(kubelet.ends_with(endpoint), "{kubelet}");
    ensure!(node.lab.path(KUBELET_RESTARTED).exists());
    let shown = node.run(&["kybernate", "config", "show"])?.ok()?;
    ensure!(shown.contains(&node.checkpoints()), "{shown}");

    // As kubelet does from now on.
    node.lab.route_cri(Some("/run/kybernate/cri.sock"));
    let pod = node.wait(node.pod(Handler::Kybernate).start())?;
    let counter = Workload::counter();
    let container = node.wait(counter.start(&pod))?;
    let at = node.wait(counter.is_well(&container, 3))?;
    node.lab.exec(&["mkdir", "-p", &node.checkpoints()])?;
    let archive = format!("{}/checkpoint.tar", node.checkpoints());
    node.wait(async {
        let request = CheckpointContainerRequest {
            container_id: container.id.clone(),
            location: archive.clone(),
            timeout: 60,
        };
        node.lab.cri().checkpoint_container(request).await
    })?;
    node.run(&["kybernate", "verify", &archive])?.ok()?;
    node.wait(counter.is_well(&container, at))?;
    node.wait(pod.remove())?;
    node.lab.route_cri(None);
    node.lab.exec(&["rm", "-r", &node.checkpoints()])?;

    node.lab.exec(&["rm", KUBELET_RESTARTED])?;
    node.install(&["--uninstall"])?.ok()?;
    ensure!(node.lab.path(KUBELET_RESTARTED).exists());
    ensure!(node.lab.pids_of("kybernate-cri-hooks")?.is_empty());
    is_as_it_was(&before, &node.tree()?)?;
    Ok(())
}

pub fn upgrade(node: &Node) -> Result<()> {
    let before = node.tree()?;
    let nothing = node
        .run(&["/opt/package/kybernate", "upgrade"])?
        .refused()?;
    ensure!(nothing.contains("nothing is installed"), "{nothing}");
    node.install(&[])?.ok()?;
    let counter = Workload::counter();
    let pod = node.wait(node.pod(Handler::Kybernate).start())?;
    let old = node.wait(counter.start(&pod))?;
    let at = node.wait(counter.is_well(&old, 3))?;
    // A newer version: what stands behind a program's end does not matter to it.
    node.lab.exec(&[
        "sh",
        "-c",
        &format!(
            "cp -r {PACKAGE} {NEWER} && cd {NEWER} && for program in kybernate kybernate-nri \
             containerd-shim-kybernate-v1; do echo newer >>$program; done"
        ),
    ])?;
    let upgrade = format!("{NEWER}/kybernate");
    let same = |program: &str| {
        let newer = format!("{NEWER}/{program}");
        let installed = format!("/usr/local/bin/{program}");
        let compared = node.run(&["cmp", "-s", &newer, &installed])?;
        anyhow::Ok(compared.code == 0)
    };

    // containerd does not come back: the older version is there again, whole.
    let installed = node.tree()?;
    node.write("/run/restart-fails", "", 0o644)?;
    let failed = node.run(&[&upgrade, "upgrade"])?.refused()?;
    ensure!(failed.contains("put back"), "{failed}");
    is_as_it_was(&installed, &node.tree()?).context("the older version")?;

    node.run(&[&upgrade, "upgrade"])?.ok()?;
    ensure!(same("kybernate")? && same("containerd-shim-kybernate-v1")?);
    node.run(&["kybernate", "status"])?.ok()?;
    // The pod keeps the shim it has, and that still takes checkpoints.
    node.wait(counter.is_well(&old, at))?;
    let target = format!("{}/{}", pod.full_name(), first_name(&old)?);
    node.run(&["kybernate", "checkpoint", &target, "-o", ARCHIVE])?
        .ok()?;
    let second = node.wait(node.pod(Handler::Kybernate).start())?;
    node.run(&["kybernate", "restore", ARCHIVE, "--pod", &second.id])?
        .ok()?;
    node.wait(pod.remove())?;
    node.wait(second.remove())?;
    node.lab.exec(&["rm", "-r", ARCHIVE, NEWER])?;
    node.install(&["--uninstall"])?.ok()?;
    is_as_it_was(&before, &node.tree()?)?;
    Ok(())
}

fn first_name(container: &kybernate_integration::Container) -> Result<String> {
    let name = container.config.metadata.clone().unwrap_or_default().name;
    ensure!(!name.is_empty());
    Ok(name)
}

/// Compares two of [`Node::tree`].
pub fn is_as_it_was(before: &str, after: &str) -> Result<()> {
    ensure!(
        after == before,
        "the node is not as it was:\n{}",
        difference(before, after)
    );
    Ok(())
}

/// The lines that only one of both has.
fn difference(a: &str, b: &str) -> String {
    let only = |a: &str, b: &str, sign: &str| {
        let there: std::collections::HashSet<&str> = b.lines().collect();
        let lines = a.lines().filter(|line| !there.contains(line));
        lines
            .map(|line| format!("{sign}{line}\n"))
            .collect::<String>()
    };
    only(a, b, "-") + &only(b, a, "+")
}
