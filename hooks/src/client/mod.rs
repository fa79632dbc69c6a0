//! The checkpoint client.
//!
//! ```text
//! resolve ── container, task, shim, pod                    Containers, Tasks, CRI
//! staging ── beside the output: config.dump status.dump request.json (locked)
//! call ───── Tasks/Checkpoint(image_path = staging) ──> containerd ──> shim
//!            meanwhile: progress.jsonl <── shim            cancel: lock goes, shim rolls back
//! publish ── archive.tar.zst becomes the output
//! ```

mod error;
mod footprint;
mod leftovers;
mod progress;
mod records;
mod resolve;
mod shim;
mod staging;
mod target;
mod undone;

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kybernate_age::Recipient;
pub use kybernate_config::request::CheckpointResult;
use kybernate_config::request::{CheckpointRequest, IncludedFile, Progress, REQUEST_VERSION};
use tokio::time::{Instant, MissedTickBehavior};

pub use self::{
    error::{CheckpointError, explain},
    footprint::available as free_space,
    resolve::{PodContainer, Subject, resolve},
    target::{Target, TargetError},
};
use self::{progress::Tail, staging::Staging};
use crate::{
    connect::{Connection, Containerd},
    containerd::{pack, runc::CheckpointOptions, tasks},
};

/// How often the progress log is read.
const TICK: Duration = Duration::from_millis(100);
/// How long the shim may take to roll back.
const GRACE: Duration = Duration::from_secs(30);

/// What a checkpoint is asked to be.
#[derive(Debug, Clone)]
pub struct CheckpointOrder {
    /// The archive's path; its directory must exist.
    pub output: PathBuf,
    /// Replaces an output that is there.
    pub replace: bool,
    /// Stops the container when its archive is complete.
    pub exit: bool,
    /// Compression level: `fast`, `default`, `high` or a number; the shim's setting if `None`.
    pub level: Option<String>,
    /// Memory for waiting frames: `auto` or a size; the shim's setting if `None`.
    pub buffer: Option<String>,
    /// Who can read the archive beside those whom the shim's settings name.
    pub encrypt_to: Vec<Recipient>,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether an output directory that is too small is noticed before the container is frozen.
    pub space_check: bool,
    /// Who asks, for the manifest and the shim's log.
    pub requester: Option<String>,
}

/// What happens while a checkpoint is taken.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// The container is found and the shim is asked.
    Started {
        /// containerd's id.
        id: String,
        /// Bytes of memory that are known to be in the container; 0 when they can't be seen.
        memory_bytes: u64,
    },
    /// Something that its caller should know.
    Warning(String),
    /// The shim reports.
    Progress(Progress),
    /// The shim was told to roll back; its confirmation is waited for.
    RollingBack,
}

/// A checkpoint that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The container.
    pub subject: Subject,
    /// The archive's absolute path.
    pub output: PathBuf,
    /// The shim's answer.
    pub result: CheckpointResult,
}

/// Takes a checkpoint of `target` and reports to `update` meanwhile. When `cancel` completes,
/// the shim is told to roll back; so it is when the returned future is dropped, but then nobody
/// waits for it. `namespace` is containerd's, for targets that are ids.
///
/// # Errors
/// See [`CheckpointError`]: whatever the reason, nothing is left beside the output.
pub async fn checkpoint(
    connection: &Connection,
    namespace: &str,
    target: &Target,
    order: &CheckpointOrder,
    update: &mut (dyn FnMut(Update) + Send),
    cancel: impl Future<Output = ()> + Send,
) -> Result<Checkpoint, CheckpointError> {
    let subject = resolve(connection, namespace, target).await?;
    if order.exit && !subject.shim_is_known {
        return Err(CheckpointError::UnknownShim { id: subject.id });
    }
    let containerd = connection.namespace(&subject.namespace)?;
    let mut staging = Staging::create(&order.output, order.replace, order.exit)?;
    let memory_bytes = footprint::memory(&pids(&containerd, &subject.id).await?);
    check_space(order, &staging, memory_bytes, update)?;

    let started = SystemTime::now();
    let mut include = vec![add(
        &staging,
        "config.dump",
        records::config_dump(&subject, started),
    )?];
    if let Some(pod) = &subject.pod {
        include.push(add(&staging, "status.dump", records::status_dump(pod))?);
        include.extend(log(&pod.status.log_path, update));
    }
    staging.submit(&CheckpointRequest {
        version: REQUEST_VERSION,
        level: order.level.clone(),
        buffer: order.buffer.clone(),
        deadline: Some(unix_seconds(started + order.timeout)),
        include,
        encrypt_to: order.encrypt_to.clone(),
        requester: order.requester.clone(),
    })?;
    update(Update::Started {
        id: subject.id.clone(),
        memory_bytes,
    });

    let staging = call(&containerd, &subject.id, staging, order, update, cancel).await?;
    let output = staging.output().to_owned();
    let id = subject.id.clone();
    // Syncing a large archive takes a while and must not hold up the runtime.
    let result = tokio::task::spawn_blocking(move || staging.publish(&id))
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok(Checkpoint {
        subject,
        output,
        result,
    })
}

/// Calls the shim and waits. The staging directory comes back when it holds an archive.
async fn call(
    containerd: &Containerd,
    id: &str,
    mut staging: Staging,
    order: &CheckpointOrder,
    update: &mut (dyn FnMut(Update) + Send),
    cancel: impl Future<Output = ()> + Send,
) -> Result<Staging, CheckpointError> {
    let mut tail = Tail::new(staging.progress());
    let request = request(id, staging.path(), &staging.subdir("work")?, order);
    let mut tasks = containerd.tasks();
    let call = tasks.checkpoint(request);
    let deadline = tokio::time::sleep(order.timeout);
    let grace = tokio::time::sleep(GRACE);
    tokio::pin!(call, cancel, deadline, grace);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut withdrawn = None;

    let answer = loop {
        let cause = tokio::select! {
            answer = &mut call => break answer,
            () = &mut cancel, if withdrawn.is_none() => Withdrawal::Interrupt,
            () = &mut deadline, if withdrawn.is_none() => Withdrawal::Deadline,
            () = &mut grace, if withdrawn.is_some() => {
                let cause = withdrawn.map_or("", Withdrawal::name);
                return Err(staging.fail(id, CheckpointError::Unconfirmed {
                    id: id.to_owned(),
                    cause,
                    waited_s: GRACE.as_secs(),
                }));
            }
            _ = tick.tick() => {
                tail.read().into_iter().for_each(|seen| update(Update::Progress(seen)));
                continue;
            }
        };
        staging.withdraw();
        grace.as_mut().reset(Instant::now() + GRACE);
        withdrawn = Some(cause);
        update(Update::RollingBack);
    };
    tail.read()
        .into_iter()
        .for_each(|seen| update(Update::Progress(seen)));
    let failure = match (answer, withdrawn) {
        (Ok(_), None) => return Ok(staging),
        // A container that has ended lives on in its archive alone.
        (Ok(_), Some(_)) if order.exit => return Ok(staging),
        (Ok(_), Some(cause)) => cause.failure(id, order, None),
        (Err(status), Some(cause)) => cause.failure(id, order, undone::otherwise(id, status)),
        (Err(status), None) => CheckpointError::task_call("Tasks.Checkpoint", id)(status),
    };
    Err(staging.fail(id, failure))
}

/// Why the client does not want the archive any more.
#[derive(Debug, Clone, Copy)]
enum Withdrawal {
    Interrupt,
    Deadline,
}

impl Withdrawal {
    fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "interrupted",
            Self::Deadline => "out of time",
        }
    }

    fn failure(self, id: &str, order: &CheckpointOrder, said: Option<String>) -> CheckpointError {
        let id = id.to_owned();
        match self {
            Self::Interrupt => CheckpointError::Interrupted { id, said },
            Self::Deadline => CheckpointError::Deadline {
                id,
                timeout_s: order.timeout.as_secs(),
                said,
            },
        }
    }
}

fn request(
    id: &str,
    staging: &Path,
    work: &Path,
    order: &CheckpointOrder,
) -> tonic::Request<tasks::CheckpointTaskRequest> {
    let options = CheckpointOptions {
        exit: order.exit,
        image_path: staging.display().to_string(),
        work_path: work.display().to_string(),
        ..Default::default()
    };
    let mut request = tonic::Request::new(tasks::CheckpointTaskRequest {
        container_id: id.to_owned(),
        options: Some(pack(&options)),
        ..Default::default()
    });
    // The shim keeps the deadline itself; the call only must not end before the shim has.
    request.set_timeout(order.timeout + GRACE);
    request
}

/// Bytes of memory in a container, as far as they can be seen.
///
/// # Errors
/// containerd does not tell its processes.
pub async fn memory(connection: &Connection, subject: &Subject) -> Result<u64, CheckpointError> {
    let containerd = connection.namespace(&subject.namespace)?;
    Ok(footprint::memory(&pids(&containerd, &subject.id).await?))
}

async fn pids(containerd: &Containerd, id: &str) -> Result<Vec<u32>, CheckpointError> {
    let request = tasks::ListPidsRequest {
        container_id: id.to_owned(),
    };
    let answer = containerd
        .tasks()
        .list_pids(request)
        .await
        .map_err(CheckpointError::task_call("Tasks.ListPids", id))?;
    Ok(answer
        .into_inner()
        .processes
        .into_iter()
        .map(|process| process.pid)
        .collect())
}

fn check_space(
    order: &CheckpointOrder,
    staging: &Staging,
    wanted: u64,
    update: &mut (dyn FnMut(Update) + Send),
) -> Result<(), CheckpointError> {
    if !order.space_check {
        return Ok(());
    }
    let path = staging.parent();
    let available = footprint::available(path)
        .map_err(CheckpointError::io("ask for the free space of", path))?;
    if footprint::hopeless(wanted, available) {
        return Err(CheckpointError::Space {
            path: path.to_owned(),
            available,
            wanted,
        });
    }
    if available < wanted {
        update(Update::Warning(format!(
            "{} has less free space than the container has memory; the checkpoint may not fit",
            path.display()
        )));
    }
    Ok(())
}

/// Puts a record into the staging directory.
fn add(
    staging: &Staging,
    name: &str,
    content: serde_json::Result<Vec<u8>>,
) -> Result<IncludedFile, CheckpointError> {
    let content =
        content.map_err(|e| CheckpointError::io("write", staging.path().join(name))(e.into()))?;
    staging.write(name, &content)?;
    Ok(IncludedFile {
        name: name.to_owned(),
        path: name.into(),
    })
}

/// The container's log, if it has one that can go into an archive. The shim reads it after the
/// dump, so that it ends where the processes do.
fn log(path: &str, update: &mut (dyn FnMut(Update) + Send)) -> Option<IncludedFile> {
    if path.is_empty() {
        return None;
    }
    match std::fs::symlink_metadata(path) {
        Ok(facts) if facts.is_file() => Some(IncludedFile {
            name: "container.log".to_owned(),
            path: path.into(),
        }),
        Ok(_) => {
            update(Update::Warning(format!(
                "{path} is no regular file; its log is left out"
            )));
            None
        }
        Err(e) => {
            update(Update::Warning(format!("the log is left out: {path}: {e}")));
            None
        }
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    // A deadline is not earlier than asked for.
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() + 1)
}
