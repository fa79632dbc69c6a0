//! What keeps GPU containers from being checkpointed, taken out of their way.
//!
//! A pod says so with `gpu.kybernate.io: "true"`, or with a container's name behind a slash:
//!
//! ```text
//! mounts        binds of the driver's files and devices become private: CRIU gives up on one
//!               that shares its changes with the host
//! environment   NCCL keeps off memory that the CUDA driver can't checkpoint (peer access and
//!               NVLink multicast); what the container sets itself stays
//! devices       RDMA and GPUDirect Storage devices go: neither CRIU nor the driver saves what
//!               an open one holds, and libraries do without
//! ```
//!
//! It costs a job that spans GPUs speed, so nobody gets it who does not ask.

use crate::nri::api::{Container, ContainerAdjustment, KeyValue, LinuxDevice, Mount};

/// Set unless the container sets them.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("NCCL_CUMEM_ENABLE", "0"),
    ("NCCL_IB_DISABLE", "1"),
    ("NCCL_NVLS_ENABLE", "0"),
    ("NCCL_P2P_DISABLE", "1"),
];

/// What the files of NVIDIA's driver and its container tools begin with.
const DRIVER_NAMES: [&str; 5] = [
    "nvidia",
    "libnvidia",
    "libcuda",
    "libnvcuvid",
    "libcudadebugger",
];

/// Devices whose open descriptors nobody can save.
const DEVICES: [&str; 3] = ["/dev/gdrdrv", "/dev/nvidia-fs", "/dev/infiniband/"];

/// Options that say how changes of mounts spread.
const PROPAGATION: [&str; 8] = [
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
];

/// Adds to the adjustment what the container needs.
pub fn make_checkpointable(container: &Container, adjustment: &mut ContainerAdjustment) {
    adjustment
        .mounts
        .extend(container.mounts.iter().filter_map(made_private));
    let is_set = |name: &str| {
        let prefix = format!("{name}=");
        container.env.iter().any(|entry| entry.starts_with(&prefix))
    };
    adjustment.env.extend(
        ENVIRONMENT
            .into_iter()
            .filter(|(name, _)| !is_set(name))
            .map(|(name, value)| KeyValue {
                key: name.into(),
                value: value.into(),
                ..KeyValue::default()
            }),
    );
    let removed: Vec<_> = container
        .linux
        .devices
        .iter()
        .filter(|device| DEVICES.iter().any(|name| device.path.starts_with(name)))
        .map(|device| LinuxDevice {
            path: format!("-{}", device.path),
            ..LinuxDevice::default()
        })
        .collect();
    if !removed.is_empty() {
        adjustment.linux.mut_or_insert_default().devices = removed;
    }
}

/// The mount without propagation, if it is one of the driver's and has any.
fn made_private(mount: &Mount) -> Option<Mount> {
    let is_bind = mount.options.iter().any(|o| o == "bind" || o == "rbind");
    let is_driver = |path: &str| {
        path.split('/')
            .any(|part| DRIVER_NAMES.iter().any(|name| part.starts_with(name)))
    };
    let is_private = mount.options.iter().any(|option| option == "rprivate");
    if !is_bind || is_private || !(is_driver(&mount.source) || is_driver(&mount.destination)) {
        return None;
    }
    let mut private = mount.clone();
    private
        .options
        .retain(|option| !PROPAGATION.contains(&option.as_str()));
    private.options.push("rprivate".into());
    Some(private)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nri::api::LinuxContainer;

    fn mount(source: &str, destination: &str, options: &[&str]) -> Mount {
        Mount {
            source: source.into(),
            destination: destination.into(),
            options: options.iter().map(|option| (*option).into()).collect(),
            ..Mount::default()
        }
    }

    fn adjusted(container: &Container) -> ContainerAdjustment {
        let mut adjustment = ContainerAdjustment::new();
        make_checkpointable(container, &mut adjustment);
        adjustment
    }

    #[test]
    fn the_drivers_binds_become_private_and_no_others() {
        let library = "/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05";
        let firmware = "/usr/lib/firmware/nvidia/580.95.05/gsp_tu10x.bin";
        let container = Container {
            mounts: vec![
                mount(library, library, &["ro", "rbind", "rslave"]),
                mount(firmware, firmware, &["ro", "bind"]),
                mount(
                    "/run/nvidia-persistenced/socket",
                    "/s",
                    &["rbind", "rprivate"],
                ),
                mount("/srv", "/data", &["rbind", "rshared"]),
                mount("tmpfs", "/proc/driver/nvidia", &["nosuid"]),
            ],
            ..Container::default()
        };
        let mounts = adjusted(&container).mounts;
        assert_eq!(
            mounts,
            [
                mount(library, library, &["ro", "rbind", "rprivate"]),
                mount(firmware, firmware, &["ro", "bind", "rprivate"]),
            ]
        );
    }

    #[test]
    fn what_the_container_sets_itself_stays() {
        let container = Container {
            env: vec!["NCCL_P2P_DISABLE=0".into(), "NCCL_IB_DISABLE_X=1".into()],
            ..Container::default()
        };
        let env = adjusted(&container).env;
        let names: Vec<_> = env.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(
            names,
            ["NCCL_CUMEM_ENABLE", "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE"]
        );
    }

    #[test]
    fn devices_that_nobody_can_save_go_and_the_gpus_stay() {
        let device = |path: &str| LinuxDevice {
            path: path.into(),
            ..LinuxDevice::default()
        };
        let container = Container {
            linux: Some(LinuxContainer {
                devices: [
                    "/dev/nvidia0",
                    "/dev/nvidia-uvm",
                    "/dev/nvidia-fs3",
                    "/dev/gdrdrv",
                    "/dev/infiniband/uverbs0",
                ]
                .map(device)
                .to_vec(),
                ..LinuxContainer::default()
            })
            .into(),
            ..Container::default()
        };
        let devices = &adjusted(&container).linux.devices;
        assert_eq!(
            *devices,
            [
                "-/dev/nvidia-fs3",
                "-/dev/gdrdrv",
                "-/dev/infiniband/uverbs0"
            ]
            .map(device)
        );
        assert!(adjusted(&Container::default()).linux.is_none());
    }
}
