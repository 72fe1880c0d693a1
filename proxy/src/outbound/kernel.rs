//! Connections of the kernel, with the options that a cluster asks for.

use std::{io, net::SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream};

use crate::config::{Keepalive, UpstreamSocketOptions};

/// Connects.
///
/// # Errors
/// The kernel's, and that no source address is of the endpoint's IP version.
pub(super) async fn connect(options: &UpstreamSocketOptions, address: SocketAddr) -> io::Result<TcpStream> {
    if *options == UpstreamSocketOptions::default() {
        return TcpStream::connect(address).await;
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(keepalive) = &options.keepalive {
        keep_alive(&socket, keepalive)?;
    }
    if !options.sources.is_empty() {
        let source = options.sources.iter().find(|source| source.is_ipv4() == address.is_ipv4());
        let source = source.ok_or_else(|| {
            let reason = format!("no source address of the IP version of {address}");
            io::Error::new(io::ErrorKind::AddrNotAvailable, reason)
        })?;
        if options.freebind {
            setsockopt(&socket, sockopt::IpFreebind, &true)?;
        }
        if source.port() == 0 {
            // The port is chosen with the other side in view, so that each may have all of them.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        } else {
            socket.set_reuseaddr(true)?;
        }
        socket.bind(*source)?;
    }
    socket.connect(address).await
}

fn keep_alive(socket: &TcpSocket, keepalive: &Keepalive) -> io::Result<()> {
    socket.set_keepalive(true)?;
    if let Some(probes) = keepalive.probes {
        setsockopt(socket, sockopt::TcpKeepCount, &probes)?;
    }
    // Conversion has bounded them.
    let seconds = |duration: std::time::Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    if let Some(time) = keepalive.time {
        setsockopt(socket, sockopt::TcpKeepIdle, &seconds(time))?;
    }
    if let Some(interval) = keepalive.interval {
        setsockopt(socket, sockopt::TcpKeepInterval, &seconds(interval))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_source_and_the_pings_are_those_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = UpstreamSocketOptions {
            sources: vec!["[::1]:0".parse().unwrap(), "127.0.0.9:0".parse().unwrap()],
            freebind: true,
            keepalive: Some(Keepalive {
                probes: Some(7),
                time: Some(Duration::from_secs(33)),
                interval: None,
            }),
        };
        let stream = connect(&options, listener.local_addr().unwrap()).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip().to_string(), "127.0.0.9");
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepCount).unwrap(), 7);
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle).unwrap(), 33);
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        let other = UpstreamSocketOptions {
            sources: vec!["[::1]:0".parse().unwrap()],
            ..UpstreamSocketOptions::default()
        };
        let error = connect(&other, listener.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
