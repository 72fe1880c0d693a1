//! What a client does in a pod: a process of its own, so that it is in the pod's cgroup or out of it.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt::Linger,
};

use super::{
    node::virtual_address,
    support::pods::{Netns, Pod},
};
use crate::stats::quantile;

/// A client's arguments.
#[derive(Debug, Clone, Args)]
pub struct Client {
    /// The cgroup to be in, whose sockets are hooked.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    #[command(subcommand)]
    work: Work,
}

/// What to do. It prints figures, separated by blanks.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Work {
    /// Connects to the same or to many services: median and 99th percentile in ns, and connects per second.
    Connect {
        #[arg(long)]
        to: SocketAddrV4,
        /// Services from that address on, of which each time another is asked.
        #[arg(long, default_value_t = 1)]
        services: u32,
        #[arg(long)]
        times: usize,
        /// Datagram sockets: no packet is sent.
        #[arg(long)]
        datagram: bool,
    },
    /// Asks and is answered: microseconds in the mean.
    Trips {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        times: usize,
    },
    /// Sends a stream: MB/s.
    Stream {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        ms: u64,
    },
    /// Sends small datagrams that nobody reads: nanoseconds each.
    Flood {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        packets: usize,
    },
}

/// The client's `main`.
///
/// # Errors
/// What it is to do does not work.
pub fn run(client: &Client) -> Result<()> {
    if let Some(cgroup) = &client.cgroup {
        std::fs::write(cgroup.join("cgroup.procs"), "0").context("entering the cgroup")?;
    }
    let figures = match &client.work {
        Work::Connect { to, services, times, datagram } => connects(*to, *services, *times, *datagram)?,
        Work::Trips { to, times } => vec![trips(*to, *times)?],
        Work::Stream { to, ms } => vec![stream(*to, Duration::from_millis(*ms))?],
        Work::Flood { to, packets } => vec![flood(*to, *packets)?],
    };
    let text: Vec<String> = figures.iter().map(f64::to_string).collect();
    writeln!(std::io::stdout(), "{}", text.join(" "))?;
    Ok(())
}

fn connects(to: SocketAddrV4, services: u32, times: usize, datagram: bool) -> Result<Vec<f64>> {
    let kind = if datagram { SockType::Datagram } else { SockType::Stream };
    let open = || socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None);
    let (kept, start) = (open()?, Instant::now());
    let mut took = Vec::with_capacity(times);
    let mut which = 1u32;
    for _ in 0..times {
        // Numerical Recipes' generator: which service is next is to be no pattern, and the same for everybody.
        which = which.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let ip = Ipv4Addr::from(u32::from(*to.ip()) + (which >> 8) % services);
        let at = SockaddrIn::from(SocketAddrV4::new(ip, to.port()));
        let fresh = if datagram { None } else { Some(open()?) };
        let fd = fresh.as_ref().unwrap_or(&kept).as_raw_fd();
        let before = Instant::now();
        connect(fd, &at).with_context(|| format!("connecting to {ip}"))?;
        took.push(before.elapsed().as_nanos() as f64);
        if let Some(fresh) = &fresh {
            // Closed by a reset: no port is kept waiting.
            setsockopt(fresh, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
    }
    let rate = times as f64 / start.elapsed().as_secs_f64();
    Ok(vec![quantile(&took, 0.5), quantile(&took, 0.99), rate])
}

fn trips(to: SocketAddr, times: usize) -> Result<f64> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.write_all(b"e")?;
    let mut byte = [1];
    let mut exchange = |times: usize| -> Result<()> {
        for _ in 0..times {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
        }
        Ok(())
    };
    exchange(times / 10 + 1)?;
    let start = Instant::now();
    exchange(times)?;
    Ok(start.elapsed().as_secs_f64() * 1e6 / times as f64)
}

fn stream(to: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(b"s")?;
    let (buffer, start) = (vec![7; 128 << 10], Instant::now());
    while start.elapsed() < time {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes) as f64 / 1e6 / start.elapsed().as_secs_f64())
}

fn flood(to: SocketAddr, packets: usize) -> Result<f64> {
    // The last processor: what the sender's packets cause is then done there as well.
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(std::thread::available_parallelism()?.get() - 1)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    for _ in 0..packets / 10 + 1 {
        socket.send(&[7])?;
    }
    let start = Instant::now();
    for _ in 0..packets {
        socket.send(&[7])?;
    }
    Ok(start.elapsed().as_nanos() as f64 / packets as f64)
}

/// Where a client runs.
pub(super) struct Place<'a> {
    pub pod: &'a Pod,
    /// Its sockets are hooked.
    pub cgroup: Option<PathBuf>,
}

impl Place<'_> {
    /// Starts the client in the pod, and gives its figures.
    pub(super) fn run(&self, arguments: &[&str]) -> Vec<f64> {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.arg("client");
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        command.args(arguments).stderr(Stdio::inherit());
        let shown = format!("{command:?}");
        let output = self.pod.run(move || command.output()).expect("startable");
        assert!(output.status.success(), "{shown}: {}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace().map(|figure| figure.parse().expect("a number")).collect()
    }

    /// Connects to one service or many.
    pub(super) fn connect(
        &self,
        services: Option<usize>,
        to: SocketAddr,
        times: usize,
        datagram: bool,
    ) -> Vec<f64> {
        let (to, services) = match services {
            Some(services) => (SocketAddr::new(virtual_address(0).into(), super::node::PORT), services),
            None => (to, 1),
        };
        let (to, services, times) = (to.to_string(), services.to_string(), times.to_string());
        let mut arguments = vec!["connect", "--to", &to, "--services", &services, "--times", &times];
        if datagram {
            arguments.push("--datagram");
        }
        self.run(&arguments)
    }

    pub(super) fn trips(&self, to: SocketAddr, times: usize) -> f64 {
        self.run(&["trips", "--to", &to.to_string(), "--times", &times.to_string()])[0]
    }

    pub(super) fn stream(&self, to: SocketAddr, ms: u64) -> f64 {
        self.run(&["stream", "--to", &to.to_string(), "--ms", &ms.to_string()])[0]
    }

    pub(super) fn flood(&self, to: SocketAddr, packets: usize) -> f64 {
        self.run(&["flood", "--to", &to.to_string(), "--packets", &packets.to_string()])[0]
    }
}

/// Accepts connections and lets go of them.
pub(super) fn accept(netns: &Netns, at: SocketAddr) {
    let listener = netns.run(move || TcpListener::bind(at).expect("free"));
    std::thread::spawn(move || for _ in listener.incoming().flatten() {});
}

/// Answers [`Work::Trips`] and [`Work::Stream`].
pub(super) fn answer(netns: &Netns, at: SocketAddr) {
    let listener = netns.run(move || TcpListener::bind(at).expect("free"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_one(stream));
        }
    });
}

fn answer_one(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut wish = [0];
    stream.read_exact(&mut wish)?;
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0u64;
    loop {
        let length = stream.read(&mut buffer)?;
        bytes += length as u64;
        match (length, wish) {
            (0, [b's']) => return Ok(stream.write_all(&bytes.to_be_bytes())?),
            (0, _) => return Ok(()),
            (_, [b'e']) => stream.write_all(&buffer[..length])?,
            _ => {}
        }
    }
}

/// A socket that datagrams reach and nobody reads.
pub(super) fn ignore(netns: &Netns, at: SocketAddr) -> Result<UdpSocket> {
    let socket = netns.run(move || UdpSocket::bind(at))?;
    ensure!(socket.local_addr()? == at, "bound elsewhere");
    Ok(socket)
}
