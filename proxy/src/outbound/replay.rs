//! A body that can be sent more than once: kept in memory while it passes, up to a limit.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{
    BoxError,
    body::{BodyError, StreamBody, UpstreamBody},
};
use crate::limits;

#[derive(Debug)]
enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

#[derive(Debug)]
struct Shared {
    source: StreamBody,
    kept: Vec<Kept>,
    bytes: usize,
    /// Too large to be kept, or broken at its source.
    lost: bool,
    ended: bool,
    /// Only the body of this attempt may read on.
    attempt: u32,
    hint: SizeHint,
}

/// Makes bodies for attempts.
#[derive(Debug, Clone)]
pub struct ReplayHandle(Arc<Mutex<Shared>>);

/// The body of one attempt.
#[derive(Debug)]
pub struct ReplayBody {
    shared: Arc<Mutex<Shared>>,
    attempt: u32,
    cursor: usize,
}

/// The lock is held while frames are moved, never across an await.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReplayHandle {
    /// Nothing is read from the source before the first attempt reads it.
    pub fn new(source: StreamBody) -> Self {
        let hint = source.size_hint();
        // Known to be too large: not worth keeping the beginning.
        let lost = hint.lower() > limits::REPLAY_BYTES as u64;
        let shared = Shared { source, kept: vec![], bytes: 0, lost, ended: false, attempt: 0, hint };
        Self(Arc::new(Mutex::new(shared)))
    }

    /// The body for the next attempt. Those of earlier attempts end with an error.
    pub fn attempt(&self) -> UpstreamBody {
        let mut shared = lock(&self.0);
        shared.attempt += 1;
        UpstreamBody::Replay(ReplayBody { shared: self.0.clone(), attempt: shared.attempt, cursor: 0 })
    }

    /// Whether a further attempt can send the same again.
    pub fn replayable(&self) -> bool {
        let shared = lock(&self.0);
        !shared.lost || shared.attempt == 0
    }
}

impl ReplayBody {
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut shared = lock(&self.shared);
        let shared = &mut *shared;
        if shared.attempt != self.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded.into())));
        }
        if let Some(kept) = shared.kept.get(self.cursor) {
            self.cursor += 1;
            return Poll::Ready(Some(Ok(match kept {
                Kept::Data(data) => Frame::data(data.clone()),
                Kept::Trailers(trailers) => Frame::trailers(trailers.clone()),
            })));
        }
        if shared.ended {
            return Poll::Ready(None);
        }
        let frame = match shared.source.poll_next(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(frame) => frame,
        };
        match &frame {
            None => shared.ended = true,
            Some(Err(_)) => shared.lost = true,
            Some(Ok(_)) if shared.lost => {}
            Some(Ok(frame)) => {
                let kept = match (frame.data_ref(), frame.trailers_ref()) {
                    (Some(data), _) => Some(Kept::Data(data.clone())),
                    (None, Some(trailers)) => Some(Kept::Trailers(trailers.clone())),
                    (None, None) => None,
                };
                shared.bytes += frame.data_ref().map_or(0, Bytes::len);
                if shared.bytes > limits::REPLAY_BYTES {
                    shared.lost = true;
                    shared.kept = vec![];
                    self.cursor = 0;
                } else if let Some(kept) = kept {
                    shared.kept.push(kept);
                    self.cursor += 1;
                }
            }
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        let source_over = shared.ended || shared.source.is_end_stream();
        source_over && self.cursor == shared.kept.len()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        // Asked for before the first frame, to frame the message.
        if self.cursor == 0 { lock(&self.shared).hint } else { SizeHint::default() }
    }
}
