//! The body of a request on its way to an endpoint.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use super::{BoxError, ClientBody, IdleTimer, replay::ReplayBody};

/// A request's body.
#[derive(Debug)]
pub enum UpstreamBody {
    /// There is none.
    Empty,
    /// All of it is here.
    Bytes(Option<Bytes>),
    /// Passed through as it comes.
    Stream(StreamBody),
    /// Kept while it passes, so that it can be sent again.
    Replay(ReplayBody),
    /// This proxy's own.
    Own(tonic::body::Body),
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// See `IdleTimer`.
    #[error("nothing was received for too long")]
    Stalled,
    /// The request is being sent again elsewhere.
    #[error("the attempt was given up")]
    Superseded,
}

/// A client's body.
#[derive(Debug)]
pub struct StreamBody {
    incoming: ClientBody,
    idle: IdleTimer,
    /// They fire by being dropped.
    ended: Option<[oneshot::Sender<()>; 2]>,
}

impl UpstreamBody {
    /// A client's body. `ended` are dropped when all of it has passed.
    pub fn stream(incoming: ClientBody, idle: IdleTimer, ended: [oneshot::Sender<()>; 2]) -> StreamBody {
        StreamBody { incoming, idle, ended: Some(ended) }
    }
}

impl StreamBody {
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.incoming.poll_next(cx) {
            Poll::Pending => match self.idle.poll_stalled(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => Poll::Ready(Some(Err(BodyError::Stalled.into()))),
            },
            Poll::Ready(None) => {
                self.ended = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some(frame)) => {
                self.idle.moved();
                // Nobody may poll again to learn that this was the last one.
                if self.incoming.is_end_stream() {
                    self.ended = None;
                }
                Poll::Ready(Some(frame.map_err(Into::into)))
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(body) => body.poll_next(cx),
            Self::Replay(body) => body.poll_next(cx),
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Bytes(bytes) => bytes.is_none(),
            Self::Stream(body) => body.is_end_stream(),
            Self::Replay(body) => body.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(body) => body.size_hint(),
            Self::Replay(body) => body.size_hint(),
            Self::Own(body) => body.size_hint(),
        }
    }
}
