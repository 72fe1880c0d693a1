//! Connections that the kernel redirected here: whom they were for, and which listener serves that.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

use super::chain::Chains;
use crate::{config::Listener, outbound::Limit, telemetry::ListenerStats};

/// Whom a connection to `bound` was for before it was redirected; None: it was not, or nobody knows.
pub(super) fn destination(stream: &TcpStream, transparent: bool, bound: SocketAddr) -> Option<SocketAddr> {
    let own = stream.local_addr().ok()?;
    let asked = match own {
        // The socket itself has the address that was asked for.
        own if transparent => own,
        SocketAddr::V4(_) => {
            let found = getsockopt(stream, sockopt::OriginalDst).ok()?;
            let ip = Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr));
            SocketAddr::new(ip.into(), u16::from_be(found.sin_port))
        }
        SocketAddr::V6(_) => {
            let found = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
            let ip = Ipv6Addr::from(found.sin6_addr.s6_addr);
            SocketAddr::new(ip.to_canonical(), u16::from_be(found.sin6_port))
        }
    };
    is_elsewhere(asked, bound).then_some(asked)
}

/// Whoever connects to the listener itself asked for nobody else; to pass that on would be to call oneself.
fn is_elsewhere(asked: SocketAddr, bound: SocketAddr) -> bool {
    asked.port() != bound.port() || !(bound.ip().is_unspecified() || asked.ip() == bound.ip())
}

/// What of a listener a connection needs.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) chains: Arc<ArcSwap<Chains>>,
    pub(super) stats: Arc<ListenerStats>,
    pub(super) connections: Arc<Limit>,
}

type Entries = HashMap<SocketAddr, (String, Target)>;

/// Listeners by the addresses that they serve, whether they have sockets there or not.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory(Arc<ArcSwap<Entries>>);

impl Directory {
    /// A listener is there, or is another one now. Written under the lock of all listeners.
    pub(super) fn enter(&self, listener: &Listener, target: Target) {
        let mut entries = self.without(&listener.name);
        for address in &listener.addresses {
            entries.entry(*address).or_insert_with(|| (listener.name.clone(), target.clone()));
        }
        self.0.store(Arc::new(entries));
    }

    /// A listener is gone.
    pub(super) fn leave(&self, name: &str) {
        self.0.store(Arc::new(self.without(name)));
    }

    fn without(&self, name: &str) -> Entries {
        let mut entries = Entries::clone(&self.0.load());
        entries.retain(|_, (other, _)| other != name);
        entries
    }

    /// Whoever serves an address: it, else every address of its port.
    pub(super) fn find(&self, asked: SocketAddr) -> Option<Target> {
        let any = match asked.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let entries = self.0.load();
        let found = entries.get(&asked).or_else(|| entries.get(&SocketAddr::new(any, asked.port())));
        found.map(|(_, target)| target.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_connects_to_the_listener_itself_asked_for_nobody_else() {
        let elsewhere =
            |asked: &str, bound: &str| is_elsewhere(asked.parse().unwrap(), bound.parse().unwrap());
        assert!(elsewhere("10.0.0.1:80", "127.0.0.1:15006"));
        assert!(elsewhere("10.0.0.1:15006", "127.0.0.1:15006"));
        assert!(elsewhere("127.0.0.1:80", "127.0.0.1:15006"));
        assert!(!elsewhere("127.0.0.1:15006", "127.0.0.1:15006"));
        assert!(!elsewhere("10.0.0.1:15006", "0.0.0.0:15006"));
        assert!(elsewhere("10.0.0.1:80", "0.0.0.0:15006"));
    }
}
