//! How names of services are to be answered, for the agent and for the process that does it.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
};

use clap::Args;

use crate::config::dns_name;

/// Of DNS.
const PORT: u16 = 53;
/// As many as resolvers read of a `resolv.conf`.
const MAX_UPSTREAMS: usize = 3;

/// Names of services.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ClusterDnsArgs {
    /// Answers the names of services on this address, for this node's pods, at port 53 over UDP and TCP; one of each family.
    /// The node takes packets to it in, unless it is one of its own anyway: a link-local one that all nodes have is best.
    #[arg(id = "cluster_dns", long = "cluster-dns", value_name = "IP", value_parser = address)]
    pub addresses: Vec<IpAddr>,
    /// Domain of the names of this cluster's services.
    #[arg(long = "cluster-domain", value_name = "DOMAIN", default_value = "cluster.local", value_parser = dns_name)]
    pub domain: String,
    /// Who is asked for all other names, one after the other; repeatable. Else those of /etc/resolv.conf.
    #[arg(long = "cluster-dns-upstream", value_name = "IP[:PORT]", value_parser = server, requires = "cluster_dns")]
    pub upstreams: Vec<SocketAddr>,
}

impl ClusterDnsArgs {
    /// Where it listens.
    pub fn sockets(&self) -> Vec<SocketAddr> {
        self.addresses.iter().map(|address| SocketAddr::new(*address, PORT)).collect()
    }

    /// The same as words of a command line.
    pub fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        for address in &self.addresses {
            words.extend(["--cluster-dns".into(), address.to_string().into()]);
        }
        words.extend(["--cluster-domain".into(), (&self.domain).into()]);
        for server in &self.upstreams {
            words.extend(["--cluster-dns-upstream".into(), server.to_string().into()]);
        }
        words
    }

    /// Those that were given, or else those that a `resolv.conf` names, but for this node's own: it would ask itself.
    pub fn servers(&self, resolv_conf: &str) -> Vec<SocketAddr> {
        let told = resolv_conf.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
        });
        let found = told.map(|address: IpAddr| SocketAddr::new(address, PORT));
        let all: Vec<SocketAddr> =
            if self.upstreams.is_empty() { found.collect() } else { self.upstreams.clone() };
        let own = self.sockets();
        all.into_iter().filter(|server| !own.contains(server)).take(MAX_UPSTREAMS).collect()
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    let is_scoped = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_scoped {
        return Err(format!("{text} is no address that pods reach the node by"));
    }
    Ok(address)
}

fn server(text: &str) -> Result<SocketAddr, String> {
    let alone = text.parse().map(|address: IpAddr| SocketAddr::new(address, PORT));
    alone.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is not IP or IP:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(addresses: &[&str], upstreams: &[&str]) -> ClusterDnsArgs {
        ClusterDnsArgs {
            addresses: addresses.iter().map(|text| address(text).unwrap()).collect(),
            domain: "cluster.local".into(),
            upstreams: upstreams.iter().map(|text| server(text).unwrap()).collect(),
        }
    }

    #[test]
    fn others_are_asked_as_the_node_asks_them_unless_it_is_said() {
        let text = "# x\nsearch a.b\nnameserver 169.254.20.10\nnameserver 192.0.2.53 \n nameserver  2001:db8::53\nnameserver x\n";
        let told =
            |args: ClusterDnsArgs| args.servers(text).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(args(&["169.254.20.10"], &[])), ["192.0.2.53:53", "[2001:db8::53]:53"]);
        assert_eq!(
            told(args(&["169.254.20.10"], &["10.0.0.1:5353", "fd00::1"])),
            ["10.0.0.1:5353", "[fd00::1]:53"]
        );
        assert!(args(&["169.254.20.10"], &["169.254.20.10"]).servers("").is_empty(), "not itself");
        assert_eq!(args(&[], &[]).servers(&"nameserver 192.0.2.1\n".repeat(9)).len(), MAX_UPSTREAMS);
    }

    #[test]
    fn an_address_that_pods_cannot_reach_is_refused() {
        for wrong in ["127.0.0.1", "0.0.0.0", "::", "::1", "224.0.0.1", "fe80::1", "x"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        assert!(server("x").is_err() && server("10.0.0.1:x").is_err());
    }
}
