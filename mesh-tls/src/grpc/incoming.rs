//! The server's side: TCP connections become TLS streams, concurrently and within limits.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use mesh_model::identity::SpiffeId;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use super::{cork::Corked, refusals::Refusals};
use crate::{Sources, handshake_error, peer_spiffe_id, registration};

/// Longest time for one handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most handshakes in flight on one listener; further connections wait in the kernel's backlog.
pub const MAX_HANDSHAKES: usize = 512;
/// Most handshakes in flight from one address. Beyond, the oldest of that address makes room: one slow or hostile
/// client can't use up the slots of all others, nor keep out those that share its address.
pub const MAX_HANDSHAKES_PER_ADDRESS: usize = 64;
/// After an accept error (out of file descriptors, mostly), so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection: in the extensions of every request on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The verified identity; `None` if the client offered no certificate.
    pub spiffe_id: Option<SpiffeId>,
    /// The registration of the node that its certificate comes of.
    pub registration: Option<u64>,
    /// Where the connection comes from.
    pub addr: SocketAddr,
}

/// Handshakes of this process that failed, took too long or were too many at once.
pub fn handshakes_refused() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}

static REFUSED: AtomicU64 = AtomicU64::new(0);

/// The peer of a request that came over [`incoming`].
pub fn peer<T>(request: &tonic::Request<T>) -> Option<&PeerInfo> {
    request.extensions().get::<PeerInfo>()
}

/// A TLS connection whose handshake is done.
#[derive(Debug)]
pub struct TlsIncoming {
    stream: Corked<TlsStream<TcpStream>>,
    peer: PeerInfo,
}

impl TlsIncoming {
    /// Who is at the other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }
}

impl Connected for TlsIncoming {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

/// Connections for tonic's `serve_with_incoming`. Handshakes run concurrently; those that fail or take longer
/// than [`HANDSHAKE_TIMEOUT`] end with a log line and are not seen here. Dropping the stream closes the
/// listener.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
) -> impl Stream<Item = io::Result<TlsIncoming>> + Send + 'static {
    incoming_within(listener, tls, HANDSHAKE_TIMEOUT)
}

fn incoming_within(listener: TcpListener, tls: Arc<ServerConfig>, timeout: Duration) -> Accepted {
    let (done, accepted) = mpsc::channel(MAX_HANDSHAKES);
    tokio::spawn(accept(listener, TlsAcceptor::from(tls), timeout, done));
    Accepted(accepted)
}

struct Accepted(mpsc::Receiver<io::Result<TlsIncoming>>);

impl Stream for Accepted {
    type Item = io::Result<TlsIncoming>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    timeout: Duration,
    done: mpsc::Sender<io::Result<TlsIncoming>>,
) {
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let addresses = Sources::at_most(MAX_HANDSHAKES_PER_ADDRESS);
    let refusals = Arc::new(Refusals::default());
    loop {
        let next = async {
            // The semaphore is never closed, so that an error can only mean the end.
            let slot = slots.clone().acquire_owned().await.ok()?;
            Some((slot, listener.accept().await))
        };
        let (slot, (tcp, addr)) = tokio::select! {
            () = done.closed() => return,
            next = next => match next {
                Some((slot, Ok(connection))) => (slot, connection),
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
                None => return,
            },
        };
        let address = addresses.enter_in_place_of_the_oldest(addr.ip());
        let (acceptor, done, refusals) = (acceptor.clone(), done.clone(), refusals.clone());
        tokio::spawn(async move {
            let reason = tokio::select! {
                done = tokio::time::timeout(timeout, handshake(acceptor, tcp, addr)) => match done {
                    Ok(Ok(stream)) => Ok(stream),
                    Ok(Err(error)) => Err(handshake_error(&error)),
                    Err(_) => Err(format!("it took longer than {timeout:?}")),
                },
                () = address.evicted() => {
                    Err(format!("more than {MAX_HANDSHAKES_PER_ADDRESS} are in flight from this address"))
                }
            };
            match reason {
                Ok(stream) => {
                    drop((slot, address));
                    // An error means that the server has gone.
                    let _ = done.send(Ok(stream)).await;
                }
                Err(error) => {
                    REFUSED.fetch_add(1, Ordering::Relaxed);
                    if let Some(unsaid) = refusals.worth_a_line(addr.ip()) {
                        tracing::info!(%addr, error, unsaid, "TLS handshake failed");
                    }
                }
            }
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream, addr: SocketAddr) -> io::Result<TlsIncoming> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await?;
    let (spiffe_id, registration) = match stream.get_ref().1.peer_certificates() {
        Some(chain) => {
            (Some(peer_spiffe_id(chain).map_err(io::Error::other)?), chain.first().and_then(registration))
        }
        None => (None, None),
    };
    Ok(TlsIncoming { stream: Corked::new(stream), peer: PeerInfo { spiffe_id, registration, addr } })
}

impl AsyncRead for TlsIncoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsIncoming {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ALPN_H2, ClientAuth, Identity, PeerPolicy, certified, client_config,
        fixtures::{Ca, bundles},
        server_config, shared_bundles, shared_identity,
    };
    use futures::StreamExt;
    use rustls_pki_types::ServerName;
    use std::{net::Ipv4Addr, time::SystemTime};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    const WEB: &str = "spiffe://west.example/ns/shop/sa/web";

    fn door(west: &Ca) -> Arc<ServerConfig> {
        let identity = certified(west.leaf("spiffe://west.example/isthmus/replica/1")).unwrap();
        let trusted = shared_bundles(bundles(&[west]));
        server_config(shared_identity(Some(identity)), trusted, ClientAuth::Optional, &[ALPN_H2]).unwrap()
    }

    fn connector(west: &Ca, identity: Option<Identity>) -> TlsConnector {
        let identity = identity.map(|i| shared_identity(Some(certified(i).unwrap())));
        let trusted = shared_bundles(bundles(&[west]));
        client_config(identity, trusted, PeerPolicy::AnyMeshIdentity, &[ALPN_H2]).unwrap().into()
    }

    #[tokio::test]
    async fn a_silent_client_blocks_nobody_and_each_peer_is_known() {
        let west = Ca::at("west.example", SystemTime::now());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut accepted = std::pin::pin!(incoming(listener, door(&west)));
        let _silent = TcpStream::connect(addr).await.unwrap();
        for identity in [Some(west.leaf(WEB)), None] {
            let named = identity.is_some();
            let tcp = TcpStream::connect(addr).await.unwrap();
            let local = tcp.local_addr().unwrap();
            let name = ServerName::try_from("replica").unwrap();
            let connecting = connector(&west, identity).connect(name, tcp);
            let (client, server) = tokio::join!(connecting, accepted.next());
            let (mut client, mut server) = (client.unwrap(), server.unwrap().unwrap());
            let wanted = named.then(|| SpiffeId::parse(WEB).unwrap());
            assert_eq!(
                server.connect_info(),
                PeerInfo { spiffe_id: wanted, registration: None, addr: local }
            );
            client.write_all(b"hello").await.unwrap();
            let mut read = [0; 5];
            server.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"hello");
        }
    }

    #[tokio::test]
    async fn a_silent_client_is_disconnected_in_the_end() {
        let west = Ca::at("west.example", SystemTime::now());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let _accepted = incoming_within(listener, door(&west), Duration::from_millis(20));
        let mut silent = TcpStream::connect(addr).await.unwrap();
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_failed_handshake_is_not_seen_by_the_server() {
        let west = Ca::at("west.example", SystemTime::now());
        let impostor = Ca::at("west.example", SystemTime::now());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut accepted = std::pin::pin!(incoming(listener, door(&west)));
        let name = || ServerName::try_from("replica").unwrap();
        let bad = connector(&west, Some(impostor.leaf(WEB)));
        let mut refused = bad.connect(name(), TcpStream::connect(addr).await.unwrap()).await.unwrap();
        assert!(refused.read(&mut [0; 1]).await.is_err(), "the client hears of it by an alert");
        let good = connector(&west, Some(west.leaf(WEB)));
        let tcp = TcpStream::connect(addr).await.unwrap();
        let local = tcp.local_addr().unwrap();
        let (_client, server) = tokio::join!(good.connect(name(), tcp), accepted.next());
        assert_eq!(server.unwrap().unwrap().peer().addr, local);
    }

    #[tokio::test]
    async fn a_refused_server_is_named_by_the_error_of_connect() {
        let (west, impostor) =
            (Ca::at("west.example", SystemTime::now()), Ca::at("west.example", SystemTime::now()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let _accepted = incoming(listener, door(&impostor));
        let trusted = shared_bundles(bundles(&[&west]));
        let tls = client_config(None, trusted, PeerPolicy::AnyMeshIdentity, &[ALPN_H2]).unwrap();
        let error = crate::grpc::connect(&addr, tls.clone(), "replica").await.unwrap_err().to_string();
        assert!(
            error.contains(&addr) && error.contains("spiffe://west.example/isthmus/replica/1"),
            "{error}"
        );
        for bad in ["nowhere", ":80", "host:0", "host:99999", "ho st:80"] {
            assert!(crate::grpc::connect(bad, tls.clone(), "replica").await.is_err(), "{bad}");
        }
    }
}
