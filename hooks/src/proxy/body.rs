//! Bodies on their way. Both kinds keep their length to themselves, so that no header is made
//! up from it.
//!
//! HTTP/2's flow control holds from end to end: a frame is taken from one side only when the other
//! has sent the one before.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use super::{grpc, upstream};
use crate::observe::Call;

/// An answer that goes on and on may say nothing for so long before it is ended. One that is about
/// to end has more to say at once.
const QUIET: Duration = Duration::from_millis(500);

/// The body of a request to containerd.
#[derive(Debug)]
pub enum Outgoing {
    /// What the client sends.
    Passing(Incoming),
    /// A body that was read before.
    Whole(Option<Bytes>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Passing(body) => Pin::new(body).poll_frame(cx),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Passing(body) => body.is_end_stream(),
            Self::Whole(bytes) => bytes.is_none(),
        }
    }
}

/// The body of an answer to the client.
#[derive(Debug)]
pub struct Reply(Kind);

#[derive(Debug)]
enum Kind {
    Local(Option<Bytes>, Option<HeaderMap>),
    Passing(Box<Passing>),
}

#[derive(Debug)]
struct Passing {
    body: Incoming,
    call: Call,
    /// Completes when answers that go on and on have to end.
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Completes when nothing was said for long since then.
    quiet: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Reply {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self(Kind::Local(None, None))
    }

    /// A body of this process.
    #[must_use]
    pub fn local(data: Bytes, trailers: HeaderMap) -> Self {
        Self(Kind::Local(Some(data), Some(trailers)))
    }

    /// A body from containerd. After `cut` it is ended when it has
    /// nothing to say for a while.
    #[must_use]
    pub fn passing(body: Incoming, call: Call, cut: WaitForCancellationFutureOwned) -> Self {
        Self(Kind::Passing(Box::new(Passing {
            body,
            call,
            cut: Box::pin(cut),
            quiet: None,
            ended: false,
        })))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Local(data, trailers) => {
                let frame = data.take().map(Frame::data);
                let frame = frame.or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Kind::Passing(passing) => passing.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Local(data, trailers) => data.is_none() && trailers.is_none(),
            Kind::Passing(passing) => passing.ended || passing.body.is_end_stream(),
        }
    }
}

impl Passing {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.quiet = None;
                if let Some(code) = frame.trailers_ref().and_then(grpc::code) {
                    self.call.ends_with(code);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            // A stream that containerd has reset is reset here for the same reason.
            Poll::Ready(Some(Err(error))) if upstream::is_reset(&error) => {
                self.ended = true;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Err(error))) => {
                let text = format!("containerd went away during its answer: {error}");
                Poll::Ready(Some(Ok(self.end(Status::unavailable(text)))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(self.cut.as_mut().poll(cx));
                let quiet = self.quiet.get_or_insert_with(|| Box::pin(sleep(QUIET)));
                ready!(quiet.as_mut().poll(cx));
                let text = "kybernate-cri-hooks is being restarted";
                Poll::Ready(Some(Ok(self.end(Status::unavailable(text)))))
            }
        }
    }

    fn end(&mut self, status: Status) -> Frame<Bytes> {
        self.ended = true;
        self.call.ends_with(status.code());
        Frame::trailers(grpc::trailers(&status))
    }
}
