//! `Create`: root file system, stdio, and either `runc create` or a prepared restore.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use containerd_shim_protos::{
    api::Mount,
    events::task::{TaskCreate, TaskIO},
};
use kybernate_config::names::{CRI_CONTAINER_TYPE, RESTORE_FROM};
use protobuf::{MessageField, well_known_types::any::Any};
use tokio_util::sync::CancellationToken;

use super::{
    Container, ContainerError, ContainerFacts, INIT_PID_FILE, ROOTFS, Shared, lock, read_pid,
};
use crate::{
    criu,
    io::{Endpoints, Owner, Stdio, Streams},
    mount,
    options::Options,
    process::Process,
    restore::{self, Source},
    runc::Runc,
    spec::SpecFacts,
    trigger::Trigger,
    wishes,
};

/// What containerd asks for.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// Id of the container.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What to mount at `<bundle>/rootfs`, in order.
    pub rootfs: Vec<Mount>,
    /// Stdio of init.
    pub endpoints: Endpoints,
    /// Directory of CRIU images, or empty.
    pub checkpoint: String,
    /// Options of the runtime.
    pub options: Option<Any>,
    /// Cancelled when nobody waits for it any more: a restore is undone then.
    pub gone: CancellationToken,
}

impl Container {
    /// Makes a container. On failure nothing of it remains.
    pub async fn create(
        shared: &Shared,
        request: CreateRequest,
    ) -> Result<Arc<Self>, ContainerError> {
        let options = Options::from_any(request.options.as_ref())?;
        for key in options.unknown.keys() {
            tracing::warn!(key, "unknown runtime option; it is ignored");
        }
        let facts = facts(shared, &request, options)?;
        let mounts = request.rootfs.clone();
        let target = facts.rootfs.clone();
        blocking(move || mount::mount_all(&mounts, &target)).await?;
        let (id, rootfs, runc) = (facts.id.clone(), facts.rootfs.clone(), facts.runc.clone());
        let mounted = !request.rootfs.is_empty();
        match Self::create_mounted(shared, request, facts).await {
            Ok(container) => Ok(container),
            Err(error) => {
                // What runc left behind is its own to remove; usually there is nothing.
                let _ = runc.delete(&id, true).await;
                if mounted && let Err(error) = blocking(move || mount::unmount_all(&rootfs)).await {
                    tracing::warn!(id, %error, "root file system stays mounted");
                }
                Err(error)
            }
        }
    }

    async fn create_mounted(
        shared: &Shared,
        request: CreateRequest,
        facts: ContainerFacts,
    ) -> Result<Arc<Self>, ContainerError> {
        let init = Process::new("", request.endpoints.clone());
        let stdio = open_stdio(shared, &facts, "", &request.endpoints).await?;
        let source = restore_source(&facts.spec, &request.checkpoint);
        let restored = source.is_some();
        let container = match source {
            Some(source) => {
                let prepared = restore::prepare(source, &facts, &request.gone).await?;
                init.keep_stdio(stdio);
                let container = Arc::new(Self::new(facts, shared.clone(), init));
                container.open_trigger(restored)?;
                *lock(&container.restore) = Some(prepared);
                container.publish_create(&request);
                container
            }
            None => {
                let container = Arc::new(Self::new(facts, shared.clone(), init));
                container.open_trigger(restored)?;
                if let Err(error) = container.runc_create(stdio, &request).await {
                    container.shut_trigger().await;
                    return Err(error);
                }
                container
            }
        };
        Ok(container)
    }

    fn open_trigger(self: &Arc<Self>, restored: bool) -> Result<(), ContainerError> {
        let opened = Trigger::start(self, restored);
        let opened = opened.map_err(self.host_error("open the trigger socket in", &self.bundle))?;
        if let Some(trigger) = opened {
            let _ = self.trigger.set(trigger);
        }
        Ok(())
    }

    async fn runc_create(
        self: &Arc<Self>,
        mut stdio: Stdio,
        request: &CreateRequest,
    ) -> Result<(), ContainerError> {
        let pid_file = self.bundle.join(INIT_PID_FILE);
        let mut command = self.runc.command("create");
        command
            .arg("--bundle")
            .arg(&self.bundle)
            .arg("--pid-file")
            .arg(&pid_file);
        if self.options.no_pivot_root {
            command.arg("--no-pivot");
        }
        if self.options.no_new_keyring {
            command.arg("--no-new-keyring");
        }
        stdio.attach(&mut command);
        command.arg(&self.id);
        let operation = self.shared.reaper.begin();
        self.runc.run_attached(command).await?;
        let pid = read_pid(&pid_file).map_err(self.host_error("read", &pid_file))?;
        let claim = operation.claim(pid);
        self.init.set_pid(pid);
        self.init
            .keep_streams(stdio.start(&self.shared.reaper).await?);
        self.adopt_cgroup(pid);
        self.publish_create(request);
        self.follow_init(claim);
        Ok(())
    }

    fn publish_create(&self, request: &CreateRequest) {
        let io = &request.endpoints;
        self.events().send(&TaskCreate {
            container_id: self.id.clone(),
            bundle: self.bundle.to_string_lossy().into_owned(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(TaskIO {
                stdin: io.stdin.clone(),
                stdout: io.stdout.clone(),
                stderr: io.stderr.clone(),
                terminal: io.terminal,
                ..TaskIO::default()
            }),
            checkpoint: request.checkpoint.clone(),
            pid: self.init.pid().unwrap_or(0),
            ..TaskCreate::default()
        });
    }

    /// Starts the copies for a process that runs. One whose stdio can't be had is ended: its
    /// start fails, so nobody would hear of its end.
    pub(super) async fn start_stdio(
        &self,
        stdio: Stdio,
        pid: u32,
    ) -> Result<Streams, ContainerError> {
        let started = stdio.start(&self.shared.reaper).await;
        if started.is_err() {
            let _ = self.shared.reaper.signal(pid, nix::libc::SIGKILL);
        }
        Ok(started?)
    }

    /// Stdio for another process of this container.
    pub(super) async fn stdio(&self, process: &Process) -> Result<Stdio, ContainerError> {
        open_stdio(
            &self.shared,
            &self.facts(),
            &process.exec_id,
            &process.endpoints,
        )
        .await
    }
}

fn facts(
    shared: &Shared,
    request: &CreateRequest,
    options: Options,
) -> Result<ContainerFacts, ContainerError> {
    let bundle = &request.bundle;
    prepare_spec(bundle)?;
    let spec = SpecFacts::read(bundle)?;
    if let Some(what) = wishes::unprepared(&spec) {
        tracing::warn!(id = request.id, "{what}");
    }
    options
        .write(bundle)
        .map_err(|source| ContainerError::Host {
            action: "keep the options in",
            path: bundle.clone(),
            source,
        })?;
    let rootfs = if request.rootfs.is_empty() {
        bundle.join(&spec.root)
    } else {
        bundle.join(ROOTFS)
    };
    if !request.rootfs.is_empty() {
        make_rootfs(&rootfs)?;
    }
    Ok(ContainerFacts {
        id: request.id.clone(),
        namespace: shared.namespace.clone(),
        runc: Runc::new(
            &options,
            &spec,
            &shared.namespace,
            bundle,
            shared.reaper.clone(),
        ),
        bundle: bundle.clone(),
        rootfs,
        spec,
        options,
    })
}

/// Writes into the spec what the container's annotations ask for, and the annotation by which
/// runc finds the container's CRIU options, since runc keeps the annotations that it saw when it
/// made the container.
fn prepare_spec(bundle: &Path) -> Result<(), ContainerError> {
    let mut spec = SpecFacts::read_whole(bundle)?;
    let wished = wishes::apply(bundle, &mut spec)?;
    if criu::config::annotate(bundle, &mut spec) || wished {
        SpecFacts::write_whole(bundle, &spec)?;
    }
    Ok(())
}

fn make_rootfs(path: &Path) -> Result<(), ContainerError> {
    use std::os::unix::fs::DirBuilderExt;
    // A container in a user namespace reaches its root as somebody else.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(|source| ContainerError::Host {
            action: "make the directory",
            path: path.into(),
            source,
        })
}

/// What the container is restored from. A pod's sandbox is never: its annotations are the
/// pod's own, which its author writes, and nobody checks them.
fn restore_source(spec: &SpecFacts, checkpoint: &str) -> Option<Source> {
    let kind = spec.annotations.get(CRI_CONTAINER_TYPE);
    if kind.is_some_and(|kind| kind == "sandbox") {
        return None;
    }
    match (spec.annotations.get(RESTORE_FROM), checkpoint) {
        (Some(archive), _) if !archive.is_empty() => Some(Source::Archive(archive.into())),
        (_, "") => None,
        (_, images) => Some(Source::Images(images.into())),
    }
}

async fn open_stdio(
    shared: &Shared,
    facts: &ContainerFacts,
    exec_id: &str,
    endpoints: &Endpoints,
) -> Result<Stdio, ContainerError> {
    let owner = Owner {
        namespace: shared.namespace.clone(),
        id: if exec_id.is_empty() {
            facts.id.clone()
        } else {
            exec_id.into()
        },
        uid: facts.options.io_uid,
        gid: facts.options.io_gid,
    };
    Ok(Stdio::open(endpoints, &owner, &shared.reaper).await?)
}

/// Runs what may block the thread on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_wins_over_containerds_images() {
        let spec = |text: &str| SpecFacts::parse(text).unwrap();
        let plain = spec("{}");
        assert_eq!(restore_source(&plain, ""), None);
        assert_eq!(
            restore_source(&plain, "/i"),
            Some(Source::Images("/i".into()))
        );
        let annotated = spec(r#"{"annotations":{"kybernate.io/restore-from":"/a.tar.zst"}}"#);
        for images in ["", "/i"] {
            let archive = Some(Source::Archive("/a.tar.zst".into()));
            assert_eq!(restore_source(&annotated, images), archive);
        }
        let empty = spec(r#"{"annotations":{"kybernate.io/restore-from":""}}"#);
        assert_eq!(restore_source(&empty, ""), None);
        let sandbox = spec(
            r#"{"annotations":{"kybernate.io/restore-from":"/a.tar.zst",
                "io.kubernetes.cri.container-type":"sandbox"}}"#,
        );
        assert_eq!(restore_source(&sandbox, ""), None);
    }
}
