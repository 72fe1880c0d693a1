//! Which filter chain a connection gets. Pure.
//!
//! As in Envoy one criterion decides after the other: port and address that were asked for, server name, transport protocol,
//! application protocols, the other end's address, where it is, the client's address and its port. In each the most
//! specific match wins (an exact name, the longest suffix or prefix), and chains that say nothing of it come last. There is no
//! way back: a chain that matched best in one and does not fit in the next ends the search.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::config::{ChainMatch, ServerName, SourceType, Transport};

/// Who is connected with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// What was asked for.
    pub local: SocketAddr,
    /// The client.
    pub remote: SocketAddr,
    /// The other end of the connection itself, which a PROXY header does not change.
    pub direct: SocketAddr,
}

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstBytes {
    /// Nobody looked: no chain that could be chosen asks.
    Unseen,
    /// No TLS.
    Raw {
        /// `http/1.0`, `http/1.1` or `h2c`, if it is that.
        protocol: Option<&'static str>,
    },
    /// A `ClientHello`.
    Tls {
        /// SNI, in lower case.
        server_name: Option<String>,
        /// ALPN, as the client prefers them.
        protocols: Vec<String>,
    },
}

/// The positions of the chains that are left when all is known but the first bytes.
pub fn reachable<'a>(matches: impl Iterator<Item = &'a ChainMatch>, ends: Ends) -> Vec<usize> {
    let all: Vec<&ChainMatch> = matches.collect();
    let mut left: Vec<usize> = (0..all.len()).collect();
    let ip = ends.local.ip().to_canonical();
    best(&mut left, &all, |chain| match chain.destination_port {
        None => Some(0),
        Some(port) => (port == ends.local.port()).then_some(1),
    });
    best(&mut left, &all, |chain| block(&chain.destinations, ip));
    left
}

/// The position of the chain. `None`: the default chain, if there is one.
pub fn choose<'a>(
    matches: impl Iterator<Item = &'a ChainMatch> + Clone,
    ends: Ends,
    first: &FirstBytes,
) -> Option<usize> {
    let mut left = reachable(matches.clone(), ends);
    let all: Vec<&ChainMatch> = matches.collect();
    let (remote, direct) = (ends.remote.ip().to_canonical(), ends.direct.ip().to_canonical());
    let name = match first {
        FirstBytes::Tls { server_name, .. } => server_name.as_deref(),
        FirstBytes::Unseen | FirstBytes::Raw { .. } => None,
    };
    best(&mut left, &all, |chain| named(&chain.server_names, name));
    best(&mut left, &all, |chain| match (chain.transport, first) {
        (Transport::Any, _) => Some(0),
        (Transport::Tls, FirstBytes::Tls { .. })
        | (Transport::Raw, FirstBytes::Raw { .. } | FirstBytes::Unseen) => Some(1),
        (Transport::Tls | Transport::Raw, _) => None,
    });
    best(&mut left, &all, |chain| spoken(&chain.application_protocols, first));
    best(&mut left, &all, |chain| block(&chain.direct_sources, direct));
    let local = remote.is_loopback() || remote == ends.local.ip().to_canonical();
    best(&mut left, &all, |chain| match chain.source_type {
        SourceType::Any => Some(0),
        SourceType::Local => local.then_some(1),
        SourceType::External => (!local).then_some(1),
    });
    best(&mut left, &all, |chain| block(&chain.sources, remote));
    best(&mut left, &all, |chain| {
        let ports = &chain.source_ports;
        if ports.is_empty() { Some(0) } else { ports.contains(&ends.remote.port()).then_some(1) }
    });
    left.first().copied()
}

/// Keeps the chains that say the most of it. `None`: it does not fit.
fn best(left: &mut Vec<usize>, all: &[&ChainMatch], rank: impl Fn(&ChainMatch) -> Option<usize>) {
    let ranks: Vec<Option<usize>> =
        left.iter().map(|at| all.get(*at).and_then(|chain| rank(chain))).collect();
    let Some(most) = ranks.iter().flatten().max().copied() else { return left.clear() };
    let mut ranks = ranks.into_iter();
    left.retain(|_| ranks.next().flatten() == Some(most));
}

/// How long the longest prefix is that an address is in, and one more.
fn block(blocks: &[IpNet], address: IpAddr) -> Option<usize> {
    if blocks.is_empty() {
        return Some(0);
    }
    let inside = blocks.iter().filter(|net| net.contains(&address));
    inside.map(|net| usize::from(net.prefix_len()) + 1).max()
}

fn named(patterns: &[ServerName], name: Option<&str>) -> Option<usize> {
    if patterns.is_empty() {
        return Some(0);
    }
    let name = name?;
    let ranks = patterns.iter().filter_map(|pattern| match pattern {
        ServerName::Exact(exact) => (exact == name).then_some(usize::MAX),
        ServerName::Suffix(suffix) => {
            (name.len() > suffix.len() && name.ends_with(suffix.as_str())).then_some(suffix.len())
        }
    });
    ranks.max()
}

/// What the client would rather speak counts for more.
fn spoken(wanted: &[String], first: &FirstBytes) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    let at = match first {
        FirstBytes::Tls { protocols, .. } => protocols.iter().position(|one| wanted.contains(one)),
        FirstBytes::Raw { protocol } => {
            protocol.filter(|one| wanted.iter().any(|wanted| wanted == one)).map(|_| 0)
        }
        FirstBytes::Unseen => None,
    };
    at.map(|at| usize::MAX - at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(names: &[&str], transport: Transport) -> ChainMatch {
        let names = names.iter().map(|n| match n.strip_prefix('*') {
            Some(suffix) => ServerName::Suffix(suffix.to_owned()),
            None => ServerName::Exact((*n).to_owned()),
        });
        ChainMatch { server_names: names.collect(), transport, ..ChainMatch::default() }
    }

    fn tls(name: &str) -> FirstBytes {
        speaking(name, &[])
    }

    fn speaking(name: &str, protocols: &[&str]) -> FirstBytes {
        let server_name = Some(name.to_owned()).filter(|n| !n.is_empty());
        FirstBytes::Tls { server_name, protocols: protocols.iter().map(|p| (*p).to_owned()).collect() }
    }

    const RAW: FirstBytes = FirstBytes::Raw { protocol: None };

    fn ends(local: &str, remote: &str) -> Ends {
        let remote = remote.parse().unwrap();
        Ends { local: local.parse().unwrap(), remote, direct: remote }
    }

    fn chosen(chains: &[ChainMatch], first: &FirstBytes) -> Option<usize> {
        choose(chains.iter(), ends("10.0.0.1:80", "10.0.0.9:4000"), first)
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_most_specific_name_wins() {
        let chains = [
            chain(&[], Transport::Any),
            chain(&["*.shop"], Transport::Tls),
            chain(&["a.shop", "b.shop"], Transport::Tls),
            chain(&["*.eu.shop"], Transport::Tls),
        ];
        for (first, expected) in [
            (tls("b.shop"), Some(2)),
            (tls("c.shop"), Some(1)),
            (tls("c.eu.shop"), Some(3)),
            (tls("shop"), Some(0)),
            (tls(""), Some(0)),
            (RAW, Some(0)),
        ] {
            assert_eq!(chosen(&chains, &first), expected, "{first:?}");
        }
    }

    #[test]
    fn without_a_fitting_chain_there_is_none() {
        let chains = [chain(&["a"], Transport::Tls)];
        assert_eq!(chosen(&chains, &tls("b")), None);
        assert_eq!(chosen(&chains, &RAW), None);
    }

    #[test]
    fn a_named_protocol_beats_an_unnamed_one() {
        let chains = [chain(&[], Transport::Any), chain(&[], Transport::Tls), chain(&[], Transport::Raw)];
        assert_eq!(chosen(&chains, &tls("x")), Some(1));
        assert_eq!(chosen(&chains, &RAW), Some(2));
    }

    #[test]
    fn the_port_that_was_asked_for_decides_before_the_address_and_there_is_no_way_back() {
        let to = |port, blocks: &[&str]| ChainMatch {
            destination_port: port,
            destinations: nets(blocks),
            ..ChainMatch::default()
        };
        let chains = [
            to(None, &["10.0.0.1/32"]),
            to(Some(80), &["10.0.0.0/8"]),
            to(Some(80), &["10.0.0.0/24", "fd00::/64"]),
            to(Some(81), &["10.9.0.0/16"]),
        ];
        for (local, expected) in [
            ("10.0.0.1:80", Some(2)),
            ("10.1.0.1:80", Some(1)),
            ("[fd00::1]:80", Some(2)),
            ("[::ffff:10.0.0.1]:80", Some(2)),
            ("10.0.0.1:443", Some(0)),
            ("10.0.0.1:81", None),
            ("192.0.2.1:80", None),
        ] {
            let found = choose(chains.iter(), ends(local, "10.0.0.9:4000"), &FirstBytes::Unseen);
            assert_eq!(found, expected, "{local}");
        }
        let left = reachable(chains.iter(), ends("10.0.0.1:80", "10.0.0.9:4000"));
        assert_eq!(left, [2]);
    }

    #[test]
    fn what_the_client_would_rather_speak_decides_among_protocols() {
        let speaks = |protocols: &[&str]| ChainMatch {
            application_protocols: protocols.iter().map(|p| (*p).to_owned()).collect(),
            ..ChainMatch::default()
        };
        let chains = [speaks(&[]), speaks(&["h2", "h2c"]), speaks(&["http/1.1"])];
        assert_eq!(chosen(&chains, &speaking("a", &["http/1.1", "h2"])), Some(2));
        assert_eq!(chosen(&chains, &speaking("a", &["h2", "http/1.1"])), Some(1));
        assert_eq!(chosen(&chains, &speaking("a", &["mqtt"])), Some(0));
        assert_eq!(chosen(&chains, &FirstBytes::Raw { protocol: Some("h2c") }), Some(1));
        assert_eq!(chosen(&chains, &FirstBytes::Raw { protocol: Some("http/1.0") }), Some(0));
    }

    #[test]
    fn the_other_end_is_told_from_the_client_that_it_speaks_for() {
        let direct = ChainMatch { direct_sources: nets(&["192.0.2.0/24"]), ..ChainMatch::default() };
        let client = ChainMatch { sources: nets(&["10.0.0.0/8"]), ..ChainMatch::default() };
        let at = |remote: &str, direct: &str| Ends {
            direct: direct.parse().unwrap(),
            ..ends("10.0.0.1:80", remote)
        };
        let found = |chains: &[ChainMatch], ends| choose(chains.iter(), ends, &FirstBytes::Unseen);
        let both = [direct.clone(), client.clone()];
        assert_eq!(found(&both, at("10.0.0.9:1", "192.0.2.1:2")), Some(0));
        assert_eq!(found(&both, at("10.0.0.9:1", "198.51.100.1:2")), Some(1));
        assert_eq!(found(&both, at("203.0.113.9:1", "198.51.100.1:2")), None);
    }

    #[test]
    fn a_client_of_this_machine_is_local_and_its_port_comes_last() {
        let from = |source_type, ports: &[u16]| ChainMatch {
            source_type,
            source_ports: ports.to_vec(),
            ..ChainMatch::default()
        };
        let chains = [
            from(SourceType::Any, &[]),
            from(SourceType::Local, &[]),
            from(SourceType::External, &[]),
            from(SourceType::External, &[4000]),
        ];
        for (remote, expected) in [
            ("127.0.0.1:9", Some(1)),
            ("10.0.0.1:9", Some(1)),
            ("10.0.0.9:9", Some(2)),
            ("10.0.0.9:4000", Some(3)),
            ("127.0.0.1:4000", Some(1)),
        ] {
            let found = choose(chains.iter(), ends("10.0.0.1:80", remote), &FirstBytes::Unseen);
            assert_eq!(found, expected, "{remote}");
        }
    }
}
