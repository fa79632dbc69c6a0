//! `CheckpointContainer` of class containers: the one call that this process answers itself.
//!
//! ```text
//! request ── decode ── on a thread of its own:
//!    whose is it?   ListContainers, PodSandboxStatus      another handler's ──> containerd, as it came
//!    room           retention before, see `retention`     too little ──> RESOURCE_EXHAUSTED
//!    take           client::checkpoint into a directory beside `location`
//!    publish        fsync, rename                         kubelet sees the whole file or none
//!    prune          retention after, audit line
//! ```
//!
//! A caller that goes away, or whose time is nearly up, makes the shim roll back. The thread
//! lives until that has happened, whoever waits for it: a dump blocks on files, and calls that
//! pass through must not wait for one.

mod audit;
mod deadline;
mod error;
mod subject;
mod take;
#[cfg(feature = "otel")]
mod trace;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Limited};
use hyper::{Response, body::Incoming};
use kybernate_config::Settings;
use prost::Message;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

use self::{deadline::Deadline, take::Order};
use crate::{
    cri::v1::{CheckpointContainerRequest, CheckpointContainerResponse},
    observe::Metrics,
    proxy::{Caller, Outgoing, Reply, grpc},
};

/// A request is an id and a path.
const REQUEST_MAX: usize = 64 * 1024;

/// What takes the calls that do not pass.
#[derive(Debug)]
pub struct Intercept {
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    running: TaskTracker,
    stop: CancellationToken,
    first: u64,
    count: AtomicU64,
    #[cfg(feature = "otel")]
    tracer: Option<Arc<opentelemetry_sdk::trace::SdkTracer>>,
}

/// How a call went.
#[derive(Debug)]
enum Outcome {
    /// Nothing of ours; containerd is to answer it.
    Foreign,
    /// The archive is where it was wanted.
    Taken,
    /// It is not.
    Failed(Status),
}

impl Intercept {
    /// Serves checkpoints after these settings. When `stop` is cancelled, all are rolled back.
    #[must_use]
    pub fn new(settings: Arc<Settings>, metrics: Arc<Metrics>, stop: CancellationToken) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            settings,
            metrics,
            running: TaskTracker::new(),
            stop,
            first: now.map_or(0, |since| since.as_secs()),
            count: AtomicU64::new(1),
            #[cfg(feature = "otel")]
            tracer: None,
        }
    }

    /// Leaves spans with this tracer, if there is one.
    #[cfg(feature = "otel")]
    #[must_use]
    pub fn traced(mut self, tracer: Option<Arc<opentelemetry_sdk::trace::SdkTracer>>) -> Self {
        self.tracer = tracer;
        self
    }

    /// Checkpoints that have not ended, to wait for.
    #[must_use]
    pub fn running(&self) -> TaskTracker {
        self.running.clone()
    }

    /// Answers the call, or gives it back to be passed on.
    ///
    /// # Errors
    /// It is containerd's: the request as it came.
    pub async fn checkpoint_container(
        &self,
        caller: &Caller,
        request: Request<Incoming>,
    ) -> Result<Response<Reply>, Request<Outgoing>> {
        let received = Instant::now();
        let (parts, body) = request.into_parts();
        let body = match Limited::new(body, REQUEST_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                let text = format!("the request can't be read: {error}");
                return Ok(grpc::error(&Status::invalid_argument(text)));
            }
        };
        let asked = match decode(&body) {
            Ok(asked) => asked,
            Err(status) => return Ok(grpc::error(&status)),
        };
        let order = Order {
            id: self.request_id(),
            caller: caller.to_string(),
            deadline: Deadline::of(
                received,
                grpc::timeout(&parts.headers),
                asked.timeout,
                self.settings.checkpoint.timeout_s,
            ),
            asked,
            settings: self.settings.clone(),
            metrics: self.metrics.clone(),
            #[cfg(feature = "otel")]
            trace: (self.tracer.clone()).map(|tracer| trace::Trace::of(tracer, &parts.headers)),
        };
        match self.run(order).await {
            Outcome::Foreign => {
                let body = Outgoing::Whole(Some(body));
                Err(Request::from_parts(parts, body))
            }
            Outcome::Taken => Ok(grpc::answer(
                &CheckpointContainerResponse::default().encode_to_vec(),
            )),
            Outcome::Failed(status) => Ok(grpc::error(&status)),
        }
    }

    /// Runs the call on a thread. Dropping the future cancels it.
    async fn run(&self, order: Order) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let cancel = self.stop.child_token();
        let _gone = cancel.clone().drop_guard();
        let running = self.running.token();
        let thread = std::thread::Builder::new().name("checkpoint".into());
        let spawned = thread.spawn(move || {
            // Nobody may be there any more.
            let _ = done.send(take::on_this_thread(&order, &cancel));
            drop(running);
        });
        if let Err(error) = spawned {
            let text = format!("no thread for the checkpoint: {error}");
            return Outcome::Failed(Status::resource_exhausted(text));
        }
        outcome.await.unwrap_or_else(|_| {
            let text = "the checkpoint has ended in a panic, see the log; the shim undoes it";
            Outcome::Failed(Status::internal(text))
        })
    }

    fn request_id(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("{:x}-{count}", self.first)
    }
}

fn decode(body: &Bytes) -> Result<CheckpointContainerRequest, Status> {
    let message = grpc::message(body).map_err(|error| match error {
        grpc::FrameError::Compressed => Status::unimplemented(error.to_string()),
        grpc::FrameError::Length => Status::invalid_argument(error.to_string()),
    })?;
    CheckpointContainerRequest::decode(message)
        .map_err(|error| Status::invalid_argument(format!("the request does not decode: {error}")))
}
