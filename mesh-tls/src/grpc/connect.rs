//! The client's side of a gRPC connection.

use std::{
    io,
    path::Path,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::{Service, service_fn};

use crate::{
    Error,
    error::{causes, handshake_error},
};

/// Longest time for TCP and TLS together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that answers no ping for interval plus timeout is given up: half-open ones are found out.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that one stream may have unread: 5 MB/s over a round trip of 100 ms.
const STREAM_WINDOW: u32 = 512 << 10;
/// Bytes that all streams of a connection may have unread. An agent relays the streams of its node's proxies over
/// one connection: as long as fewer than 128 of them don't read, none holds up the others.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// Connects to `addr` (host:port). The channel reconnects by itself, each time with the certificate and the
/// bundles of that moment.
///
/// # Errors
/// A malformed address or name, no connection, or a peer that was not accepted.
pub async fn connect(addr: &str, tls: Arc<ClientConfig>, server_name: &str) -> Result<Channel, Error> {
    let (endpoint, connector) = prepare(addr, tls, server_name)?;
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|e| Error::Connect { address: addr.to_owned(), reason: causes(&e) })
}

/// Like [`connect`], but connects at the first call.
///
/// # Errors
/// A malformed address or name.
pub fn connect_lazy(addr: &str, tls: Arc<ClientConfig>, server_name: &str) -> Result<Channel, Error> {
    let (endpoint, connector) = prepare(addr, tls, server_name)?;
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Connects to a unix socket.
///
/// # Errors
/// Nobody listens there, or it may not be used.
pub async fn connect_unix(path: impl AsRef<Path>) -> Result<Channel, Error> {
    let path = path.as_ref().to_owned();
    let address = path.display().to_string();
    // The authority of requests; the path of the socket is no URI.
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector(service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        }))
        .await
        .map_err(|e| Error::Connect { address, reason: causes(&e) })
}

fn prepare(addr: &str, tls: Arc<ClientConfig>, server_name: &str) -> Result<(Endpoint, Connector), Error> {
    let bad = |reason: String| Error::Connect { address: addr.to_owned(), reason };
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| bad(format!("{server_name:?} is no server name")))?;
    let port = addr.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse::<u16>().ok()?;
        (!host.is_empty() && port != 0).then_some(port)
    });
    if port.is_none() {
        return Err(bad("the address is not host:port".to_owned()));
    }
    let endpoint = Endpoint::from_shared(format!("https://{addr}"))
        .map_err(|e| bad(causes(&e)))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    Ok((endpoint, Connector { target: addr.into(), name, tls: TlsConnector::from(tls) }))
}

/// TCP, then TLS, to one place: the URI that tonic passes only names the authority of requests.
#[derive(Clone)]
struct Connector {
    target: Arc<str>,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { target, name, tls } = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect(&*target).await?;
            tcp.set_nodelay(true)?;
            let stream = tls.connect(name, tcp).await;
            Ok(TokioIo::new(stream.map_err(|e| io::Error::other(handshake_error(&e)))?))
        })
    }
}
