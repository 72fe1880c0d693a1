//! A transparent proxy: hands on what it gets, byte by byte, in the name of whoever sent it.

use std::io::{IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::thread::JoinHandle;
use std::time::Duration;

use ebpf_shared::redirect::MARK;
use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6,
    SockaddrStorage, bind, connect, recvmsg, setsockopt, socket, sockopt,
};

/// What came by: who sent it, and to whom.
pub type Seen = (SocketAddr, SocketAddr);

/// How often a thread that waits looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);
/// More than a query takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// A proxy in this thread's network namespace, with a listener of each transport and family, all at one port. Ends, and
/// closes its sockets, when dropped.
pub struct Proxy {
    pub port: u16,
    pub seen: Receiver<Seen>,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Hands everything on to where it was sent to.
    pub fn start(port: u16) -> Self {
        Self::leading(port, |to| to)
    }

    /// Hands on to another place what was sent to one.
    pub fn leading(port: u16, aim: fn(SocketAddr) -> SocketAddr) -> Self {
        let (tell, seen) = channel();
        let ends = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let at = SocketAddr::new(address, port);
            let listener = bound(SockType::Stream, at);
            nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(64).expect("small"))
                .expect("bound");
            let listener = TcpListener::from(listener);
            listener.set_nonblocking(true).expect("settable");
            let (told, end) = (tell.clone(), ends.clone());
            threads.push(std::thread::spawn(move || serve_connections(&listener, &told, &end, aim)));
            let socket = UdpSocket::from(datagrams(at));
            socket.set_read_timeout(Some(LOOK)).expect("settable");
            let (told, end) = (tell.clone(), ends.clone());
            threads.push(std::thread::spawn(move || serve_datagrams(&socket, &told, &end, aim)));
        }
        Self { port, seen, ends, threads }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_connections(
    listener: &TcpListener,
    told: &Sender<Seen>,
    ends: &AtomicBool,
    aim: fn(SocketAddr) -> SocketAddr,
) {
    let mut open: Vec<TcpStream> = Vec::new();
    while !ends.load(Ordering::SeqCst) {
        let Ok((down, from)) = listener.accept() else {
            std::thread::park_timeout(LOOK);
            continue;
        };
        down.set_nonblocking(false).expect("settable");
        let to = down.local_addr().expect("connected");
        let _ = told.send((from, to));
        open.push(down.try_clone().expect("a descriptor"));
        std::thread::spawn(move || {
            let up = bound(SockType::Stream, SocketAddr::new(from.ip(), 0));
            if connect(up.as_raw_fd(), &SockaddrStorage::from(aim(to))).is_ok() {
                carry(&down, &TcpStream::from(up));
            }
        });
    }
    for stream in open {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn carry(down: &TcpStream, up: &TcpStream) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    };
    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    let (there, back) = ((clone(down), clone(up)), (clone(up), clone(down)));
    let sending = std::thread::spawn(move || copy(there.0, there.1));
    copy(back.0, back.1);
    let _ = sending.join();
}

fn serve_datagrams(
    socket: &UdpSocket,
    told: &Sender<Seen>,
    ends: &AtomicBool,
    aim: fn(SocketAddr) -> SocketAddr,
) {
    let mut buffer = vec![0; 65_536];
    while !ends.load(Ordering::SeqCst) {
        let Some((length, from, to)) = receive(socket, &mut buffer) else { continue };
        let _ = told.send((from, to));
        let query = buffer[..length].to_vec();
        std::thread::spawn(move || {
            let up = UdpSocket::from(bound(SockType::Datagram, SocketAddr::new(from.ip(), 0)));
            up.set_read_timeout(Some(PATIENCE)).expect("settable");
            let mut answer = vec![0; 65_536];
            if up.connect(aim(to)).and_then(|()| up.send(&query)).is_err() {
                return;
            }
            if let Ok(length) = up.recv(&mut answer) {
                let back = UdpSocket::from(bound(SockType::Datagram, to));
                let _ = back.send_to(&answer[..length], from);
            }
        });
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr, SocketAddr)> {
    let mut iov = [IoSliceMut::new(buffer)];
    let mut control = cmsg_space!(nix::libc::sockaddr_in6);
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::empty())
            .ok()?;
    let to = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4OrigDstAddr(to) => {
            let to = SockaddrIn::from(to);
            Some(SocketAddr::new(to.ip().into(), to.port()))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(to) => {
            let to = SockaddrIn6::from(to);
            Some(SocketAddr::new(to.ip().into(), to.port()))
        }
        _ => None,
    })?;
    let from = message.address.as_ref()?;
    let v4 = from.as_sockaddr_in().map(|at| SocketAddr::new(at.ip().into(), at.port()));
    let v6 = from.as_sockaddr_in6().map(|at| SocketAddr::new(at.ip().into(), at.port()));
    Some((message.bytes, v4.or(v6)?, to))
}

fn datagrams(at: SocketAddr) -> OwnedFd {
    let socket = transparent(SockType::Datagram, at.ip());
    match at {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true).expect("settable"),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true).expect("settable"),
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at)).expect("free");
    socket
}

fn bound(kind: SockType, at: SocketAddr) -> OwnedFd {
    let socket = transparent(kind, at.ip());
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at)).expect("free");
    socket
}

/// A proxy's socket that speaks for another.
pub fn datagrams_as(at: SocketAddr) -> UdpSocket {
    bound(SockType::Datagram, at).into()
}

fn transparent(kind: SockType, family: IpAddr) -> OwnedFd {
    let domain = if family.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(domain, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    if family.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true).expect("settable");
    }
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("settable");
    setsockopt(&socket, sockopt::IpTransparent, &true).expect("needs root");
    setsockopt(&socket, sockopt::Mark, &MARK).expect("needs root");
    socket
}
