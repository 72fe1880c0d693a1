//! The agent's rules, as the proxy has them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use dns_proxy::{Peers, Rule, Rules, Transport};
use mesh_model::policy::{NameError, NamePattern};
use xds_proto::isthmus::local::v1::{DnsRule, DnsRules};

/// Addresses of pods on one node.
const MAX_ADDRESSES: usize = 16_384;
/// Rules of all lists together.
const MAX_RULES: usize = 262_144;

/// Why rules are not taken. Those from before hold on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("{field}: {count} are too many; {limit} are taken")]
    TooMany { field: &'static str, count: usize, limit: usize },
    #[error("pods.addresses: {0:?} is not an address")]
    Address(String),
    #[error("pods.list: there is no list {0}")]
    List(u32),
    #[error("rules.{field}: {value} is none")]
    Number { field: &'static str, value: u32 },
    #[error("rules.patterns: {pattern:?} {error}")]
    Pattern { pattern: String, error: NameError },
}

/// Reads them.
pub(super) fn parse(wire: &DnsRules) -> Result<Rules, WireError> {
    let count = wire.lists.iter().map(|list| list.rules.len()).sum();
    limited("lists.rules", count, MAX_RULES)?;
    limited("pods.addresses", wire.pods.iter().map(|pod| pod.addresses.len()).sum(), MAX_ADDRESSES)?;
    let lists: Vec<Arc<[Rule]>> = wire
        .lists
        .iter()
        .map(|list| list.rules.iter().map(rule).collect::<Result<_, _>>())
        .collect::<Result<_, _>>()?;
    let mut pods = BTreeMap::new();
    for pod in &wire.pods {
        let list = usize::try_from(pod.list).ok().and_then(|at| lists.get(at));
        let list = list.ok_or(WireError::List(pod.list))?;
        for text in &pod.addresses {
            let address: IpAddr = text.parse().map_err(|_| WireError::Address(text.clone()))?;
            pods.insert(address, list.clone());
        }
    }
    limited("gated", wire.gated.len(), MAX_RULES)?;
    let gated = wire.gated.iter().map(|text| pattern(text)).collect::<Result<_, _>>()?;
    Ok(Rules { pods, gated })
}

fn limited(field: &'static str, count: usize, limit: usize) -> Result<(), WireError> {
    if count > limit { Err(WireError::TooMany { field, count, limit }) } else { Ok(()) }
}

fn pattern(text: &str) -> Result<NamePattern, WireError> {
    NamePattern::parse(text).map_err(|error| WireError::Pattern { pattern: text.to_owned(), error })
}

fn rule(wire: &DnsRule) -> Result<Rule, WireError> {
    let port = |field, value| u16::try_from(value).map_err(|_| WireError::Number { field, value });
    let transport = match wire.protocol {
        0 => None,
        6 => Some(Transport::Tcp),
        17 => Some(Transport::Udp),
        value => return Err(WireError::Number { field: "protocol", value }),
    };
    let names: Vec<_> = wire.patterns.iter().map(|text| pattern(text)).collect::<Result<_, _>>()?;
    Ok(Rule {
        peers: if wire.any_peer {
            Peers::Any
        } else {
            Peers::Identities(wire.identities.iter().copied().collect())
        },
        transport,
        ports: port("port", wire.port)?..=port("end_port", wire.end_port)?,
        names: (!wire.any_name).then_some(names),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use xds_proto::isthmus::local::v1::{DnsPod, DnsRuleList};

    fn rules() -> DnsRules {
        let rule = DnsRule {
            identities: vec![300],
            protocol: 17,
            port: 53,
            end_port: 53,
            patterns: vec!["*.example.com".into()],
            ..Default::default()
        };
        DnsRules {
            pods: vec![DnsPod { addresses: vec!["10.1.1.2".into(), "fd00::2".into()], list: 0 }],
            lists: vec![DnsRuleList { rules: vec![rule] }],
            gated: vec!["**.example.net".into()],
        }
    }

    #[test]
    fn a_pod_has_its_rules_at_all_its_addresses() {
        let parsed = parse(&rules()).unwrap();
        assert!(parsed.gates("a.b.example.net") && !parsed.gates("www.example.com"));
        let at = "10.1.1.53:53".parse().unwrap();
        for pod in ["10.1.1.2", "fd00::2"] {
            let may = |name| parsed.allow(pod.parse().unwrap(), at, 300, Transport::Udp, name);
            assert!(may("www.example.com") && !may("example.com"), "{pod}");
        }
    }

    #[test]
    fn what_says_nothing_allows_nothing() {
        let mut wire = rules();
        wire.lists[0].rules = vec![DnsRule::default()];
        let parsed = parse(&wire).unwrap();
        let at = "10.1.1.53:0".parse().unwrap();
        assert!(!parsed.allow("10.1.1.2".parse().unwrap(), at, 0, Transport::Udp, "www.example.com"));
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_its_field() {
        let refused = |change: fn(&mut DnsRules)| {
            let mut wire = rules();
            change(&mut wire);
            parse(&wire).unwrap_err().to_string()
        };
        assert!(refused(|w| w.pods[0].list = 1).starts_with("pods.list"));
        assert!(refused(|w| w.pods[0].addresses.push("x".into())).starts_with("pods.addresses"));
        assert!(refused(|w| w.lists[0].rules[0].port = 65_536).starts_with("rules.port"));
        assert!(refused(|w| w.lists[0].rules[0].protocol = 1).starts_with("rules.protocol"));
        assert!(refused(|w| w.lists[0].rules[0].patterns.push("a b".into())).starts_with("rules.patterns"));
        let many = vec![String::new(); MAX_ADDRESSES + 1];
        let mut wire = rules();
        wire.pods[0].addresses = many;
        assert!(matches!(parse(&wire), Err(WireError::TooMany { .. })));
    }
}
