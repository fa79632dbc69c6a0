//! A checkpoint into a directory of plain CRIU images, as containerd itself asks for
//! (`ctr tasks checkpoint`, CRI `CheckpointContainer` without our hook).
//!
//! containerd unpacks the directory with a reader that knows regular files alone, so it stays
//! flat. The guarantees are those of the archive: a failed dump leaves the container running
//! and no file behind. containerd packs the images itself, so that they can't be encrypted: where
//! archives are, these are refused.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use kybernate_config::Settings;
use nix::sys::statvfs::statvfs;

use super::{
    Task,
    course::Course,
    dump::{LOG, Plan, STATS, dump},
    error::CheckpointError,
    facts,
    page_server::{PageImages, Pages, Received},
    phases::Phases,
    still::Still,
    stop::StopReason,
};
use crate::{container::Container, journal::Filled, spec::SpecFacts};

/// Bytes that are gathered before a write.
const BUFFER: usize = 1 << 20;
/// The shim's own directory for CRIU's log and statistics, in the bundle.
pub const WORK: &str = "criu-work";

/// Dumps `container` into the directory `task.path`.
pub async fn run(
    container: &Arc<Container>,
    task: &Task,
    settings: &Settings,
    course: &Course,
) -> Result<(), CheckpointError> {
    if !settings.checkpoint.encrypt_to.is_empty() && !settings.checkpoint.plain_unencrypted {
        return Err(CheckpointError::Unencrypted {
            id: container.id.clone(),
        });
    }
    let (init, freezer) = super::subject(container)?;
    preflight(&task.path, init, 0)?;
    let work = match task.work_path() {
        Some(path) => path.to_owned(),
        None => {
            let path = container.bundle.join(WORK);
            let mut private = DirBuilder::new();
            let made = private.recursive(true).mode(0o700).create(&path);
            made.map_err(host("create", &path))?;
            path
        }
    };
    let plan = Plan {
        images: task.path.clone(),
        work,
        leave_running: !task.exit(),
        tcp_established: task.open_tcp(),
    };
    let spec = SpecFacts::read_whole(&container.bundle)?;
    let injected = super::injected(container, init, &spec)?;
    super::prepare_criu(container, &injected).await?;
    let images = Directory(task.path.clone());
    let before = Filled::note(&task.path).map_err(host("list", &task.path))?;
    let _killed = course
        .stop
        .follow(container.killed().clone(), StopReason::Killed);
    let phases = &mut Phases::default();
    let still = Still::begin(
        container,
        &freezer,
        false,
        settings,
        course,
        phases,
        &|_| (),
    )
    .await?;
    let dumping = async {
        preflight(&task.path, init, still.gpu_memory())?;
        let dumped = dump(container, &plan, images, course).await?;
        if plan.leave_running {
            course.enter("thaw").await?;
        }
        Ok(dumped)
    };
    let finish = |received| complete(container, task, &plan, &received, &before);
    match dumping.await {
        Ok((received, _)) if plan.leave_running => {
            still.go_on(phases).await?;
            course.enter("sync").await?;
            finish(received)
        }
        Ok((received, _)) => {
            // The container has ended, so these images are all that there is of it: everything is
            // tried.
            let kept = course.journal.complete();
            let kept = kept.map_err(host("note the end of", &container.bundle));
            let finished = kept.and(still.end().await).and(finish(received));
            finished.map_err(|source| CheckpointError::Ended {
                id: container.id.clone(),
                path: task.path.clone(),
                source: Box::new(source),
            })
        }
        Err(error) => Err(still.go_on_after(error).await),
    }
}

/// Adds what CRIU has not written itself.
fn complete(
    container: &Container,
    task: &Task,
    plan: &Plan,
    received: &Received,
    before: &Filled,
) -> Result<(), CheckpointError> {
    make_private(before).map_err(host("make private the files in", &task.path))?;
    for (name, content) in &received.pagemaps {
        let path = task.path.join(name);
        create(&path)
            .and_then(|mut file| file.write_all(content))
            .map_err(host("write", &path))?;
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

/// Takes everybody's right to read from what CRIU has written: registers, maps, names. Pages never
/// had it.
fn make_private(before: &Filled) -> io::Result<()> {
    for entry in fs::read_dir(&before.directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && !before.before.contains(&entry.file_name()) {
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
                .open(entry.path())?;
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// A new file that is for root alone, whatever its directory is: it holds a container's memory.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Page images as files of one directory.
struct Directory(PathBuf);

impl PageImages for Directory {
    fn pages(&mut self, name: &str) -> io::Result<Box<dyn Pages + '_>> {
        let file = create(&self.0.join(name))?;
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
        let path = dir.path().join("pages-1.img");
        assert_eq!(fs::read(&path).unwrap(), content);
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn what_came_is_private_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let open = Permissions::from_mode(0o644);
        let write = |name: &str| {
            fs::write(path(name), "").unwrap();
            fs::set_permissions(path(name), open.clone()).unwrap();
        };
        write("mine");
        let before = Filled::note(dir.path()).unwrap();
        write("core-1.img");
        std::os::unix::fs::symlink("mine", path("link")).unwrap();
        make_private(&before).unwrap();
        let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode();
        assert_eq!(mode("mine") & 0o777, 0o644);
        assert_eq!(mode("core-1.img") & 0o777, 0o600);
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
