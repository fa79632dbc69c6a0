//! Which GPUs of this node take over the state of an archive's GPUs.

use std::collections::BTreeSet;

use kybernate_cuda::protocol::{Device, Facts};
use kybernate_oci::manifest::{Gpu, GpuDevice};

use super::{GpuError, preflight::branch};

/// Chooses a GPU for each of the archive's and returns old and new UUIDs, empty when all are the
/// same. `minors` are those that the container gets; none means all of the node's.
pub fn choose(
    archive: &Gpu,
    here: &Facts,
    minors: &BTreeSet<u32>,
) -> Result<Vec<(String, String)>, GpuError> {
    if branch(&archive.driver) != branch(&here.driver) {
        return Err(GpuError::Unsupported {
            what: format!(
                "the archive's GPU state was saved by driver {}, this node has {}",
                archive.driver, here.driver
            ),
            remedy: "restore on a node with the same driver branch",
        });
    }
    let mut free: Vec<&Device> = here
        .devices
        .iter()
        .filter(|device| minors.is_empty() || minors.contains(&device.minor))
        .collect();
    if let Some(device) = free.iter().find(|device| device.mig) {
        return Err(GpuError::Unsupported {
            what: format!("GPU {} of this node is partitioned (MIG)", device.minor),
            remedy: "restore onto a whole GPU",
        });
    }
    // A GPU that is here is the best for its own state.
    let own = |old: &GpuDevice| free.iter().position(|device| device.uuid == old.uuid);
    let mut chosen: Vec<Option<&Device>> = archive
        .devices
        .iter()
        .map(|old| own(old).map(|index| free[index]))
        .collect();
    free.retain(|device| {
        !chosen
            .iter()
            .flatten()
            .any(|taken| taken.uuid == device.uuid)
    });
    for (old, new) in archive.devices.iter().zip(&mut chosen) {
        if new.is_none() {
            let like = |device: &&Device| device.name == old.name;
            let index = free
                .iter()
                .position(like)
                .ok_or_else(|| none_like(old, here))?;
            *new = Some(free.remove(index));
        }
    }
    let pairs: Vec<(&GpuDevice, &Device)> = archive
        .devices
        .iter()
        .zip(chosen.into_iter().flatten())
        .collect();
    for (old, new) in &pairs {
        if new.memory_free < old.used_bytes {
            return Err(GpuError::Memory {
                needed: old.used_bytes,
                place: format!("GPU {} ({})", new.minor, new.uuid),
                free: new.memory_free,
                remedy: "end what else uses the GPU, or restore onto another",
            });
        }
    }
    if pairs.iter().all(|(old, new)| old.uuid == new.uuid) {
        return Ok(Vec::new());
    }
    Ok(pairs
        .into_iter()
        .map(|(old, new)| (old.uuid.clone(), new.uuid.clone()))
        .collect())
}

fn none_like(old: &GpuDevice, here: &Facts) -> GpuError {
    let found: Vec<_> = here.devices.iter().map(|d| d.name.as_str()).collect();
    let found = if found.is_empty() {
        "none".into()
    } else {
        found.join(", ")
    };
    GpuError::Unsupported {
        what: format!(
            "the archive needs a GPU of the model {} (compute capability {}), and of this node's \
             GPUs ({found}) the container has none left of it",
            old.name, old.capability
        ),
        remedy: "restore on a node with the same GPU model, as many as the archive used",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(uuid: &str, name: &str, minor: u32) -> Device {
        Device {
            uuid: uuid.into(),
            name: name.into(),
            minor,
            memory_free: 100,
            ..Device::default()
        }
    }

    fn archive(uuids: &[&str]) -> Gpu {
        let device = |uuid: &&str| GpuDevice {
            uuid: (*uuid).into(),
            name: "H100".into(),
            used_bytes: 50,
            ..GpuDevice::default()
        };
        Gpu {
            driver: "580.1".into(),
            devices: uuids.iter().map(device).collect(),
            ..Gpu::default()
        }
    }

    fn here(devices: Vec<Device>) -> Facts {
        Facts {
            driver: "580.9".into(),
            devices,
            ..Facts::default()
        }
    }

    fn refusal(archive: &Gpu, here: &Facts) -> String {
        choose(archive, here, &BTreeSet::new())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_same_gpus_need_no_map() {
        let here = here(vec![device("b", "H100", 1), device("a", "H100", 0)]);
        let map = choose(&archive(&["a", "b"]), &here, &BTreeSet::new()).unwrap();
        assert!(map.is_empty());
    }

    #[test]
    fn others_of_the_model_take_over_and_own_ones_stay() {
        let here = here(vec![
            device("x", "H100", 0),
            device("b", "H100", 1),
            device("y", "H200", 2),
        ]);
        let map = choose(&archive(&["a", "b"]), &here, &BTreeSet::new()).unwrap();
        let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        assert_eq!(map, [pair("a", "x"), pair("b", "b")]);
    }

    #[test]
    fn a_gpu_that_the_container_does_not_get_is_none() {
        let here = here(vec![device("a", "H100", 0), device("x", "H100", 1)]);
        let map = choose(&archive(&["a"]), &here, &BTreeSet::from([1])).unwrap();
        assert_eq!(map, [("a".to_owned(), "x".to_owned())]);
    }

    #[test]
    fn refusals_name_what_does_not_fit() {
        let other = here(vec![device("x", "H200", 0)]);
        assert!(refusal(&archive(&["a"]), &other).contains("H200"));
        let few = here(vec![device("a", "H100", 0)]);
        assert!(refusal(&archive(&["a", "b"]), &few).contains("as many"));
        let old = Facts {
            driver: "575.1".into(),
            ..few.clone()
        };
        assert!(refusal(&archive(&["a"]), &old).contains("575.1"));
        let mut full = few;
        full.devices[0].memory_free = 10;
        assert!(refusal(&archive(&["a"]), &full).contains("spare"));
    }
}
