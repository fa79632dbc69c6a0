//! Containers that use the double of a GPU (`doubles/cuda.h`), and the faults it can be given.
//!
//! Nothing here is a GPU, and nothing here says how a real one behaves: that is what `gpu/` is for.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::Result;
use kybernate_hooks::cri::v1::Device;

use crate::{Container, Lab, Pod, cri::ContainerBuilder, workload::Workload};

/// Where the double keeps device memory and its faults.
const DEVICES: &str = "/run/kybernate-double";
/// The device file of the one GPU, in containers.
const GPU: &str = "/dev/nvidia0";

/// The container of a workload, with the double's GPU.
pub fn container(work: &Workload, pod: &Pod, lab: &Lab) -> Result<ContainerBuilder> {
    let node = format!("{DEVICES}/nvidia0");
    lab.exec(&["mkdir", "-p", DEVICES])?;
    if !lab.path(&node).exists() {
        // The null device: opening it is all that the double does.
        lab.exec(&["mknod", "-m", "666", &node, "c", "1", "3"])?;
    }
    Ok(work.container(pod).mount(DEVICES, DEVICES).edit(|config| {
        config.devices.push(Device {
            container_path: GPU.into(),
            host_path: node,
            permissions: "rwm".into(),
        });
    }))
}

/// Starts such a container and waits until it counts.
pub async fn start(work: &Workload, pod: &Pod, lab: &Lab) -> Result<Container> {
    let container = container(work, pod, lab)?.start().await?;
    work.is_well(&container, 0).await?;
    Ok(container)
}

/// What is wrong with the double, until this is dropped.
#[derive(Debug)]
pub struct Faults(PathBuf);

impl Faults {
    /// Words of `doubles/cuda.c`, one a line.
    pub fn new(lab: &Arc<Lab>, words: &str) -> Result<Self> {
        let file = lab.path(format!("{DEVICES}/faults"));
        fs::write(&file, words)?;
        Ok(Self(file))
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
