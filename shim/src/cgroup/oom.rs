//! Notices that a container ran out of memory.
//!
//! Both versions count OOM kills: `oom_kill` in `memory.oom_control` (v1) and in
//! `memory.events` (v2). A change of the count is one event. When to look is told by an
//! eventfd registered through `cgroup.event_control` (v1) or by inotify (v2); and once more
//! before a container's exit is published, so that the event always comes first.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use containerd_shim_protos::events::task::TaskOOM;
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::inotify,
};
use tokio::{io::unix::AsyncFd, task::JoinHandle};

use super::{Cgroup, read};
use crate::{events::Events, sys};

/// Pauses between looks at the count after a notice.
const RECHECKS: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];

/// Watches until it is dropped.
#[derive(Debug)]
pub struct OomWatch {
    counter: Arc<Counter>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Counter {
    file: PathBuf,
    id: String,
    events: Events,
    seen: AtomicU64,
}

impl OomWatch {
    /// Starts to watch.
    pub fn start(cgroup: Arc<Cgroup>, id: &str, events: Events) -> io::Result<Self> {
        let (file, notice) = match &*cgroup {
            Cgroup::V1(paths) => {
                let memory = paths.get("memory").ok_or(io::ErrorKind::NotFound)?;
                let file = memory.join("memory.oom_control");
                let notice = register_eventfd(memory, &file)?;
                (file, notice)
            }
            Cgroup::V2(path) => {
                let file = path.join("memory.events");
                let notice =
                    inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
                inotify::add_watch(&notice, &file, inotify::WatchFlags::MODIFY)?;
                (file, notice)
            }
        };
        let seen = AtomicU64::new(read::pairs(&file).get("oom_kill"));
        let counter = Arc::new(Counter {
            file,
            id: id.into(),
            events,
            seen,
        });
        let notice = sys::watch(notice)?;
        let task = tokio::spawn(follow(notice, Arc::clone(&counter)));
        Ok(Self { counter, task })
    }

    /// Looks now.
    pub fn check(&self) {
        self.counter.check();
    }
}

impl Drop for OomWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Counter {
    /// Publishes what is new, and says whether something was.
    fn check(&self) -> bool {
        let kills = read::pairs(&self.file).get("oom_kill");
        let new = self.seen.fetch_max(kills, Ordering::AcqRel) < kills;
        if new {
            self.publish();
        }
        new
    }

    /// On v1 the notice comes before the kill is counted, and before Linux 4.13 none is.
    async fn check_soon(&self) {
        if self.file.exists() && !read::pairs(&self.file).has("oom_kill") {
            self.publish();
            return;
        }
        for pause in RECHECKS {
            if self.check() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
        self.check();
    }

    fn publish(&self) {
        let container_id = self.id.clone();
        self.events.send(&TaskOOM {
            container_id,
            ..TaskOOM::default()
        });
    }
}

async fn follow(notice: AsyncFd<OwnedFd>, counter: Arc<Counter>) {
    loop {
        let Ok(mut ready) = notice.readable().await else {
            return;
        };
        // What it says does not matter, only that it says something; an event of inotify
        // has no name here and fits.
        let mut buffer = [0; 512];
        let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?));
        if let Ok(Err(error)) = read {
            tracing::warn!(id = counter.id, %error, "no more notice of memory that runs out");
            return;
        }
        counter.check_soon().await;
        // Both kinds are signalled for ever once the group is gone.
        if !counter.file.exists() {
            return;
        }
    }
}

/// v1: `<eventfd> <fd of memory.oom_control>` registers for the group's OOMs.
fn register_eventfd(memory: &Path, control: &Path) -> io::Result<OwnedFd> {
    let notice = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = File::open(control)?;
    let line = format!("{} {}", notice.as_raw_fd(), control.as_raw_fd());
    fs::write(memory.join("cgroup.event_control"), line)?;
    Ok(notice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(kills: u64) -> String {
        format!("low 0\noom {kills}\noom_kill {kills}\n")
    }

    #[tokio::test]
    async fn each_new_kill_is_one_event_and_old_ones_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, counted(2)).unwrap();
        let (events, mut queue) = Events::new("n");
        let group = Arc::new(Cgroup::V2(dir.path().into()));
        let watch = OomWatch::start(group, "c", events).unwrap();
        watch.check();
        fs::write(&file, counted(3)).unwrap();
        let event = tokio::time::timeout(Duration::from_secs(5), queue.next());
        assert_eq!(event.await.unwrap().unwrap().topic, "/tasks/oom");
        watch.check();
        drop(watch);
        assert!(queue.next().await.is_none());
    }

    #[tokio::test]
    async fn a_group_without_memory_controller_has_no_notice() {
        let (events, _queue) = Events::new("n");
        let group = Arc::new(Cgroup::V1([].into()));
        assert!(OomWatch::start(group, "c", events).is_err());
    }
}
