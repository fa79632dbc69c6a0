//! What goes wrong leaves the old state or the new one.

use anyhow::{Result, ensure};
use kybernate_integration::Handler;

use crate::node::Node;

pub fn broken_config(node: &Node) -> Result<()> {
    let path = node.config();
    let text = std::fs::read_to_string(node.lab.path(&path))?;
    // Fine as TOML; only containerd knows that this is a table.
    let broken = text.replacen("[debug]\n", "[debug]\naddress = 3\n", 1);
    ensure!(broken != text, "{text}");
    node.write(&path, &broken, 0o644)?;
    let (before, pid) = (node.tree()?, node.containerd()?);
    let said = node.install(&[])?.refused()?;
    ensure!(
        said.contains("containerd would not accept") || said.contains("does not accept"),
        "{said}"
    );
    ensure!(node.tree()? == before, "something was changed");
    ensure!(node.containerd()? == pid, "containerd was restarted");
    Ok(())
}

pub fn restart_fails(node: &Node) -> Result<()> {
    let before = node.tree()?;
    node.write("/run/restart-fails", "", 0o644)?;
    let said = node.install(&[])?.refused()?;
    ensure!(
        said.contains("Job failed.") && said.contains("put back"),
        "{said}"
    );
    ensure!(node.tree()? == before, "not everything was put back");
    ensure!(node.wait(node.pod(Handler::Kybernate).start()).is_err());
    let pod = node.wait(node.pod(Handler::Runc).start())?;
    node.wait(pod.remove())
}

pub fn killed_while_restarting(node: &Node) -> Result<()> {
    let before = node.tree()?;
    node.write("/run/restart-kills", "", 0o644)?;
    let killed = node.install(&[])?;
    ensure!(
        killed.code != 0,
        "the installer was not killed: {}",
        killed.stdout
    );
    let status = node.run(&["/opt/package/kybernate", "status"])?;
    ensure!(status.stdout.contains("interrupted"), "{}", status.stdout);
    // The next run undoes it and goes on.
    let said = node.install(&[])?.ok()?;
    ensure!(
        said.contains("undone first") && said.contains("is installed"),
        "{said}"
    );
    let pod = node.wait(node.pod(Handler::Kybernate).start())?;
    node.wait(pod.remove())?;
    node.write("/run/restart-kills", "", 0o644)?;
    ensure!(node.install(&["--uninstall"])?.code != 0);
    node.run(&["/opt/package/kybernate", "uninstall"])?.ok()?;
    ensure!(node.tree()? == before, "the node is not as it was");
    Ok(())
}

pub fn full_disk(node: &Node) -> Result<()> {
    // The programs' directory is on a file system that is too small for them.
    node.lab.exec(&["mkdir", "/small"])?;
    node.lab
        .exec(&["mount", "-t", "tmpfs", "-o", "size=1m", "small", "/small"])?;
    let (before, pid) = (node.tree()?, node.containerd()?);
    let said = node.install(&["--node", "bin_dir=/small/bin"])?.refused()?;
    ensure!(
        said.contains("No space left") && said.contains("nothing has been changed"),
        "{said}"
    );
    ensure!(node.tree()? == before, "something was changed");
    ensure!(node.lab.exec(&["ls", "-A", "/small"])?.is_empty());
    ensure!(node.containerd()? == pid, "containerd was restarted");
    node.lab.exec(&["umount", "/small"])?;
    Ok(())
}
