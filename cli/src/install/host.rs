//! The node's own programs: run here, in another root, or in the namespaces of process 1.

use std::{
    io,
    path::Path,
    process::{Command, Output, Stdio},
};

use kybernate_config::profile::Root;

/// How the node's programs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// They are this machine's.
    Own,
    /// In the namespaces of process 1, from a container that shares the PID namespace.
    Nsenter,
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
            Reach::Own => Command::new("/bin/sh"),
            Reach::Nsenter => {
                let mut command = Command::new("nsenter");
                command.args([
                    "--target", "1", "--mount", "--uts", "--ipc", "--net", "--pid",
                ]);
                command.args(["--", "/bin/sh"]);
                command
            }
            Reach::Files => {
                let mut command = Command::new("chroot");
                command.arg(self.root.path()).arg("/bin/sh");
                command
            }
        };
        let output: Output = command
            .args(["-c", line])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()?;
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
