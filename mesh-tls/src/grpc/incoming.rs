//! The server's side: TCP connections become TLS streams, concurrently and within limits.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
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

use crate::{error::causes, peer_spiffe_id};

/// Longest time for one handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most handshakes in flight on one listener; further connections wait in the kernel's backlog.
pub const MAX_HANDSHAKES: usize = 512;
/// Most handshakes in flight from one address; further ones are closed at once, so that one slow or hostile
/// client cannot use up the slots of all others.
pub const MAX_HANDSHAKES_PER_ADDRESS: usize = 64;
/// After an accept error (out of file descriptors, mostly), so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection: in the extensions of every request on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The verified identity; `None` if the client offered no certificate.
    pub spiffe_id: Option<SpiffeId>,
    /// Where the connection comes from.
    pub addr: SocketAddr,
}

/// The peer of a request that came over [`incoming`].
pub fn peer<T>(request: &tonic::Request<T>) -> Option<&PeerInfo> {
    request.extensions().get::<PeerInfo>()
}

/// A TLS connection whose handshake is done.
#[derive(Debug)]
pub struct TlsIncoming {
    stream: TlsStream<TcpStream>,
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
    let (done, accepted) = mpsc::channel(MAX_HANDSHAKES);
    tokio::spawn(accept(listener, TlsAcceptor::from(tls), done));
    Accepted(accepted)
}

struct Accepted(mpsc::Receiver<io::Result<TlsIncoming>>);

impl Stream for Accepted {
    type Item = io::Result<TlsIncoming>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, done: mpsc::Sender<io::Result<TlsIncoming>>) {
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let addresses = Addresses::default();
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
        let Some(address) = addresses.enter(addr.ip()) else {
            tracing::warn!(%addr, "connection closed: too many handshakes in flight from this address");
            continue;
        };
        let (acceptor, done) = (acceptor.clone(), done.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(acceptor, tcp, addr));
            match handshake.await {
                Ok(Ok(stream)) => {
                    drop((slot, address));
                    // An error means that the server has gone.
                    let _ = done.send(Ok(stream)).await;
                }
                Ok(Err(error)) => tracing::info!(%addr, error = causes(&error), "TLS handshake failed"),
                Err(_) => tracing::info!(%addr, "TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}"),
            }
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream, addr: SocketAddr) -> io::Result<TlsIncoming> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await?;
    let spiffe_id = match stream.get_ref().1.peer_certificates() {
        Some(chain) => Some(peer_spiffe_id(chain).map_err(io::Error::other)?),
        None => None,
    };
    Ok(TlsIncoming { stream, peer: PeerInfo { spiffe_id, addr } })
}

/// Handshakes in flight by address.
#[derive(Debug, Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// Counts one handshake until dropped.
#[derive(Debug)]
struct Entered {
    address: IpAddr,
    all: Addresses,
}

impl Addresses {
    fn enter(&self, address: IpAddr) -> Option<Entered> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= MAX_HANDSHAKES_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Entered { address, all: self.clone() })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
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

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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
    use std::net::Ipv4Addr;

    #[test]
    fn one_address_cannot_take_every_slot() {
        let addresses = Addresses::default();
        let one = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let other = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
        let mut held: Vec<_> =
            (0..MAX_HANDSHAKES_PER_ADDRESS).map(|_| addresses.enter(one).unwrap()).collect();
        assert!(addresses.enter(one).is_none());
        assert!(addresses.enter(other).is_some());
        held.pop();
        assert!(addresses.enter(one).is_some());
        held.clear();
        assert!(addresses.0.lock().unwrap().is_empty());
    }
}
