//! Who may ask for what.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
};

use ebpf_shared::identity::is_workload;
use mesh_model::policy::NamePattern;

/// The rules of all pods of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// By each address of a pod. Pods with the same policies share theirs.
    pub pods: BTreeMap<IpAddr, Arc<[Rule]>>,
    /// Names that policies let pods to: the kernel has to learn where these are. For others there is nothing to wait for.
    pub gated: Vec<NamePattern>,
}

/// One rule of one policy. Rules only allow: what none does is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Servers.
    pub peers: Peers,
    /// `None`: over either.
    pub transport: Option<Transport>,
    /// Servers' ports.
    pub ports: RangeInclusive<u16>,
    /// Names that may be asked for there. `None`: any.
    pub names: Option<Vec<NamePattern>>,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Whoever.
    Any,
    /// Those behind these identities; [`ebpf_shared::identity::WORKLOADS`]: every workload of the mesh.
    Identities(BTreeSet<u32>),
}

/// How a query comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Transport {
    Udp,
    Tcp,
}

impl Rules {
    /// Whether the kernel has to know where a name is, for some pod of this node.
    #[must_use]
    pub fn gates(&self, name: &str) -> bool {
        self.gated.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether a pod may ask a server, behind `identity`, for a name.
    ///
    /// A pod that is not known may ask for nothing: its queries come here only if its policy says so.
    #[must_use]
    pub fn allow(
        &self,
        pod: IpAddr,
        server: SocketAddr,
        identity: u32,
        transport: Transport,
        name: &str,
    ) -> bool {
        self.pods.get(&pod).is_some_and(|rules| {
            rules.iter().any(|rule| rule.speaks_of(server.port(), identity, transport) && rule.names(name))
        })
    }
}

impl Rule {
    fn speaks_of(&self, port: u16, identity: u32, transport: Transport) -> bool {
        let by_peer = match &self.peers {
            Peers::Any => true,
            Peers::Identities(those) => {
                those.contains(&identity)
                    || (is_workload(identity) && those.contains(&ebpf_shared::identity::WORKLOADS))
            }
        };
        by_peer && self.ports.contains(&port) && self.transport.is_none_or(|own| own == transport)
    }

    fn names(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 1, 2));
    const SERVER: u32 = 300;

    fn rules(rule: Rule) -> Rules {
        Rules { pods: [(POD, Arc::from([rule]))].into(), ..Rules::default() }
    }

    fn rule() -> Rule {
        let names = ["example.com", "*.example.net"];
        Rule {
            peers: Peers::Identities([SERVER].into()),
            transport: None,
            ports: 53..=53,
            names: Some(names.iter().map(|text| NamePattern::parse(text).unwrap()).collect()),
        }
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::new([10, 1, 1, 53].into(), port)
    }

    #[test]
    fn a_pod_asks_only_for_names_that_a_rule_has() {
        let rules = rules(rule());
        let may = |name| rules.allow(POD, at(53), SERVER, Transport::Udp, name);
        assert!(may("example.com") && may("a.example.net"));
        assert!(!may("www.example.com") && !may("example.net") && !may("a.b.example.net") && !may(""));
    }

    #[test]
    fn a_rule_holds_for_its_servers_its_ports_and_its_transport() {
        let any = Rule { names: None, ..rule() };
        let may = |rule: &Rule, port, identity, transport| {
            rules(rule.clone()).allow(POD, at(port), identity, transport, "x.test")
        };
        assert!(may(&any, 53, SERVER, Transport::Udp));
        assert!(!may(&any, 5353, SERVER, Transport::Udp) && !may(&any, 53, 301, Transport::Udp));
        let workloads = Rule { peers: Peers::Identities([6].into()), ..any.clone() };
        assert!(may(&workloads, 53, SERVER, Transport::Udp) && may(&workloads, 53, 256, Transport::Udp));
        assert!(![2, 5, 1 << 24 | 300].iter().any(|other| may(&workloads, 53, *other, Transport::Udp)));
        let udp = Rule { transport: Some(Transport::Udp), peers: Peers::Any, ..any };
        assert!(may(&udp, 53, 301, Transport::Udp) && !may(&udp, 53, 301, Transport::Tcp));
    }

    #[test]
    fn a_pod_that_is_not_known_asks_for_nothing() {
        let any = Rule { names: None, peers: Peers::Any, ..rule() };
        assert!(!rules(any).allow([10, 1, 1, 3].into(), at(53), SERVER, Transport::Udp, "example.com"));
    }
}
