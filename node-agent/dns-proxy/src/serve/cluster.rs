//! Answers for names of the cluster on addresses of the node, and asks others for all other names.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use super::{
    counts::{Counts, Fate},
    slots::Slots,
    tcp::read,
};
use crate::{
    Transport,
    cluster::{Domains, Reply, Zone, answer, failure},
    message::{self, Code, MAX_QUERY},
};

/// What one server is given, before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// A client that sends nothing for so long is left (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// After a socket had none to give.
const PAUSE: Duration = Duration::from_millis(100);
/// Datagrams of others that are read while an answer is waited for.
const STRANGERS: usize = 16;

/// Both transports at each address.
pub struct ClusterListeners {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl ClusterListeners {
    /// Binds in the network namespace of the calling thread, which must belong to a tokio runtime. The addresses need not be
    /// on an interface: whether packets to them come here is for routes to say.
    ///
    /// # Errors
    /// Names the address: another process has it, for instance.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Self, String> {
        let mut listeners = Self { udp: Vec::new(), tcp: Vec::new() };
        for at in addresses {
            let failed = |error: io::Error| format!("{at}: {error}");
            let udp = open(*at, SockType::Datagram).map_err(failed)?;
            let tcp = open(*at, SockType::Stream).map_err(failed)?;
            listeners.udp.push(UdpSocket::from_std(std::net::UdpSocket::from(udp)).map_err(failed)?);
            listeners.tcp.push(TcpListener::from_std(std::net::TcpListener::from(tcp)).map_err(failed)?);
        }
        Ok(listeners)
    }
}

fn open(at: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let domain = if at.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(domain, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if at.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    // One flag for both families: it belongs to the socket, whichever level sets it.
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    // (Of UDP: the proxy answers in this address's name as well, to pods that ask it by way of the proxy.)
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    if kind == SockType::Stream {
        listen(&socket, Backlog::new(BACKLOG)?)?;
    }
    Ok(socket)
}

/// The resolver of one node.
pub struct Cluster {
    /// What is known; written by whoever is told.
    pub zone: RwLock<Zone>,
    /// What became of questions.
    pub counts: Counts,
    domains: Domains,
    upstreams: Vec<SocketAddr>,
    slots: Slots,
}

impl Cluster {
    /// A resolver that knows nothing yet. `upstreams` are asked one after the other for what is not of the cluster; none: that is
    /// refused.
    #[must_use]
    pub fn new(domains: Domains, upstreams: Vec<SocketAddr>) -> Arc<Self> {
        Arc::new(Self {
            zone: RwLock::default(),
            counts: Counts::default(),
            domains,
            upstreams,
            slots: Slots::default(),
        })
    }

    /// Serves for ever. Stop it by dropping the future: what is under way is given up.
    pub async fn serve(self: Arc<Self>, listeners: ClusterListeners) {
        let mut tasks = JoinSet::new();
        for socket in listeners.udp {
            tasks.spawn(datagrams(self.clone(), Arc::new(socket)));
        }
        for listener in listeners.tcp {
            tasks.spawn(connections(self.clone(), listener));
        }
        while tasks.join_next().await.is_some() {}
    }

    fn answer(&self, over: Transport, query: &[u8]) -> Reply {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        let reply = answer(&zone, &self.domains, over, query);
        if let Reply::Answer(answer) = &reply {
            self.counts.note(Fate::of_own(answer));
        }
        reply
    }

    /// Asks the servers outside, and answers that it failed if none does.
    async fn forward(&self, over: Transport, query: &[u8]) -> Option<Vec<u8>> {
        if self.upstreams.is_empty() {
            self.counts.note(Fate::Refused);
            return failure(query, Code::Refused);
        }
        for server in &self.upstreams {
            let asked = match over {
                Transport::Udp => timeout(PATIENCE, by_datagram(*server, query)).await,
                Transport::Tcp => timeout(PATIENCE, by_connection(*server, query)).await,
            };
            match asked {
                Ok(Ok(answer)) => {
                    self.counts.note(Fate::Forwarded);
                    return Some(answer);
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "no answer"),
                Err(_) => tracing::debug!(%server, "no answer in time"),
            }
        }
        self.counts.note(Fate::Failed);
        failure(query, Code::ServerFailure)
    }
}

async fn datagrams(cluster: Arc<Cluster>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(got) => got,
            Err(error) => {
                // Of an answer that nobody took, for instance.
                tracing::debug!(%error, "a query could not be received");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let query = buffer.get(..length).unwrap_or_default();
        match cluster.answer(Transport::Udp, query) {
            Reply::Answer(answer) => send(&socket, client, &answer).await,
            Reply::Nothing => {}
            Reply::Forward => {
                tokio::spawn(elsewhere(cluster.clone(), socket.clone(), client, query.to_vec()));
            }
        }
    }
}

async fn elsewhere(cluster: Arc<Cluster>, socket: Arc<UdpSocket>, client: SocketAddr, query: Vec<u8>) {
    // Too many of one client: it asks again.
    let Some(_slot) = cluster.slots.take(client.ip()) else {
        cluster.counts.note(Fate::Crowded);
        return;
    };
    if let Some(answer) = cluster.forward(Transport::Udp, &query).await {
        send(&socket, client, &answer).await;
    }
}

async fn send(socket: &UdpSocket, client: SocketAddr, answer: &[u8]) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "an answer could not be sent");
    }
}

async fn connections(cluster: Arc<Cluster>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                tokio::spawn(connection(cluster.clone(), stream, client));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(cluster: Arc<Cluster>, mut stream: TcpStream, client: SocketAddr) {
    let Some(_slot) = cluster.slots.take(client.ip()) else {
        cluster.counts.note(Fate::Crowded);
        return;
    };
    if let Err(error) = converse(&cluster, &mut stream).await {
        tracing::debug!(%client, %error, "a connection ended");
    }
}

async fn converse(cluster: &Cluster, stream: &mut TcpStream) -> io::Result<()> {
    while let Some(query) = timeout(IDLE, read(stream, MAX_QUERY)).await?? {
        let answer = match cluster.answer(Transport::Tcp, &query) {
            Reply::Answer(answer) => Some(answer),
            Reply::Nothing => None,
            Reply::Forward => cluster.forward(Transport::Tcp, &query).await,
        };
        let Some(framed) = answer.as_deref().and_then(message::framed) else { return Ok(()) };
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// Asks from a port and under a number that nobody can guess.
async fn by_datagram(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let asked = numbered(query);
    socket.send(&asked).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..STRANGERS {
        let length = socket.recv(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default();
        if message::answers(&asked, bytes) {
            return Ok(renumbered(bytes.to_vec(), query));
        }
    }
    Err(io::Error::other("many answers, none of them to this question"))
}

async fn by_connection(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let asked = numbered(query);
    let framed = message::framed(&asked).ok_or(io::ErrorKind::InvalidData)?;
    stream.write_all(&framed).await?;
    let bytes = read(&mut stream, usize::from(u16::MAX)).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if message::answers(&asked, &bytes) {
        Ok(renumbered(bytes, query))
    } else {
        Err(io::Error::other("the server answered another question"))
    }
}

fn numbered(query: &[u8]) -> Vec<u8> {
    let mut query = query.to_vec();
    message::renumber(&mut query, rand::random());
    query
}

/// Under the client's number.
fn renumbered(mut answer: Vec<u8>, query: &[u8]) -> Vec<u8> {
    if let Some([high, low]) = query.get(..2).and_then(|id| <[u8; 2]>::try_from(id).ok()) {
        message::renumber(&mut answer, u16::from_be_bytes([high, low]));
    }
    answer
}
