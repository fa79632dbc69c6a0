//! A checkpoint into a directory of plain CRIU images, as containerd itself asks for
//! (`ctr tasks checkpoint`, CRI `CheckpointContainer` without our hook).
//!
//! containerd unpacks the directory with a reader that knows regular files alone, so it stays
//! flat. The guarantees are those of the archive: a failed dump leaves the container running
//! and no file behind.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kybernate_config::Settings;
use nix::sys::statvfs::statvfs;

use super::{
    Task,
    dump::{LOG, Plan, STATS, dump},
    error::CheckpointError,
    facts,
    freezer::Freezer,
    page_server::{PageImages, Pages},
    phases::Phases,
    still::Still,
    stop::{Stop, StopReason},
};
use crate::container::Container;

/// Bytes that are gathered before a write.
const BUFFER: usize = 1 << 20;
/// A pause this recent was containerd's own, made for the checkpoint that follows it. When
/// that call ends early containerd can't resume any more: its context is used up.
const CONTAINERD_PAUSE: Duration = Duration::from_secs(10);

/// Dumps `container` into the directory `task.path`.
pub async fn run(
    container: &Arc<Container>,
    task: &Task,
    settings: &Settings,
    stop: &Stop,
) -> Result<(), CheckpointError> {
    let (init, freezer) = super::subject(container)?;
    preflight(&task.path, init, 0)?;
    let before = Leftovers::note(&task.path)?;
    let work = match task.work_path() {
        Some(path) => path.to_owned(),
        None => {
            let path = container.bundle.join("criu-work");
            fs::create_dir_all(&path).map_err(host("create", &path))?;
            path
        }
    };
    let plan = Plan {
        images: task.path.clone(),
        work,
        leave_running: !task.exit(),
        tcp_established: task.open_tcp(),
    };
    super::prepare_criu(container).await?;
    let images = Directory(task.path.clone());
    let _killed = stop.follow(container.killed().clone(), StopReason::Killed);
    let phases = &mut Phases::default();
    let dumped = async {
        let still =
            Still::begin(container, &freezer, false, settings, stop, phases, &|_| ()).await?;
        let dumping = async {
            preflight(&task.path, init, still.gpu_memory())?;
            dump(container, &plan, images, stop).await
        };
        match dumping.await {
            Ok(dumped) if plan.leave_running => still.go_on(phases).await.map(|()| dumped),
            Ok(dumped) => still.end().await.map(|()| dumped),
            Err(error) => Err(still.go_on_after(error).await),
        }
    };
    let (received, _) = match dumped.await {
        Ok(done) => done,
        Err(error) => {
            before.restore();
            thaw_for_containerd(container, &freezer, stop);
            return Err(error);
        }
    };
    for (name, content) in &received.pagemaps {
        let path = task.path.join(name);
        fs::write(&path, content).map_err(host("write", &path))?;
    }
    if task.work_path().is_none() {
        hand_to_containerd(container, &plan.work);
        // Nothing of it is needed any more, and the next dump starts afresh.
        let _ = fs::remove_dir_all(&plan.work);
    }
    Ok(())
}

/// Refuses a dump that the directory's file system can't hold, before anything is frozen:
/// containerd's own directory lies in `/tmp`, which may be memory. `more` bytes are not in the
/// processes' memory yet.
fn preflight(path: &Path, init: u32, more: u64) -> Result<(), CheckpointError> {
    let processes = facts::processes(init);
    let resident: u64 = processes.iter().map(|p| p.resident_bytes).sum();
    let needed = resident + more;
    let stat = statvfs(path).map_err(|e| host("inspect", path)(e.into()))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < needed {
        return Err(CheckpointError::Space {
            path: path.into(),
            free,
            needed,
        });
    }
    Ok(())
}

/// Where containerd wants CRIU's statistics when it names no work directory, which is so for
/// a runtime type of our own: the CRI's directory of the container. containerd 2.1.0 to 2.1.8,
/// 2.2.0 to 2.2.4 and 2.3.0 to 2.3.1 fail without; later ones archive what lies in
/// `ctrd-checkpoint`.
fn hand_to_containerd(container: &Container, work: &Path) {
    for dir in cri_directories(&container.bundle, &container.id) {
        for name in [STATS, LOG] {
            if let Err(error) = fs::copy(work.join(name), dir.join(name)) {
                tracing::debug!(%error, dir = %dir.display(), name, "not handed to containerd");
            }
        }
    }
}

/// The CRI's directories of a container. `<bundle>/work` links to
/// `<root>/io.containerd.runtime.v2.task/<namespace>/<id>`; the CRI's state lies beside it.
fn cri_directories(bundle: &Path, id: &str) -> Vec<PathBuf> {
    let Ok(work) = fs::read_link(bundle.join("work")) else {
        return Vec::new();
    };
    let Some(root) = work.ancestors().nth(3) else {
        return Vec::new();
    };
    let container = root.join("io.containerd.grpc.v1.cri/containers").join(id);
    [container.join("ctrd-checkpoint"), container]
        .into_iter()
        .filter(|d| d.is_dir())
        .collect()
}

/// containerd pauses a container before it asks for its checkpoint and resumes it afterwards
/// in the context of the same call. When that call is over, nobody else will.
fn thaw_for_containerd(container: &Container, freezer: &Freezer, stop: &Stop) {
    let paused = container.paused_for();
    if stop.reason().is_none() || paused.is_none_or(|paused| paused >= CONTAINERD_PAUSE) {
        return;
    }
    match freezer.thaw() {
        Ok(()) => container.note_resumed(),
        Err(error) => tracing::error!(id = %container.id, %error, "cannot thaw"),
    }
}

/// What was in a directory before, so that a failure can put it back.
struct Leftovers {
    directory: PathBuf,
    names: Vec<std::ffi::OsString>,
}

impl Leftovers {
    fn note(directory: &Path) -> Result<Self, CheckpointError> {
        let names = fs::read_dir(directory)
            .and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect())
            .map_err(host("list", directory))?;
        Ok(Self {
            directory: directory.into(),
            names,
        })
    }

    fn restore(self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries
            .flatten()
            .filter(|e| !self.names.contains(&e.file_name()))
        {
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove");
            }
        }
    }
}

fn host<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> CheckpointError + use<'a> {
    move |source| CheckpointError::Host {
        action,
        path: path.into(),
        source,
    }
}

/// Page images as files of one directory.
struct Directory(PathBuf);

impl PageImages for Directory {
    fn pages(&mut self, name: &str) -> io::Result<Box<dyn Pages + '_>> {
        let file = File::create_new(self.0.join(name))?;
        Ok(Box::new(FilePages {
            file,
            buffer: vec![0; BUFFER],
            used: 0,
        }))
    }
}

struct FilePages {
    file: File,
    buffer: Vec<u8>,
    used: usize,
}

impl FilePages {
    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer[..self.used])?;
        self.used = 0;
        Ok(())
    }
}

impl Pages for FilePages {
    fn space(&mut self) -> io::Result<&mut [u8]> {
        if self.used == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.used..])
    }

    fn filled(&mut self, n: usize) {
        self.used += n;
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_arrive_in_their_file_across_buffers() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..BUFFER + 5000).map(|n| (n % 251) as u8).collect();
        let mut images = Directory(dir.path().into());
        let mut pages = images.pages("pages-1.img").unwrap();
        let mut rest = &content[..];
        while !rest.is_empty() {
            let space = pages.space().unwrap();
            let n = space.len().min(rest.len());
            space[..n].copy_from_slice(&rest[..n]);
            pages.filled(n);
            rest = &rest[n..];
        }
        pages.finish().unwrap();
        assert!(
            images.pages("pages-1.img").is_err(),
            "an image is never overwritten"
        );
        assert_eq!(fs::read(dir.path().join("pages-1.img")).unwrap(), content);
    }

    #[test]
    fn a_failure_removes_only_what_it_left() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "").unwrap();
        let before = Leftovers::note(dir.path()).unwrap();
        fs::write(dir.path().join("core-1.img"), "").unwrap();
        before.restore();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "mine");
    }

    #[test]
    fn the_cri_directories_are_found_from_the_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let (root, bundle) = (dir.path().join("lib"), dir.path().join("bundle"));
        let container = root.join("io.containerd.grpc.v1.cri/containers/abc");
        fs::create_dir_all(container.join("ctrd-checkpoint")).unwrap();
        fs::create_dir_all(&bundle).unwrap();
        let task = root.join("io.containerd.runtime.v2.task/k8s.io/abc");
        std::os::unix::fs::symlink(task, bundle.join("work")).unwrap();
        assert_eq!(
            cri_directories(&bundle, "abc"),
            [container.join("ctrd-checkpoint"), container.clone()]
        );
        assert!(cri_directories(&bundle, "other").is_empty());
    }
}
