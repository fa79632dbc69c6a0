//! `kybernate inspect`: what an archive says of itself. It is not verified here.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    io::Write as _,
};

use kybernate_config::size;
use kybernate_oci::{
    archive::Envelope,
    manifest::{Gpu, Manifest, Process},
};
use serde::Serialize;

use super::open;
use crate::{
    args::Inspect,
    display::{clean, columns, millis, ratio},
    output::{Output, json},
};

mod sealed;

/// The archive as a file.
#[derive(Debug, Serialize)]
struct Facts {
    path: String,
    archive_bytes: u64,
    content_bytes: u64,
    manifest_sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_to: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    archive: Facts,
    manifest: &'a Manifest,
}

/// Prints the manifest, as tables or as JSON.
pub fn run(args: &Inspect) -> anyhow::Result<()> {
    let archive = match (open(&args.file, &args.keys), args.keys.identity.as_slice()) {
        // What it says to everybody, unless somebody wants more.
        (Err(error), []) if sealed::wants_key(&error) => match Envelope::read(&args.file) {
            Ok(Some(envelope)) => return sealed::show(args, &envelope, &error),
            _ => return Err(error),
        },
        (opened, _) => opened?,
    };
    let facts = Facts {
        path: args.file.display().to_string(),
        archive_bytes: archive.archive_bytes(),
        content_bytes: archive.content_bytes(),
        manifest_sha256: archive.manifest_sha256().to_owned(),
        encrypted_to: archive.envelope().map(|envelope| envelope.recipients),
    };
    if args.json {
        json(&Report {
            archive: facts,
            manifest: archive.manifest(),
        })?;
        return Ok(());
    }
    let mut out = Output::lock();
    out.write_all(render(&facts, archive.manifest()).as_bytes())?;
    out.flush()?;
    Ok(())
}

fn render(facts: &Facts, manifest: &Manifest) -> String {
    let mut text = columns(&identity(facts, manifest));
    if !manifest.processes.is_empty() {
        let _ = write!(text, "\nProcesses\n{}", columns(&tree(&manifest.processes)));
    }
    let _ = write!(text, "\nContent\n{}", columns(&content(manifest)));
    if !manifest.mounts.is_empty() {
        let rows: Vec<_> = manifest
            .mounts
            .iter()
            .map(|mount| {
                [
                    format!("  {}", clean(&mount.destination)),
                    clean(&mount.kind),
                    if mount.read_only { "ro" } else { "rw" }.to_owned(),
                    clean(&mount.source),
                    if mount.injected { "by a hook" } else { "" }.to_owned(),
                ]
            })
            .collect();
        let _ = write!(text, "\nMounts\n{}", columns(&rows));
    }
    if let Some(gpu) = &manifest.gpu {
        text.push_str("\nGPU\n");
        text.push_str(&columns(&gpu_rows(gpu)));
    }
    if !manifest.phases.is_empty() {
        let rows: Vec<_> = manifest
            .phases
            .iter()
            .map(|phase| [format!("  {}", clean(&phase.name)), millis(phase.ms)])
            .collect();
        let _ = write!(text, "\nPhases\n{}", columns(&rows));
    }
    if !manifest.warnings.is_empty() {
        text.push_str("\nWarnings\n");
        for warning in &manifest.warnings {
            let _ = writeln!(text, "  {}", clean(warning));
        }
    }
    text
}

fn gpu_rows(gpu: &Gpu) -> Vec<[String; 3]> {
    let driver = ["  driver".into(), clean(&gpu.driver), String::new()];
    let devices = gpu.devices.iter().map(|device| {
        [
            format!("  {}", clean(&device.name)),
            clean(&device.uuid),
            format!("{} in use", size::display(device.used_bytes)),
        ]
    });
    let processes = gpu.processes.iter().map(|process| {
        [
            format!("  process {}", process.pid),
            String::new(),
            size::display(process.used_bytes),
        ]
    });
    std::iter::once(driver)
        .chain(devices)
        .chain(processes)
        .collect()
}

fn identity(facts: &Facts, manifest: &Manifest) -> Vec<[String; 2]> {
    let container = &manifest.container;
    let host = &manifest.host;
    let mut rows = vec![
        ["Archive".into(), clean(&facts.path)],
        [
            "Manifest".into(),
            format!(
                "sha256:{}, format {}",
                facts.manifest_sha256, manifest.format
            ),
        ],
        [
            "Created".into(),
            format!("{} by {}", clean(&manifest.created), clean(&manifest.tool)),
        ],
    ];
    if let Some(readers) = facts.encrypted_to {
        rows.insert(1, ["Encrypted".into(), sealed::readers(readers)]);
    }
    if let Some(requester) = &manifest.requester {
        rows.push(["Requested".into(), clean(requester)]);
    }
    rows.push([
        "Container".into(),
        format!(
            "{} ({} in {}), was {}",
            clean(&container.name),
            clean(&container.id),
            clean(&container.namespace),
            clean(&container.state)
        ),
    ]);
    if let Some(pod) = &container.pod {
        rows.push([
            "Pod".into(),
            format!(
                "{}/{} (uid {})",
                clean(&pod.namespace),
                clean(&pod.name),
                clean(&pod.uid)
            ),
        ]);
    }
    if let Some(image) = &container.image {
        rows.push(["Image".into(), clean(image)]);
    }
    if let Some(parent) = &manifest.parent {
        rows.push([
            "Restored from".into(),
            format!("manifest sha256:{}", clean(parent)),
        ]);
    }
    rows.push([
        "Host".into(),
        format!(
            "{}, {}, Linux {}, cgroup {}",
            clean(&host.hostname),
            clean(&host.arch),
            clean(&host.kernel),
            clean(&host.cgroup)
        ),
    ]);
    rows.push([
        "Tools".into(),
        format!("{}, CRIU {}", clean(&host.runc), clean(&host.criu)),
    ]);
    rows.push([
        "Size".into(),
        format!(
            "{}, {} of {} uncompressed",
            size::display(facts.archive_bytes),
            ratio(facts.archive_bytes, facts.content_bytes),
            size::display(facts.content_bytes)
        ),
    ]);
    rows.push(["Paused for".into(), millis(manifest.pause_ms)]);
    rows
}

/// The processes as a tree, children under their parents in pid order.
fn tree(processes: &[Process]) -> Vec<[String; 4]> {
    let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
    let known: HashSet<u32> = processes.iter().map(|process| process.pid).collect();
    for process in processes {
        // A parent that is not in the list, or the process itself, would hide it.
        let parent = match process.parent {
            parent if parent != process.pid && known.contains(&parent) => parent,
            _ => 0,
        };
        children.entry(parent).or_default().push(process);
    }
    children
        .values_mut()
        .for_each(|of_parent| of_parent.sort_by_key(|process| process.pid));
    let mut rows = vec![[
        "  PID".into(),
        "THREADS".into(),
        "RESIDENT".into(),
        "NAME".into(),
    ]];
    // Taking a list out of the map makes the walk end even where parents form a circle; what
    // only a circle leads to comes last.
    let mut stack: Vec<(&Process, usize)> = Vec::new();
    let mut next = children.remove(&0);
    loop {
        stack.extend(next.into_iter().flatten().rev().map(|process| (process, 0)));
        while let Some((process, depth)) = stack.pop() {
            rows.push([
                format!("  {}", process.pid),
                process.threads.to_string(),
                size::display(process.resident_bytes),
                format!("{}{}", "  ".repeat(depth.min(32)), clean(&process.name)),
            ]);
            let below = children.remove(&process.pid).unwrap_or_default();
            stack.extend(below.into_iter().rev().map(|process| (process, depth + 1)));
        }
        match children.pop_first() {
            Some((_, rest)) => next = Some(rest),
            None => return rows,
        }
    }
}

/// Sizes by kind.
fn content(manifest: &Manifest) -> Vec<[String; 3]> {
    const KINDS: [&str; 5] = [
        "memory pages",
        "other process state",
        "file system changes",
        "shared memory",
        "records and logs",
    ];
    let mut sums = [(0_u64, 0_u64); KINDS.len()];
    for entry in manifest
        .entries
        .iter()
        .filter(|entry| !entry.name.ends_with('/'))
    {
        let (files, bytes) = &mut sums[kind(&entry.name)];
        *files += 1;
        *bytes += entry.size;
    }
    KINDS
        .iter()
        .zip(sums)
        .filter(|(_, (files, _))| *files > 0)
        .map(|(name, (files, bytes))| {
            let files = if files == 1 {
                "1 file".into()
            } else {
                format!("{files} files")
            };
            [format!("  {name}"), size::display(bytes), files]
        })
        .collect()
}

fn kind(name: &str) -> usize {
    match name {
        "rootfs-diff.tar" | "deleted.files" => 2,
        "devshm-checkpoint.tar" => 3,
        _ => match name.strip_prefix("checkpoint/") {
            Some(image) if image.starts_with("pages-") => 0,
            Some(_) => 1,
            None => 4,
        },
    }
}

#[cfg(test)]
mod tests {
    use kybernate_oci::manifest::{Container, Entry, Host, Mount, Phase, Pod};

    use super::*;

    fn process(pid: u32, parent: u32, name: &str) -> Process {
        Process {
            pid,
            parent,
            name: name.into(),
            threads: 1,
            resident_bytes: 4 << 20,
        }
    }

    fn manifest() -> Manifest {
        let entry = |name: &str, size| Entry {
            name: name.into(),
            size,
            ..Default::default()
        };
        Manifest {
            format: 1,
            created: "2026-01-02T03:04:05.678Z".into(),
            tool: "kybernate 0.1.0".into(),
            container: Container {
                id: "c0ffee".into(),
                name: "web".into(),
                namespace: "k8s.io".into(),
                pod: Some(Pod {
                    name: "web-0".into(),
                    namespace: "shop".into(),
                    uid: "u1".into(),
                    sandbox: "5a".into(),
                }),
                image: Some("example.org/web:1".into()),
                state: "running".into(),
            },
            host: Host {
                hostname: "node1".into(),
                arch: "x86_64".into(),
                kernel: "6.18.0".into(),
                cpu_features: Vec::new(),
                cgroup: "v2".into(),
                runc: "runc version 1.3.6".into(),
                criu: "4.2.1".into(),
            },
            processes: vec![
                process(1, 0, "sh"),
                process(7, 1, "we\u{1b}[0mb"),
                process(9, 7, "x"),
                process(8, 1, "y"),
            ],
            mounts: vec![
                Mount {
                    destination: "/".into(),
                    kind: "overlay".into(),
                    source: "overlay".into(),
                    read_only: false,
                    injected: false,
                },
                Mount {
                    destination: "/etc/hosts".into(),
                    kind: "ext4".into(),
                    source: "/dev/sda1".into(),
                    read_only: true,
                    injected: false,
                },
            ],
            gpu: Some(Gpu {
                driver: "580.159".into(),
                ..Gpu::default()
            }),
            phases: vec![
                Phase {
                    name: "freeze".into(),
                    ms: 2,
                },
                Phase {
                    name: "dump".into(),
                    ms: 1234,
                },
            ],
            pause_ms: 1300,
            requester: Some("kybernate checkpoint, by root".into()),
            parent: Some("77".into()),
            warnings: vec!["container.log was asked for and is not there".into()],
            entries: vec![
                entry("checkpoint/", 0),
                entry("checkpoint/pages-1.img", 12 << 20),
                entry("checkpoint/core-1.img", 900),
                entry("rootfs-diff.tar", 2048),
                entry("spec.dump", 100),
                entry("config.dump", 100),
            ],
            ..Manifest::default()
        }
    }

    #[test]
    fn the_report_is_this() {
        let facts = Facts {
            path: "/b/a.zst".into(),
            archive_bytes: 6 << 20,
            content_bytes: 12 << 20,
            manifest_sha256: "5e5e".into(),
            encrypted_to: None,
        };
        assert_eq!(
            render(&facts, &manifest()),
            include_str!("../../tests/inspect.txt")
        );
    }

    #[test]
    fn every_process_is_shown_once_whatever_the_parents() {
        let odd = [
            process(1, 1, "a"),
            process(2, 3, "b"),
            process(3, 2, "c"),
            process(4, 99, "d"),
        ];
        let rows = tree(&odd);
        let pids: Vec<_> = rows
            .iter()
            .skip(1)
            .map(|row| row[0].trim().to_owned())
            .collect();
        // 2 and 3 are each other's parents.
        assert_eq!(pids, ["1", "4", "3", "2"]);
    }
    #[test]
    fn many_processes_are_shown_at_once() {
        let count = 100_000;
        let many: Vec<_> = (1..=count).map(|pid| process(pid, count, "a")).collect();
        let begun = std::time::Instant::now();
        assert_eq!(tree(&many).len(), many.len() + 1);
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }
}
