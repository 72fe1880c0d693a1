//! Requests of this proxy's own: for keys, and to services that decide.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, Uri, Version, header, uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use thiserror::Error;

use super::{BoxError, ConnectError, Lease, UpstreamBody, UpstreamCluster, Want, acquire};
use crate::config::UpstreamProtocol;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// No such cluster.
    #[error("cluster {0:?} does not exist")]
    NoCluster(Arc<str>),
    /// A circuit breaker.
    #[error("the cluster has too many requests")]
    Overflow,
    /// Nobody to send to.
    #[error("no healthy endpoint")]
    NoEndpoint,
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Not within the time given.
    #[error("no answer in time")]
    Timeout,
    /// The answer's body broke off, or is longer than it may be.
    #[error("the answer cannot be read: {0}")]
    Body(BoxError),
}

/// An answer's body. The connection goes back when it is through.
#[derive(Debug)]
pub struct Called {
    incoming: Incoming,
    lease: Option<Lease>,
    _guards: Box<dyn std::fmt::Debug + Send + Sync>,
}

impl Body for Called {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        let over = matches!(polled, Poll::Ready(None)) || self.incoming.is_end_stream();
        if over && let Some(lease) = self.lease.take() {
            lease.finish();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Sends a request, in the form of HTTP/1.1 or HTTP/2 that its version says, to one endpoint of a cluster.
///
/// # Errors
/// See [`CallError`]. There is no time limit here.
pub async fn call(
    cluster: &Arc<UpstreamCluster>,
    request: Request<tonic::body::Body>,
    want: Want,
) -> Result<Response<Called>, CallError> {
    let Some(permit) = cluster.requests.try_take() else {
        cluster.stats.overflow.fetch_add(1, Ordering::Relaxed);
        return Err(CallError::Overflow);
    };
    let Some(host) = cluster.choose(&[]) else {
        cluster.stats.no_endpoint.fetch_add(1, Ordering::Relaxed);
        return Err(CallError::NoEndpoint);
    };
    let serving = cluster.begin(&host);
    let mut request = request.map(UpstreamBody::Own);
    // An idle connection may have been closed by the other side meanwhile.
    let target = request.uri().clone();
    for _ in 0..2 {
        *request.uri_mut() = target.clone();
        let mut lease = acquire(cluster, &host, want).await?;
        form(&mut request, lease.is_http2());
        match lease.send(request).await {
            Ok(response) => {
                cluster.stats.codes.count(response.status().as_u16());
                let guards = Box::new((permit, serving));
                return Ok(response.map(|incoming| Called { incoming, lease: Some(lease), _guards: guards }));
            }
            Err(super::SendError::NotSent(back)) => request = *back,
            Err(super::SendError::RefusedStream(_)) => {
                return Err(CallError::Broken("refused stream".into()));
            }
            Err(super::SendError::Reset(text)) => return Err(CallError::Broken(text)),
        }
    }
    Err(CallError::Broken("closed by the other side".into()))
}

/// Writes target and host in the form of the version.
fn form(request: &mut Request<UpstreamBody>, http2: bool) {
    let authority = request.uri().authority().cloned();
    if http2 {
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
        return;
    }
    *request.version_mut() = Version::HTTP_11;
    if let Some(host) = authority.and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
    let mut parts = uri::Parts::default();
    parts.path_and_query = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// Sends a request and reads the answer, which is at most `limit` bytes long.
///
/// # Errors
/// See [`CallError`].
pub async fn fetch(
    cluster: &Arc<UpstreamCluster>,
    request: Request<Bytes>,
    limit: usize,
    timeout: std::time::Duration,
) -> Result<Response<Bytes>, CallError> {
    let want = match cluster.config.protocol {
        UpstreamProtocol::Http2 => Want::Http2,
        UpstreamProtocol::Auto => Want::Any,
        UpstreamProtocol::Http1 | UpstreamProtocol::Downstream => Want::Http1,
    };
    let asking = async {
        let request = request.map(|bytes| tonic::body::Body::new(http_body_util::Full::new(bytes)));
        let (parts, body) = call(cluster, request, want).await?.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(CallError::Body)?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    tokio::time::timeout(timeout, asking).await.unwrap_or(Err(CallError::Timeout))
}

/// A cluster as the channel of a gRPC client.
#[derive(Debug, Clone)]
pub struct GrpcCluster(pub Arc<UpstreamCluster>);

impl tower::Service<Request<tonic::body::Body>> for GrpcCluster {
    type Response = Response<Called>;
    type Error = CallError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let cluster = self.0.clone();
        Box::pin(async move { call(&cluster, request, Want::Http2).await })
    }
}
