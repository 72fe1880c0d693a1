//! Sockets that speak for others: the kernel gives them packets for any address, and lets them send from any.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use ebpf_shared::redirect::MARK;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6,
    SockaddrStorage, bind, listen, recvmsg, sendto, setsockopt, socket, sockopt,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Ports that are tried until one is free for all four sockets.
const ATTEMPTS: usize = 16;

/// Both transports in both families, at one port of the loopback addresses: nobody reaches them but through the
/// kernel programs, which hand them what is for others.
pub struct Listeners {
    /// The port of all of them.
    pub port: u16,
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: Vec<TcpListener>,
}

impl Listeners {
    /// Binds in the network namespace of the calling thread, which must belong to a tokio runtime.
    ///
    /// # Errors
    /// `CAP_NET_ADMIN` is missing, or no port is free for all four.
    pub fn bind() -> io::Result<Self> {
        let mut failed = io::Error::other("no port was tried");
        for _ in 0..ATTEMPTS {
            match Self::bind_all() {
                Ok(listeners) => return Ok(listeners),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => failed = error,
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    fn bind_all() -> io::Result<Self> {
        let first = udp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))?;
        let port = first.local_addr()?.port();
        let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
        Ok(Self { port, udp: vec![first, udp(v6)?], tcp: vec![tcp(v4)?, tcp(v6)?] })
    }
}

fn udp(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = transparent(at.ip(), SockType::Datagram)?;
    match at {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?,
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

fn tcp(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = transparent(at.ip(), SockType::Stream)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    TcpListener::from_std(std::net::TcpListener::from(socket))
}

fn transparent(family: IpAddr, kind: SockType) -> io::Result<OwnedFd> {
    let v6 = family.is_ipv6();
    let domain = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(domain, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if v6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    // One flag for both families: it belongs to the socket, whichever level sets it.
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    // The programs take a socket for a proxy's by this, and so what it sends for a proxy's answer.
    setsockopt(&socket, sockopt::Mark, &MARK)?;
    Ok(socket)
}

/// In whose name a server is asked: the pod's, but for one at this node's own address (names of services). What that answers a pod
/// does not come in by an interface, and would be the pod's.
fn name(pod: IpAddr, server: SocketAddr) -> IpAddr {
    let is_here = std::net::UdpSocket::bind((server.ip(), 0)).is_ok();
    if is_here { server.ip() } else { pod }
}

/// Asks a server in a pod's name, from a port of the kernel's choice.
pub(super) async fn datagrams_as(pod: IpAddr, server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = transparent(pod, SockType::Datagram)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(name(pod, server), 0)))?;
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
    socket.connect(server).await?;
    Ok(socket)
}

/// The same over a connection.
pub(super) async fn connection_as(pod: IpAddr, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = transparent(pod, SockType::Stream)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(name(pod, server), 0)))?;
    TcpSocket::from_std_stream(std::net::TcpStream::from(socket)).connect(server).await
}

/// A datagram: its length, who sent it, and to whom.
pub(super) type Datagram = (usize, SocketAddr, SocketAddr);

/// Waits for a datagram. `None`: one that does not say where it was sent.
pub(super) async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    let read = || {
        let mut iov = [io::IoSliceMut::new(buffer)];
        let mut control = nix::cmsg_space!(nix::libc::sockaddr_in6);
        let flags = MsgFlags::MSG_TRUNC;
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
        let to = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4OrigDstAddr(to) => Some(v4(&SockaddrIn::from(to))),
            ControlMessageOwned::Ipv6OrigDstAddr(to) => Some(v6(&SockaddrIn6::from(to))),
            _ => None,
        });
        let from = message.address.as_ref().and_then(address);
        Ok(from.zip(to).map(|(from, to)| (message.bytes, from, to)))
    };
    socket.async_io(tokio::io::Interest::READABLE, read).await
}

/// Sends a datagram to a pod as if the server sent it.
pub(super) fn answer_as(server: SocketAddr, pod: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let socket = transparent(server.ip(), SockType::Datagram)?;
    // Several answers of one server may be on their way.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(server))?;
    sendto(socket.as_raw_fd(), bytes, &SockaddrStorage::from(pod), MsgFlags::empty())?;
    Ok(())
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    storage.as_sockaddr_in().map(v4).or_else(|| storage.as_sockaddr_in6().map(v6))
}

fn v4(at: &SockaddrIn) -> SocketAddr {
    SocketAddr::new(at.ip().into(), at.port())
}

fn v6(at: &SockaddrIn6) -> SocketAddr {
    SocketAddr::new(at.ip().into(), at.port())
}
