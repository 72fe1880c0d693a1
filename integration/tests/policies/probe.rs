//! One packet and its answer, from within a network namespace.

use std::{
    fs::File,
    io::{Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Tcp(u16),
    Udp(u16),
    Sctp(u16),
    Echo,
    /// A message of another type.
    Icmp(u8),
}

impl What {
    /// As flows name the protocol, and `explain` reads it.
    pub fn protocol(self, v6: bool) -> &'static str {
        match self {
            Self::Tcp(_) => "TCP",
            Self::Udp(_) => "UDP",
            Self::Sctp(_) => "SCTP",
            Self::Echo | Self::Icmp(_) if v6 => "ICMPv6",
            Self::Echo | Self::Icmp(_) => "ICMP",
        }
    }

    /// 0 of ICMP.
    pub fn port(self) -> u16 {
        match self {
            Self::Tcp(port) | Self::Udp(port) | Self::Sctp(port) => port,
            Self::Echo | Self::Icmp(_) => 0,
        }
    }
}

/// Tells what has no port of its own apart, as a flow and where it arrives.
static NUMBER: AtomicU16 = AtomicU16::new(40_000);

/// What became of it.
#[derive(Debug)]
pub struct Came {
    /// It arrived (and but for SCTP and other ICMP than echo the answer did).
    pub through: bool,
    /// 0 of ICMP.
    pub source_port: u16,
}

/// Runs in a network namespace, in a thread of its own.
pub fn within<T: Send>(namespace: &str, run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let enter = || {
            let file = File::open(format!("/run/netns/{namespace}")).context(namespace.to_owned())?;
            setns(file, CloneFlags::CLONE_NEWNET)?;
            run()
        };
        scope.spawn(enter).join().map_err(|_| anyhow!("a probe panicked"))?
    })
}

/// Asks from `source`, if one is named, and waits for as long.
pub fn ask(what: What, source: Option<IpAddr>, to: IpAddr, patience: Duration) -> Result<Came> {
    match what {
        What::Tcp(port) => tcp(source, SocketAddr::new(to, port), patience),
        What::Udp(port) => udp(source, SocketAddr::new(to, port), patience),
        What::Echo => echo(source, to, patience),
        What::Sctp(_) | What::Icmp(_) => bail!("this is seen where it arrives: see one_way()"),
    }
}

fn any(to: IpAddr) -> IpAddr {
    if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) }
}

fn socket(kind: Type, protocol: Protocol, source: Option<IpAddr>, to: IpAddr) -> Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.bind(&SocketAddr::new(source.unwrap_or_else(|| any(to)), 0).into())?;
    Ok(socket)
}

fn port_of(socket: &Socket) -> u16 {
    socket.local_addr().ok().and_then(|local| local.as_socket()).map_or(0, |local| local.port())
}

fn tcp(source: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Result<Came> {
    let socket = socket(Type::STREAM, Protocol::TCP, source, to.ip())?;
    let connected = socket.connect_timeout(&to.into(), patience);
    let source_port = port_of(&socket);
    let through = connected.is_ok() && says(&mut socket.into(), patience);
    Ok(Came { through, source_port })
}

/// Sends a request on a connection, and says whether anything of an answer came.
pub fn says(stream: &mut std::net::TcpStream, patience: Duration) -> bool {
    let ask = b"GET / HTTP/1.1\r\nHost: probe\r\nContent-Length: 0\r\n\r\n";
    let mut answer = [0; 1024];
    stream.set_read_timeout(Some(patience)).is_ok()
        && stream.write_all(ask).is_ok()
        && stream.read(&mut answer).is_ok_and(|length| length > 0)
}

fn udp(source: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Result<Came> {
    let socket = socket(Type::DGRAM, Protocol::UDP, source, to.ip())?;
    socket.connect(&to.into())?;
    let source_port = port_of(&socket);
    socket.set_read_timeout(Some(patience))?;
    let through = socket.send(b"a datagram").is_ok() && socket.recv(&mut [MaybeUninit::uninit(); 64]).is_ok();
    Ok(Came { through, source_port })
}

fn echo(source: Option<IpAddr>, to: IpAddr, patience: Duration) -> Result<Came> {
    let v6 = to.is_ipv6();
    let (protocol, request, reply) = if v6 { (Protocol::ICMPV6, 128, 129) } else { (Protocol::ICMPV4, 8, 0) };
    let socket = socket(Type::RAW, protocol, source, to)?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    let (message, number) = icmp(request);
    let through = socket.send(&message).is_ok()
        && arrives(&socket, patience, |packet| {
            let said = if v6 { packet } else { packet.get(20..).unwrap_or_default() };
            said.first() == Some(&reply) && said.get(4..6) == Some(&number)
        })?;
    Ok(Came { through, source_port: 0 })
}

/// A message of a type, with a number of its own as the identifier.
fn icmp(kind: u8) -> ([u8; 20], [u8; 2]) {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut message = [0; 20];
    message[0] = kind;
    message[4..6].copy_from_slice(&number);
    message[8..12].copy_from_slice(b"echo");
    message[12..14].copy_from_slice(&number);
    // RFC 1071; of IPv6 the kernel does it, which knows the addresses.
    let sum: u32 = message.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    (message, number)
}

/// Sends what has no answer, SCTP or ICMP of some type, from one namespace, and says whether it arrives in the other.
pub fn one_way(
    what: What,
    (from, source): (&str, IpAddr),
    (at, to): (&str, IpAddr),
    patience: Duration,
) -> Result<Came> {
    match what {
        What::Sctp(port) => sctp((from, source), (at, to), port, patience),
        What::Icmp(kind) => {
            let protocol = if to.is_ipv6() { Protocol::ICMPV6 } else { Protocol::ICMPV4 };
            let ear = within(at, || socket(Type::RAW, protocol, Some(to), to))?;
            let (message, _) = icmp(kind);
            within(from, || {
                let socket = socket(Type::RAW, protocol, Some(source), to)?;
                Ok(socket.send_to(&message, &SocketAddr::new(to, 0).into())?)
            })?;
            // But for the checksum, which of IPv6 is the kernel's.
            let through = arrives(&ear, patience, |packet| packet.ends_with(&message[4..]))?;
            Ok(Came { through, source_port: 0 })
        }
        What::Tcp(_) | What::Udp(_) | What::Echo => bail!("this is answered: see ask()"),
    }
}

/// An INIT. The kernel need not know the protocol.
fn sctp(
    (from, source): (&str, IpAddr),
    (at, to): (&str, IpAddr),
    port: u16,
    patience: Duration,
) -> Result<Came> {
    let protocol = Protocol::from(132);
    let ear = within(at, || socket(Type::RAW, protocol, Some(to), to))?;
    let source_port = NUMBER.fetch_add(1, Ordering::Relaxed);
    // RFC 9260: ports, tag, checksum (nobody looks at it on the way), and a chunk INIT.
    let mut init = [0_u8; 32];
    init[..2].copy_from_slice(&source_port.to_be_bytes());
    init[2..4].copy_from_slice(&port.to_be_bytes());
    init[12..16].copy_from_slice(&[1, 0, 0, 20]);
    within(from, || {
        let socket = socket(Type::RAW, protocol, Some(source), to)?;
        Ok(socket.send_to(&init, &SocketAddr::new(to, 0).into())?)
    })?;
    let through = arrives(&ear, patience, |packet| packet.ends_with(&init))?;
    Ok(Came { through, source_port })
}

fn arrives(socket: &Socket, patience: Duration, is_it: impl Fn(&[u8]) -> bool) -> Result<bool> {
    let end = Instant::now() + patience;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [0; 256];
        let Ok(length) = (&*socket).read(&mut buffer) else { return Ok(false) };
        if is_it(&buffer[..length]) {
            return Ok(true);
        }
    }
    Ok(false)
}
