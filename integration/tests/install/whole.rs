//! From nothing to a checkpoint, and back to nothing.

use anyhow::{Result, ensure};
use kybernate_integration::{Handler, workload::Workload};

use crate::node::{Node, PACKAGE};

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
    let after = node.tree()?;
    ensure!(
        after == before,
        "the node is not as it was:\n{}",
        difference(&before, &after)
    );
    ensure!(!node.lab.path("/usr/local/bin/kybernate").exists());
    ensure!(node.lab.path(PACKAGE).exists());

    let seen = counter.count(&old)?;
    node.wait(counter.is_well(&old, seen))?;
    let refused = node.wait(node.pod(Handler::Kybernate).start());
    ensure!(refused.is_err(), "containerd still has the runtime");
    node.wait(stock.remove())
}

fn first_name(container: &kybernate_integration::Container) -> Result<String> {
    let name = container.config.metadata.clone().unwrap_or_default().name;
    ensure!(!name.is_empty());
    Ok(name)
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
