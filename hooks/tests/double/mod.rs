//! A double of containerd with one container, and of the shim behind it.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use kybernate_config::request::{
    ARCHIVE_FILE, CheckpointRequest, CheckpointResult, PROGRESS_FILE, REQUEST_FILE, RESULT_FILE,
};
use kybernate_hooks::{
    connect::Connection,
    containerd::{
        NAMESPACE_HEADER,
        containers::{
            Container, GetContainerRequest, GetContainerResponse, ListContainersRequest,
            ListContainersResponse,
            container::Runtime,
            containers_server::{Containers, ContainersServer},
        },
        runc::CheckpointOptions,
        task::{Process, ProcessInfo, Status as State},
        tasks::{
            CheckpointTaskRequest, CheckpointTaskResponse, GetRequest, GetResponse,
            ListPidsRequest, ListPidsResponse,
            tasks_server::{Tasks, TasksServer},
        },
        unpack,
        version::{
            VersionResponse,
            version_server::{Version, VersionServer},
        },
    },
};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};

/// Id of the container.
pub const ID: &str = "c0ffee0123";
/// The archive that the shim writes.
pub const ARCHIVE: &[u8] = b"an archive";

/// What the shim does when it is asked for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shim {
    /// Writes the archive.
    Works,
    /// Fails half way.
    Fails,
    /// Waits until its client has gone, and then rolls back.
    Waits,
    /// Does so, and something stays.
    Leaves,
    /// Waits until its client has gone, and then is done all the same.
    Finishes,
    /// Knows nothing of requests and leaves plain images.
    Stock,
}

/// The double; clones share what was seen.
#[derive(Debug, Clone)]
pub struct Double {
    /// How the shim behaves.
    pub shim: Shim,
    /// State of the container.
    pub state: State,
    /// The container's runtime type.
    pub runtime: &'static str,
    /// containerd's version.
    pub version: &'static str,
    /// The request that the shim found, and the options of the call.
    pub seen: Arc<Mutex<Option<(CheckpointRequest, CheckpointOptions)>>>,
}

impl Default for Double {
    fn default() -> Self {
        Self {
            shim: Shim::Works,
            state: State::Running,
            runtime: "io.containerd.kybernate.v1",
            version: "2.1.9",
            seen: Arc::default(),
        }
    }
}

impl Double {
    /// Serves the double on a socket in a new directory, which also has room for outputs.
    pub async fn serve(&self) -> (TempDir, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let server = Server::builder()
            .add_service(TasksServer::new(self.clone()))
            .add_service(ContainersServer::new(self.clone()))
            .add_service(VersionServer::new(self.clone()))
            .serve_with_incoming(listener);
        tokio::spawn(server);
        fs::create_dir(dir.path().join("out")).unwrap();
        let connection = Connection::open(&socket).await.unwrap();
        (dir, connection)
    }

    fn container(&self) -> Container {
        Container {
            id: ID.into(),
            image: "example.org/counter:1".into(),
            runtime: Some(Runtime {
                name: self.runtime.into(),
                options: None,
            }),
            ..Default::default()
        }
    }

    async fn act(&self, staging: PathBuf) -> Result<(), Status> {
        let failed = || {
            Err(Status::new(
                Code::Internal,
                "criu failed: pipe 7 is strange",
            ))
        };
        match self.shim {
            Shim::Works => write(&staging),
            Shim::Fails => {
                fs::write(staging.join(ARCHIVE_FILE), "half of it").unwrap();
                return failed();
            }
            Shim::Stock => fs::write(staging.join("inventory.img"), "").unwrap(),
            Shim::Waits | Shim::Leaves | Shim::Finishes => {
                let request = File::open(staging.join(REQUEST_FILE)).unwrap();
                while matches!(request.try_lock(), Err(TryLockError::WouldBlock)) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let undone = format!(
                    "checkpoint of container {ID} was rolled back: the client that asked for it \
                     went away (at step dump)"
                );
                match self.shim {
                    Shim::Waits => return Err(Status::cancelled(undone)),
                    Shim::Leaves => {
                        return Err(Status::cancelled(format!(
                            "{undone}; and not everything is as before: a mount; `kybernate doctor \
                             --repair` tries again"
                        )));
                    }
                    _ => write(&staging),
                }
            }
        }
        Ok(())
    }
}

fn write(staging: &Path) {
    let progress = r#"{"phase":"dump","read_bytes":64,"written_bytes":10,"elapsed_ms":3}"#;
    fs::write(staging.join(PROGRESS_FILE), format!("{progress}\n")).unwrap();
    fs::write(staging.join(ARCHIVE_FILE), ARCHIVE).unwrap();
    let result = CheckpointResult {
        archive_bytes: ARCHIVE.len() as u64,
        content_bytes: 64,
        manifest_sha256: "5e".repeat(32),
        pause_ms: 12,
        total_ms: 34,
    };
    fs::write(
        staging.join(RESULT_FILE),
        serde_json::to_vec(&result).unwrap(),
    )
    .unwrap();
}

#[tonic::async_trait]
impl Tasks for Double {
    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let process = Process {
            container_id: ID.into(),
            pid: std::process::id(),
            status: self.state.into(),
            ..Default::default()
        };
        Ok(Response::new(GetResponse {
            process: Some(process),
        }))
    }

    async fn list_pids(
        &self,
        _: Request<ListPidsRequest>,
    ) -> Result<Response<ListPidsResponse>, Status> {
        let processes = vec![ProcessInfo {
            pid: std::process::id(),
            info: None,
        }];
        Ok(Response::new(ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointTaskRequest>,
    ) -> Result<Response<CheckpointTaskResponse>, Status> {
        assert_eq!(request.metadata().get(NAMESPACE_HEADER).unwrap(), "example");
        let request = request.into_inner();
        assert_eq!(request.container_id, ID);
        let options: CheckpointOptions = unpack(&request.options.unwrap()).unwrap().unwrap();
        let staging = PathBuf::from(&options.image_path);
        let text = fs::read(staging.join(REQUEST_FILE)).unwrap();
        let asked: CheckpointRequest = serde_json::from_slice(&text).unwrap();
        for file in &asked.include {
            assert!(staging.join(&file.path).is_file(), "{file:?}");
        }
        *self.seen.lock().unwrap() = Some((asked, options));
        // As in containerd: what the shim does, it does also when nobody waits any more.
        let double = self.clone();
        tokio::spawn(async move { double.act(staging).await })
            .await
            .map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(CheckpointTaskResponse::default()))
    }
}

#[tonic::async_trait]
impl Version for Double {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: self.version.into(),
            ..Default::default()
        }))
    }
}

#[tonic::async_trait]
impl Containers for Double {
    async fn get(
        &self,
        request: Request<GetContainerRequest>,
    ) -> Result<Response<GetContainerResponse>, Status> {
        if request.into_inner().id != ID {
            return Err(Status::not_found("no such container"));
        }
        Ok(Response::new(GetContainerResponse {
            container: Some(self.container()),
        }))
    }

    async fn list(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let filters = request.into_inner().filters;
        let mut other = self.container();
        other.id = "c0de".into();
        let containers = [self.container(), other]
            .into_iter()
            .filter(|c| {
                filters.iter().any(|filter| {
                    let prefix = filter
                        .strip_prefix("id~=\"^")
                        .unwrap()
                        .trim_end_matches('"');
                    c.id.starts_with(prefix)
                })
            })
            .collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }
}
