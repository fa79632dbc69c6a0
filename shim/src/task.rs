//! The 17 calls of `containerd.task.v2.Task`, which are those of `containerd.task.v3.Task`.
//!
//! Each decodes, calls the container and replies. ttrpc drops a call's future when its
//! deadline passes or its connection ends. So what changes a container runs in a task of its
//! own, which finishes by itself.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
        StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    events::task::{TaskCheckpointed, TaskDelete},
    shim_async::Task,
};
use protobuf::{EnumOrUnknown, MessageField};
use tokio_util::sync::CancellationToken;
use ttrpc::asynchronous::TtrpcContext;

mod error;
mod wire;

pub use error::TaskError;

use crate::{
    checkpoint,
    container::{Container, ContainerError, CreateRequest},
    io::Endpoints,
    pod::Pod,
    task::wire::{checkpoint_options, ending, process_details, status},
    trigger,
};

type Reply<T> = ttrpc::Result<T>;

/// The service.
#[derive(Debug, Clone)]
pub struct TaskService {
    pod: Arc<Pod>,
}

impl TaskService {
    /// A service over a pod.
    #[must_use]
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        Ok(self.pod.get(id)?)
    }

    /// Runs work that goes on when nobody waits for it any more.
    async fn detached<T, F>(&self, work: F) -> Result<T, TaskError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, TaskError>> + Send + 'static,
    {
        tokio::spawn(work).await.map_err(TaskError::Panic)?
    }

    async fn do_create(&self, r: CreateTaskRequest) -> Result<CreateTaskResponse, TaskError> {
        let pod = Arc::clone(&self.pod);
        let gone = CancellationToken::new();
        // Cancelled when this future ends by whatever cause; harmless after the end of the work.
        let _guard = gone.clone().drop_guard();
        let request = CreateRequest {
            endpoints: Endpoints {
                stdin: r.stdin,
                stdout: r.stdout,
                stderr: r.stderr,
                terminal: r.terminal,
            },
            id: r.id,
            bundle: r.bundle.into(),
            rootfs: r.rootfs,
            checkpoint: r.checkpoint,
            options: r.options.into_option(),
            gone,
        };
        let container = self
            .detached(async move { Ok(pod.create(request).await?) })
            .await?;
        let pid = container.init_pid().unwrap_or(0);
        Ok(CreateTaskResponse {
            pid,
            ..CreateTaskResponse::default()
        })
    }

    async fn do_start(&self, r: StartRequest) -> Result<StartResponse, TaskError> {
        let container = self.container(&r.id)?;
        let gone = CancellationToken::new();
        let _guard = gone.clone().drop_guard();
        let started = async move {
            Ok(match r.exec_id.as_str() {
                "" => container.start(gone).await?,
                exec_id => container.start_exec(exec_id).await?,
            })
        };
        let pid = self.detached(started).await?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn do_delete(&self, r: DeleteRequest) -> Result<DeleteResponse, TaskError> {
        let (pod, container) = (Arc::clone(&self.pod), self.container(&r.id)?);
        let deleted = async move {
            if !r.exec_id.is_empty() {
                return Ok(container.delete_exec(&r.exec_id).await?);
            }
            let init = pod.delete(&r.id).await?;
            let (pid, exit_status, exited_at) = ending(&init);
            container.events().send(&TaskDelete {
                container_id: r.id.clone(),
                pid,
                exit_status,
                exited_at,
                id: r.id,
                ..TaskDelete::default()
            });
            Ok(init)
        };
        let (pid, exit_status, exited_at) = ending(&*self.detached(deleted).await?);
        Ok(DeleteResponse {
            pid,
            exit_status,
            exited_at,
            ..DeleteResponse::default()
        })
    }

    fn do_state(&self, r: &StateRequest) -> Result<StateResponse, TaskError> {
        let container = self.container(&r.id)?;
        let process = container.process(&r.exec_id)?;
        let (_, exit_status, exited_at) = ending(&process);
        let io = &process.endpoints;
        Ok(StateResponse {
            id: if r.exec_id.is_empty() {
                r.id.clone()
            } else {
                r.exec_id.clone()
            },
            exec_id: r.exec_id.clone(),
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: process.pid().unwrap_or(0),
            status: EnumOrUnknown::new(status(container.state_of(&process))),
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            terminal: io.terminal,
            exit_status,
            exited_at,
            ..StateResponse::default()
        })
    }

    fn do_pids(&self, r: &PidsRequest) -> Result<PidsResponse, TaskError> {
        let info = |(pid, exec_id): (u32, Option<String>)| {
            let info = exec_id.map(process_details).transpose()?.into();
            Ok(ProcessInfo {
                pid,
                info,
                ..ProcessInfo::default()
            })
        };
        let processes = self.container(&r.id)?.pids().into_iter().map(info);
        let processes = processes.collect::<Result<_, TaskError>>()?;
        Ok(PidsResponse {
            processes,
            ..PidsResponse::default()
        })
    }

    async fn do_checkpoint(
        &self,
        r: CheckpointTaskRequest,
        timeout_nano: i64,
    ) -> Result<Empty, TaskError> {
        let container = self.container(&r.id)?;
        let request = checkpoint::Task {
            path: r.path.clone().into(),
            options: r
                .options
                .as_ref()
                .map(checkpoint_options)
                .transpose()?
                .flatten(),
            caller: caller(timeout_nano).await,
        };
        let gone = CancellationToken::new();
        let _guard = gone.clone().drop_guard();
        let taken = async move {
            let _operation = container.operation().write().await;
            trigger::checkpoint(Arc::clone(&container), request, gone)
                .await
                .map_err(ContainerError::from)?;
            container.events().send(&TaskCheckpointed {
                container_id: r.id,
                checkpoint: r.path,
                ..TaskCheckpointed::default()
            });
            Ok(Empty::new())
        };
        self.detached(taken).await
    }

    async fn do_stats(&self, r: StatsRequest) -> Result<StatsResponse, TaskError> {
        let container = self.container(&r.id)?;
        let id = r.id;
        let cgroup = container.cgroup().ok_or_else(|| ContainerError::NoCgroup {
            id: container.id.clone(),
        })?;
        let stats = cgroup
            .metrics()
            .map_err(|source| TaskError::Metrics { id, source })?;
        Ok(StatsResponse {
            stats: MessageField::some(stats),
            ..StatsResponse::default()
        })
    }

    async fn do_wait(&self, r: WaitRequest) -> Result<WaitResponse, TaskError> {
        let process = self.container(&r.id)?.process(&r.exec_id)?;
        process.wait().await;
        let (_, exit_status, exited_at) = ending(&process);
        Ok(WaitResponse {
            exit_status,
            exited_at,
            ..WaitResponse::default()
        })
    }

    fn do_connect(&self, r: &ConnectRequest) -> ConnectResponse {
        let init = self
            .pod
            .get(&r.id)
            .ok()
            .and_then(|container| container.process("").ok());
        ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: init.and_then(|init| init.pid()).unwrap_or(0),
            ..ConnectResponse::default()
        }
    }
}

/// Who calls, found on a thread that may block: containerd's socket may be full.
async fn caller(timeout_nano: i64) -> checkpoint::Caller {
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let found = move || checkpoint::Caller::of(&address, timeout_nano);
    tokio::task::spawn_blocking(found).await.unwrap_or_default()
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> Reply<StateResponse> {
        Ok(self.do_state(&r)?)
    }

    async fn create(&self, _: &TtrpcContext, r: CreateTaskRequest) -> Reply<CreateTaskResponse> {
        Ok(self.do_create(r).await?)
    }

    async fn start(&self, _: &TtrpcContext, r: StartRequest) -> Reply<StartResponse> {
        Ok(self.do_start(r).await?)
    }

    async fn delete(&self, _: &TtrpcContext, r: DeleteRequest) -> Reply<DeleteResponse> {
        Ok(self.do_delete(r).await?)
    }

    async fn pids(&self, _: &TtrpcContext, r: PidsRequest) -> Reply<PidsResponse> {
        Ok(self.do_pids(&r)?)
    }

    async fn pause(&self, _: &TtrpcContext, r: PauseRequest) -> Reply<Empty> {
        let container = self.container(&r.id)?;
        self.detached(async move { Ok(container.pause().await?) })
            .await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, r: ResumeRequest) -> Reply<Empty> {
        let container = self.container(&r.id)?;
        self.detached(async move { Ok(container.resume().await?) })
            .await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, cx: &TtrpcContext, r: CheckpointTaskRequest) -> Reply<Empty> {
        Ok(self.do_checkpoint(r, cx.timeout_nano).await?)
    }

    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> Reply<Empty> {
        let container = self.container(&r.id)?;
        container
            .kill(&r.exec_id, r.signal, r.all)
            .map_err(TaskError::from)?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, r: ExecProcessRequest) -> Reply<Empty> {
        let container = self.container(&r.id)?;
        let spec = r.spec.as_ref().ok_or(TaskError::Missing("process spec"))?;
        if r.exec_id.is_empty() {
            return Err(TaskError::Missing("exec id").into());
        }
        let endpoints = Endpoints {
            stdin: r.stdin.clone(),
            stdout: r.stdout.clone(),
            stderr: r.stderr.clone(),
            terminal: r.terminal,
        };
        container
            .add_exec(&r.exec_id, &spec.value, endpoints)
            .map_err(TaskError::from)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: ResizePtyRequest) -> Reply<Empty> {
        let container = self.container(&r.id)?;
        let process = container.process(&r.exec_id).map_err(TaskError::from)?;
        process
            .resize(r.width, r.height)
            .map_err(|source| ContainerError::Host {
                action: "resize the terminal of",
                path: r.id.into(),
                source,
            })
            .map_err(TaskError::from)?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, r: CloseIORequest) -> Reply<Empty> {
        let process = self
            .container(&r.id)?
            .process(&r.exec_id)
            .map_err(TaskError::from)?;
        process.close_stdin();
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, r: UpdateTaskRequest) -> Reply<Empty> {
        let container = self.container(&r.id)?;
        let resources = r.resources.into_option();
        let updated = async move { Ok(container.update(resources.as_ref()).await?) };
        self.detached(updated).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> Reply<WaitResponse> {
        Ok(self.do_wait(r).await?)
    }

    async fn stats(&self, _: &TtrpcContext, r: StatsRequest) -> Reply<StatsResponse> {
        Ok(self.do_stats(r).await?)
    }

    async fn connect(&self, _: &TtrpcContext, r: ConnectRequest) -> Reply<ConnectResponse> {
        Ok(self.do_connect(&r))
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Reply<Empty> {
        self.pod.close();
        Ok(Empty::new())
    }
}
