//! The node's own programs: run here, in another root, or in the namespaces of process 1.

use std::{
    fs::File,
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::Context as _;
use kybernate_config::profile::Root;
use nix::{
    sched::{CloneFlags, setns},
    unistd::{chroot, fchdir},
};

/// Name of the command that [`enter`] is; the installer calls itself by it.
pub const ENTER: &str = "enter-node";
/// Where a node's programs are, whatever the environment of a container says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin";

/// How the node's programs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// They are this machine's.
    Own,
    /// In the namespaces of process 1, from a container that shares the PID namespace.
    Entered,
    /// Not at all: the root is only a directory. Programs that only read may run in a chroot.
    Files,
}

/// A node.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its files.
    pub root: Root,
    /// Its programs.
    pub reach: Reach,
}

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Whether it ended with 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Host {
    /// Runs a command line in the node's shell.
    pub fn shell(&self, line: &str) -> io::Result<Said> {
        let mut command = match self.reach {
            Reach::Own => shell(line),
            Reach::Entered => {
                // The image of the installer has no other program than this one.
                let mut command = Command::new("/proc/self/exe");
                command.args([ENTER, line]).env("PATH", PATH);
                command
            }
            Reach::Files => {
                let mut command = Command::new("chroot");
                command.arg(self.root.path()).args(["/bin/sh", "-c", line]);
                command
            }
        };
        let output: Output = command.env("LC_ALL", "C").stdin(Stdio::null()).output()?;
        Ok(Said {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a program of the node that only reads; nothing where it is not there or can't run.
    pub fn ask(&self, program: &Path, args: &[&str]) -> Option<Said> {
        if !self.root.exists(program) {
            return None;
        }
        let mut line = quote(&program.display().to_string());
        for arg in args {
            line.push(' ');
            line.push_str(&quote(arg));
        }
        // A chroot may lack a shell, or this user the right to enter it.
        let said = self.shell(&line).ok()?;
        let unusable =
            self.reach == Reach::Files && !said.success && said.stderr.starts_with("chroot:");
        (!unusable).then_some(said)
    }
}

fn shell(line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]);
    command
}

/// Becomes a shell of the node, in the namespaces and under the root of process 1. Comes back
/// only where that is impossible; threads must not have been started.
pub fn enter(line: &str) -> anyhow::Result<()> {
    const LACKING: &str = "the installer needs the host's PID namespace, SYS_ADMIN, SYS_CHROOT and \
                           SYS_PTRACE, and no AppArmor profile that forbids it";
    let open = |name: &str| {
        let path = Path::new("/proc/1").join(name);
        File::open(&path).with_context(|| format!("cannot open {}: {LACKING}", path.display()))
    };
    let root = open("root")?;
    let namespaces = [
        ("ns/ipc", CloneFlags::CLONE_NEWIPC),
        ("ns/uts", CloneFlags::CLONE_NEWUTS),
        ("ns/net", CloneFlags::CLONE_NEWNET),
        // The last: what it takes away is needed for the others.
        ("ns/mnt", CloneFlags::CLONE_NEWNS),
    ];
    let opened = namespaces.map(|(name, kind)| (name, kind, open(name)));
    for (name, kind, file) in opened {
        setns(file?, kind).with_context(|| format!("cannot enter /proc/1/{name}: {LACKING}"))?;
    }
    fchdir(root)
        .and_then(|()| chroot("."))
        .with_context(|| format!("cannot enter the root of process 1: {LACKING}"))?;
    Err(shell(line).exec()).context("the node has no /bin/sh that can be run")
}

/// A word for a shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_programs_whole() {
        let host = Host {
            root: Root::new("/"),
            reach: Reach::Own,
        };
        let said = host
            .ask(Path::new("/bin/echo"), &["a b", "it's", "$HOME;`id`"])
            .unwrap();
        assert_eq!(said.stdout, "a b it's $HOME;`id`\n");
        assert!(host.ask(Path::new("/nonexistent/x"), &[]).is_none());
        assert!(!host.shell("exit 3").unwrap().success);
    }
}
