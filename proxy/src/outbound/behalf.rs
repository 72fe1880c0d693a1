//! On whose behalf a connection is made: what the way out takes over from the way in.
//!
//! It belongs to the task that serves a client's connection or request, and not to each function between there and the dial:
//! they treat all clients alike. A task that is spawned from there has to take it with it.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;
use tokio::net::{TcpSocket, TcpStream};

/// In whose name an endpoint is asked, if not in the proxy's own (the listener filter `original_src`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Source {
    /// The client's address.
    pub ip: IpAddr,
    /// `SO_MARK` of the socket; 0: none.
    pub mark: u32,
}

/// What the way out takes over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Behalf {
    /// Whom the client asked before the kernel redirected it here; by the kernel's word, not the client's.
    pub asked: Option<SocketAddr>,
    /// See there.
    pub source: Option<Source>,
}

tokio::task_local! {
    static BEHALF: Behalf;
}

/// What `work` connects to, it connects to on this behalf.
pub fn on_behalf<F: Future>(behalf: Behalf, work: F) -> impl Future<Output = F::Output> {
    BEHALF.scope(behalf, work)
}

/// On whose behalf this task works; the default: its own.
pub fn behalf() -> Behalf {
    BEHALF.try_with(|behalf| *behalf).unwrap_or_default()
}

/// Connects, in a client's name where one is given: from its address, and a port of the kernel's choice.
///
/// # Errors
/// The kernel's. Another's name takes `CAP_NET_ADMIN`.
pub(super) async fn connect(address: SocketAddr, source: Option<Source>) -> io::Result<TcpStream> {
    let Some(Source { ip, mark }) = source else { return TcpStream::connect(address).await };
    if ip.is_ipv4() != address.is_ipv4() {
        let what = format!("{ip} cannot ask in its name: another IP version");
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, what));
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // One flag for both families: it belongs to the socket, whichever level sets it.
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    // The port is chosen with the other side in view, so that each may have all of them.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    if mark != 0 {
        setsockopt(&socket, sockopt::Mark, &mark)?;
    }
    socket.bind(SocketAddr::new(ip, 0))?;
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_of_the_other_family_lends_no_name() {
        let source = Some(Source { ip: "::1".parse().unwrap(), mark: 0 });
        let error = connect("127.0.0.1:9".parse().unwrap(), source).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[tokio::test]
    async fn whoever_works_on_nobodys_behalf_works_on_its_own() {
        assert_eq!(behalf(), Behalf::default());
        let other = Behalf { asked: Some("10.0.0.1:80".parse().unwrap()), source: None };
        assert_eq!(on_behalf(other, async { behalf() }).await, other);
    }
}
