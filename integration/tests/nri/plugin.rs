//! The plugin as a process in a lab, and what it has done to containers.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::containerd::containers::GetContainerRequest;
use kybernate_integration::{Lab, eventually, lab, skip};

const PROGRAM: &str = "kybernate-nri";
const LOG: &str = "/var/log/kybernate-nri.log";
const LIMIT: Duration = Duration::from_secs(10);

/// A running plugin; killed when dropped.
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

/// The OCI spec that containerd has stored for a container, byte for byte.
pub async fn spec(lab: &Lab, id: &str) -> Result<String> {
    let request = GetContainerRequest { id: id.into() };
    let response = lab.containers().get(request).await?.into_inner();
    let spec = response
        .container
        .and_then(|container| container.spec)
        .context("a container without a spec")?;
    String::from_utf8(spec.value).context("a spec that is not text")
}

/// The annotations of a container's spec.
pub async fn annotations(lab: &Lab, id: &str) -> Result<BTreeMap<String, String>> {
    let spec: serde_json::Value = serde_json::from_str(&spec(lab, id).await?)?;
    serde_json::from_value(spec["annotations"].clone()).context("annotations of a spec")
}

/// Whether the plugin has prepared the container.
pub async fn is_prepared(lab: &Lab, id: &str) -> Result<bool> {
    let annotations = annotations(lab, id).await?;
    Ok(annotations.contains_key(kybernate_config::names::MANAGED))
}

/// The plugin in containerd's plugin directory, launched by a containerd that starts anew.
/// Taken away when dropped; the next containerd does without.
pub struct Launched {
    lab: Arc<Lab>,
}

impl Launched {
    const NAME: &str = "10-kybernate";

    /// Puts program and configuration where containerd looks, and restarts it.
    pub async fn start(lab: &Arc<Lab>, config: &str) -> Result<Self> {
        let program = lab::binaries().join(PROGRAM);
        if !program.is_file() {
            return skip(format!("{PROGRAM} is not built: run `make build`"));
        }
        let launched = Self { lab: lab.clone() };
        for path in launched.files() {
            fs::create_dir_all(path.parent().context("a path without a directory")?)?;
        }
        let [to, conf] = launched.files();
        fs::copy(&program, to)?;
        fs::write(conf, config)?;
        lab.kill_containerd().await?;
        lab.start_containerd().await?;
        let running = lab.pids_of(Self::NAME)?;
        ensure!(running.len() == 1, "containerd has launched {running:?}");
        Ok(launched)
    }

    /// The program and its configuration.
    fn files(&self) -> [PathBuf; 2] {
        [
            self.lab.path(format!("/opt/nri/plugins/{}", Self::NAME)),
            self.lab
                .path(format!("/etc/nri/conf.d/{}.conf", Self::NAME)),
        ]
    }

    /// Ends containerd, and with it the plugin, and starts it without.
    pub async fn end(self) -> Result<()> {
        let lab = self.lab.clone();
        drop(self);
        lab.kill_containerd().await?;
        eventually("end of the launched plugin", LIMIT, || async {
            Ok(lab.pids_of(Self::NAME)?.is_empty().then_some(()))
        })
        .await?;
        lab.start_containerd().await
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        for path in self.files() {
            let _ = fs::remove_file(path);
        }
    }
}
