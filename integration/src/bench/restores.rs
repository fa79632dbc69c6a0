//! From an archive to a running program: ours, and the steps one by one.

use std::{fs, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use kybernate_config::names;

use super::median;
use crate::{
    Container, Handler, Lab,
    checkpoint::{Archive, run, take},
    cri::PodBuilder,
    workload::Workload,
};

/// Seconds from an archive to the running program.
#[derive(Debug, Clone)]
pub struct Restores {
    /// MiB of memory of the program.
    pub mib: u32,
    /// CreateContainer with the annotation, which verifies and unpacks.
    pub create: Vec<f64>,
    /// StartContainer of it, which restores the processes.
    pub start: Vec<f64>,
    /// `zstd -d | tar x` into memory.
    pub unpack: Vec<f64>,
    /// `runc restore` from there.
    pub runc: Vec<f64>,
}

impl Restores {
    /// Our median.
    pub fn ours(&self) -> f64 {
        sums(&self.create, &self.start)
    }

    /// The median of both steps together.
    pub fn in_sequence(&self) -> f64 {
        sums(&self.unpack, &self.runc)
    }
}

fn sums(first: &[f64], second: &[f64]) -> f64 {
    median(first.iter().zip(second).map(|(a, b)| a + b).collect())
}

/// Restores a program of `mib` MiB in both ways in turn.
pub async fn measure(lab: &Arc<Lab>, mib: u32, rounds: usize) -> Result<Restores> {
    let work = Workload::memory_checked(mib, 0);
    let pod = PodBuilder::new(lab, Handler::Kybernate).start().await?;
    let container = work.start(&pod).await?;
    let archive = take(&container, &[]).await?;
    let bundle = Bundle::keep(lab, &container)?;
    container.stop(0).await?;
    container.remove().await?;

    let mut restores = Restores {
        mib,
        create: Vec::new(),
        start: Vec::new(),
        unpack: Vec::new(),
        runc: Vec::new(),
    };
    for round in 0..rounds {
        eprint!("\rrestore of {mib} MiB: round {} of {rounds}", round + 1);
        let (unpack, runc) = bundle.restore(&archive).await?;
        restores.unpack.push(unpack);
        restores.runc.push(runc);

        let attempt = u32::try_from(round)? + 1;
        let begun = Instant::now();
        let restored = work
            .container(&pod)
            .attempt(attempt)
            .annotation(names::RESTORE_FROM, &archive.path)
            .create()
            .await?;
        restores.create.push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        restored.start().await?;
        restores.start.push(begun.elapsed().as_secs_f64());
        work.is_well(&restored, 0).await?;
        restored.stop(0).await?;
        restored.remove().await?;
    }
    eprintln!();
    bundle.remove()?;
    pod.remove().await?;
    fs::remove_file(archive.file())?;
    Ok(restores)
}

/// A copy of a container's bundle that outlives the container.
struct Bundle<'a> {
    lab: &'a Arc<Lab>,
    path: String,
    id: String,
}

impl<'a> Bundle<'a> {
    fn keep(lab: &'a Arc<Lab>, container: &Container) -> Result<Self> {
        let id = format!("bench-{}", &container.id[..12]);
        let path = format!("/run/{id}");
        let original = format!(
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}",
            container.id
        );
        let root = format!("{path}/rootfs");
        lab.exec(&["mkdir", "-p", &root])?;
        lab.exec(&["cp", &format!("{original}/criu.conf"), &path])?;
        let spec = fs::read_to_string(lab.path(format!("{original}/config.json")))?;
        let spec = spec.replace(
            &format!("{original}/criu.conf"),
            &format!("{path}/criu.conf"),
        );
        fs::write(lab.path(format!("{path}/config.json")), spec)?;
        lab.exec(&["mount", "--bind", &format!("{original}/rootfs"), &root])?;
        Ok(Self { lab, path, id })
    }

    /// Seconds for unpacking the archive into memory, and for `runc restore` from there.
    async fn restore(&self, archive: &Archive) -> Result<(f64, f64)> {
        let Self { path, id, .. } = self;
        let from = &archive.path;
        let script = format!("mkdir {path}/images && zstd -dcq {from} | tar -x -C {path}/images");
        let unpacked = run(self.lab, &["sh", "-c", &script]).await?;
        let unpack = unpacked.took.as_secs_f64();
        unpacked.ok().context("unpacking")?;
        let script = format!(
            "exec runc restore --detach --image-path {path}/images/checkpoint --work-path {path} \
             --bundle {path} {id} </dev/null >{path}/out 2>&1"
        );
        let restored = run(self.lab, &["sh", "-c", &script]).await?;
        let runc = restored.took.as_secs_f64();
        restored.ok().with_context(|| {
            let read = |name: &str| fs::read_to_string(self.lab.path(format!("{path}/{name}")));
            let log = read("restore.log").unwrap_or_default();
            let errors: Vec<_> = log.lines().filter(|line| line.contains("Error")).collect();
            format!(
                "runc restore: {} {errors:?}",
                read("out").unwrap_or_default()
            )
        })?;
        run(self.lab, &["runc", "delete", "--force", id])
            .await?
            .ok()?;
        run(self.lab, &["rm", "-r", &format!("{path}/images")])
            .await?
            .ok()?;
        Ok((unpack, runc))
    }

    fn remove(&self) -> Result<()> {
        self.lab
            .exec(&["umount", &format!("{}/rootfs", self.path)])?;
        self.lab.exec(&["rm", "-r", &self.path])?;
        Ok(())
    }
}
