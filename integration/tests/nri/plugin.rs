//! What the plugin has done to containers, and the plugin launched by containerd.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_hooks::containerd::containers::GetContainerRequest;
pub use kybernate_integration::plugin::{NodeSettings, Plugin};
use kybernate_integration::{Lab, eventually, lab, skip};

const PROGRAM: &str = "kybernate-nri";
const LIMIT: Duration = Duration::from_secs(10);

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
