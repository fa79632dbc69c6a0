//! `kybernate-nri` as a process in a lab, and the node's settings that it reads.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{Lab, eventually, lab, skip};

const PROGRAM: &str = "kybernate-nri";
const LOG: &str = "/var/log/kybernate-nri.log";
const LIMIT: Duration = Duration::from_secs(10);

/// A running plugin; killed when dropped.
#[derive(Debug)]
pub struct Plugin {
    lab: Arc<Lab>,
    child: Child,
}

impl Plugin {
    /// Starts the plugin, its log anew, and waits until the runtime has taken it in.
    pub async fn start(lab: &Arc<Lab>) -> Result<Self> {
        if !lab::binaries().join(PROGRAM).is_file() {
            return skip(format!("{PROGRAM} is not built: run `make build`"));
        }
        let plugin = Self::spawn(lab)?;
        plugin.in_service(1).await?;
        Ok(plugin)
    }

    /// Starts the plugin and does not wait.
    pub fn spawn(lab: &Arc<Lab>) -> Result<Self> {
        let log = File::create(lab.path(LOG))?;
        // As a child of a shell: nsenter stops itself when its own child is stopped.
        let child = lab
            .command("sh")
            .args(["-c", &format!("{PROGRAM} & wait $!")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot run nsenter")?;
        Ok(Self {
            lab: lab.clone(),
            child,
        })
    }

    /// Waits until the runtime has taken it in so many times.
    pub async fn in_service(&self, times: usize) -> Result<()> {
        let what = format!("plugin in service, time {times}");
        eventually(&what, LIMIT, || async {
            Ok((self.log()?.matches("in service").count() >= times).then_some(()))
        })
        .await
        .with_context(|| self.log().unwrap_or_default())
    }

    /// Its pid in the lab.
    pub fn pid(&self) -> Result<u32> {
        let pids = self.lab.pids_of(PROGRAM)?;
        pids.first().copied().context("the plugin does not run")
    }

    /// What it has written since its start.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.lab.path(LOG))?)
    }

    /// Sends a signal to it.
    pub fn signal(&self, name: &str) -> Result<()> {
        for pid in self.lab.pids_of(PROGRAM)? {
            self.lab.kill(name, pid)?;
        }
        Ok(())
    }

    /// Ends it with a signal and waits until it is gone; returns its exit code, if it has one.
    pub async fn end(mut self, signal: &str) -> Result<Option<i32>> {
        self.signal(signal)?;
        let status = eventually("end of the plugin", LIMIT, || {
            let ended = self.child.try_wait();
            async move { Ok(ended?) }
        })
        .await?;
        Ok(status.code())
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // It may be on its way between the shell and itself.
        for _ in 0..100 {
            let _ = self.signal("KILL");
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The node's settings file in a lab; removed when dropped.
#[derive(Debug)]
pub struct NodeSettings(PathBuf);

impl NodeSettings {
    /// Writes the file. Shims read it for every container, the plugin when it starts.
    pub fn write(lab: &Lab, text: &str) -> Result<Self> {
        let path = lab.path(kybernate_config::settings::DEFAULT_PATH);
        fs::create_dir_all(path.parent().context("a path without a directory")?)?;
        fs::write(&path, text)?;
        Ok(Self(path))
    }
}

impl Drop for NodeSettings {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
