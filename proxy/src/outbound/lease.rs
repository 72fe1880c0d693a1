//! A connection, or a share of one, for one request.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};

use super::{Host, UpstreamBody, pool::IdleH1};

/// See the module. Dropped before the answer's end, an HTTP/1.1 connection is closed and an HTTP/2 stream reset.
#[derive(Debug)]
pub enum Lease {
    /// All of it.
    H1(H1Lease),
    /// One stream.
    H2(H2Lease),
}

/// How sending failed.
#[derive(Debug)]
pub enum SendError {
    /// Nothing was sent: here is the request again.
    NotSent(Box<Request<UpstreamBody>>),
    /// The endpoint says that it did nothing (RFC 9113 8.7).
    RefusedStream(String),
    /// There is no answer, and nobody knows what was done.
    Reset(String),
}

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub struct H1Lease {
    connection: IdleH1,
    host: Arc<Host>,
    reused: bool,
}

impl H1Lease {
    pub(super) fn new(connection: IdleH1, host: Arc<Host>, reused: bool) -> Self {
        Self { connection, host, reused }
    }

    pub(super) fn finish(mut self) {
        self.connection.since = Instant::now();
        self.connection.requests += 1;
        self.host.pool.put(self.connection);
    }
}

/// A stream of an HTTP/2 connection.
#[derive(Debug)]
pub struct H2Lease {
    sender: http2::SendRequest<UpstreamBody>,
    active: Arc<AtomicUsize>,
}

impl H2Lease {
    pub(super) fn new(sender: http2::SendRequest<UpstreamBody>, active: Arc<AtomicUsize>) -> Self {
        Self { sender, active }
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        self.active.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Lease {
    /// Whether requests must be written in the form of HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::H2(_))
    }

    /// Whether the connection has served another request before.
    pub fn reused(&self) -> bool {
        match self {
            Self::H1(lease) => lease.reused,
            Self::H2(_) => true,
        }
    }

    /// Sends the request and waits for the answer's head.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&mut self, request: Request<UpstreamBody>) -> Result<Response<Incoming>, SendError> {
        let result = match self {
            Self::H1(lease) => lease.connection.sender.try_send_request(request).await,
            Self::H2(lease) => lease.sender.try_send_request(request).await,
        };
        result.map_err(|mut error| match error.take_message() {
            Some(request) => SendError::NotSent(Box::new(request)),
            None => classify(&error.into_error()),
        })
    }

    /// The answer is through: the connection can serve others.
    pub fn finish(self) {
        match self {
            Self::H1(lease) => lease.finish(),
            Self::H2(lease) => drop(lease),
        }
    }
}

fn classify(error: &hyper::Error) -> SendError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>()
            && h2.reason() == Some(h2::Reason::REFUSED_STREAM)
        {
            return SendError::RefusedStream(h2.to_string());
        }
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    SendError::Reset(text)
}
