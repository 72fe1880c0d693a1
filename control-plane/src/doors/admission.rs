//! The first thing that a call by the mesh door meets. Whoever has no right to a method is answered by its headers: not a
//! byte of the body is read, and what has arrived of it is let go. What is open to everybody is bounded in number, and
//! every call that is one message in time. The services ask `authz` again, by what they know.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{
    TryFutureExt,
    future::{Either, MapOk, Ready, ready as answered},
};
use http_body::{Frame, SizeHint};
use mesh_tls::grpc::PeerInfo;
use prost::bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{
    Status,
    body::Body,
    codegen::{
        Service,
        http::{self, HeaderValue},
    },
};

use super::{
    gate::Newcomer,
    methods::{self, Asked, Method},
};
use crate::app::App;

/// How long the one message of a call may take to arrive. 8 MiB, over a line of 1.2 Mbit/s.
pub const BODY_TIME: Duration = Duration::from_secs(60);
/// The same of what is open to everybody: what there is to be said is a token and a few keys.
pub const NEWCOMER_BODY_TIME: Duration = Duration::from_secs(10);

/// Where gRPC has the sentence of a refusal. Source: `PROTOCOL-HTTP2.md`.
const MESSAGE: &str = "grpc-message";
/// Bytes of it, encoded. Clients take 8 to 16 KiB of headers.
const MAX_MESSAGE_BYTES: usize = 7 << 10;

/// In front of all services of the mesh door.
#[derive(Debug, Clone)]
pub struct Admission<S> {
    app: Arc<App>,
    inner: S,
}

impl<S> Admission<S> {
    /// In front of `inner`.
    pub fn new(app: Arc<App>, inner: S) -> Self {
        Self { app, inner }
    }

    /// What the body of a call is held to.
    fn terms(&self, request: &http::Request<Body>, method: &'static Method) -> Result<Terms, Status> {
        self.app.refuse_by_headers(request.extensions(), method)?;
        let peer = request.extensions().get::<PeerInfo>();
        let newcomer = match peer.filter(|_| method.is_open()) {
            Some(peer) => Some(self.app.gate.newcomer_call(peer.addr.ip())?),
            None => None,
        };
        let time = match (method.asked, &newcomer) {
            (_, Some(_)) => Some(NEWCOMER_BODY_TIME),
            (Asked::Once, None) => Some(BODY_TIME),
            (Asked::Streaming, None) => None,
        };
        Ok(Terms { time, newcomer })
    }
}

struct Terms {
    time: Option<Duration>,
    newcomer: Option<Newcomer>,
}

impl<S> Service<http::Request<Body>> for Admission<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Self::Response, Infallible>>, MapOk<S::Future, Brief>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let Some(method) = methods::by_path(request.uri().path()) else {
            // Nobody serves it: whoever says so need not read what it is about.
            return Either::Right(self.inner.call(request.map(|_| Body::empty())).map_ok(BRIEF));
        };
        match self.terms(&request, method) {
            Ok(terms) => {
                request.extensions_mut().insert(method);
                Either::Right(self.inner.call(request.map(|body| Timed::wrap(body, terms))).map_ok(BRIEF))
            }
            Err(refusal) => Either::Left(answered(Ok(refusal.into_http()))),
        }
    }
}

type Brief = fn(http::Response<Body>) -> http::Response<Body>;
const BRIEF: Brief = brief;

/// A refusal that does not fit in the headers that a client takes reaches nobody. Services keep theirs short; should one
/// not, the beginning of it is told.
fn brief(mut response: http::Response<Body>) -> http::Response<Body> {
    let message = response.headers().get(MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
    if message.len() <= MAX_MESSAGE_BYTES {
        return response;
    }
    let mut kept = &message[..MAX_MESSAGE_BYTES];
    // Neither within an encoded byte nor within a character of several.
    if let Some(at) = kept.iter().rposition(|byte| *byte == b'%').filter(|at| at + 3 > kept.len()) {
        kept = &kept[..at];
    }
    while let [before @ .., b'%', _, _] = kept {
        kept = before;
    }
    if let Ok(short) = HeaderValue::from_bytes(kept) {
        response.headers_mut().insert(MESSAGE, short);
    }
    response
}

/// A body that has to be complete in time.
struct Timed {
    body: Body,
    until: Option<Pin<Box<Sleep>>>,
    time: Duration,
    /// Given back with the last byte.
    newcomer: Option<Newcomer>,
}

impl Timed {
    fn wrap(body: Body, Terms { time, newcomer }: Terms) -> Body {
        let Some(time) = time else { return body };
        let until = Some(Box::pin(sleep_until(Instant::now() + time)));
        Body::new(Self { body, until, time, newcomer })
    }
}

impl http_body::Body for Timed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(until) = &mut self.until
            && until.as_mut().poll(cx).is_ready()
        {
            let sentence = format!("the request was not complete within {:?}", self.time);
            self.newcomer = None;
            return Poll::Ready(Some(Err(Status::deadline_exceeded(sentence))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            (self.until, self.newcomer) = (None, None);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr};

    use http_body::Body as _;

    use super::*;
    use crate::doors::{gate::Gate, limits::Limits};

    /// So many pieces, and then silence, or the end.
    struct Pieces(usize, bool);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            if self.0 == 0 {
                return if self.1 { Poll::Ready(None) } else { Poll::Pending };
            }
            self.0 -= 1;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"piece")))))
        }
    }

    async fn next(body: &mut Body) -> Option<Result<Frame<Bytes>, Status>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    fn newcomer(gate: &Gate) -> Option<Newcomer> {
        Some(gate.newcomer_call(Ipv4Addr::LOCALHOST.into()).unwrap())
    }

    #[test]
    fn a_refusal_that_is_too_long_for_headers_is_cut_between_characters() {
        let told = |text: &str| {
            let response = brief(Status::invalid_argument(text).into_http());
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            status.message().to_owned()
        };
        assert_eq!(told("names: é"), "names: é");
        for long in ["x".repeat(100_000), "xé".repeat(50_000), "xxé".repeat(50_000), "a%".repeat(50_000)] {
            let told = told(&long);
            assert!(!told.is_empty() && long.starts_with(&told), "{told}");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_in_time_is_given_up_and_so_is_its_place() {
        let gate = Gate::new(Limits { newcomer_calls: 1, ..Limits::default() });
        let time = Duration::from_millis(20);
        let terms = Terms { time: Some(time), newcomer: newcomer(&gate) };
        let mut body = Timed::wrap(Body::new(Pieces(2, false)), terms);
        let started = Instant::now();
        assert!(next(&mut body).await.unwrap().is_ok() && next(&mut body).await.unwrap().is_ok());
        assert!(gate.newcomer_call(Ipv4Addr::LOCALHOST.into()).is_err(), "there is one place");
        let status = next(&mut body).await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
        assert!(status.message().contains("within 20ms"), "{status}");
        assert!(started.elapsed() >= time);
        assert!(newcomer(&gate).is_some());
    }

    #[tokio::test]
    async fn a_body_that_is_complete_holds_no_place_while_it_is_answered() {
        let gate = Gate::new(Limits { newcomer_calls: 1, ..Limits::default() });
        let terms = Terms { time: Some(BODY_TIME), newcomer: newcomer(&gate) };
        let mut body = Timed::wrap(Body::new(Pieces(1, true)), terms);
        assert!(next(&mut body).await.unwrap().is_ok());
        assert!(next(&mut body).await.is_none());
        assert!(newcomer(&gate).is_some(), "the place is free with the last byte");
    }
}
