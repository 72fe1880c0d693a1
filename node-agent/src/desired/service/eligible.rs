//! Which backends of a service new connections go to. PURE.

use std::{collections::BTreeSet, net::IpAddr};

use crate::subscribe::{BackendState, ServiceBackend};

/// Where the node is that chooses.
#[derive(Debug, Clone, Default)]
pub struct Here {
    /// Of this node's pods, and its own.
    pub addresses: BTreeSet<IpAddr>,
    /// Empty: it is not known.
    pub node: String,
    /// Empty: it is not known.
    pub zone: String,
}

/// What a service asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Backends of this node or none (`internalTrafficPolicy` and `externalTrafficPolicy`: Local).
    pub local_only: bool,
    /// Those of the own zone, while there are any (`trafficDistribution: PreferSameZone`).
    pub same_zone: bool,
    /// Before that, those of this node (`trafficDistribution: PreferSameNode`).
    pub same_node: bool,
}

/// The backends that new connections are spread over: those of the lowest tier (KEP-1645's cluster order, or a
/// failover policy's) that has an active one; of these the ones of the zone, as the service wishes. Where nothing is
/// active, those that end but still serve (KEP-1669). None: connections are refused.
pub fn eligible<'a>(backends: &[&'a ServiceBackend], wishes: Wishes, here: &Here) -> Vec<&'a ServiceBackend> {
    let near = |backend: &&&ServiceBackend| !wishes.local_only || here.addresses.contains(&backend.address);
    for state in [BackendState::Active, BackendState::Terminating] {
        let of_state = || backends.iter().filter(near).filter(move |backend| backend.state == state);
        let Some(tier) = of_state().map(|backend| backend.priority).min() else { continue };
        let tier: Vec<_> = of_state().filter(|backend| backend.priority == tier).copied().collect();
        return nearest(tier, wishes, here);
    }
    Vec::new()
}

/// Hints say for which nodes (KEP-3015) and zones (KEP-2433) a backend is meant, and count only if every backend has one and
/// this node, or else this zone, is among them. A service that prefers what is near without hints goes by where the
/// backends are. Nodes go before zones.
fn nearest<'a>(tier: Vec<&'a ServiceBackend>, wishes: Wishes, here: &Here) -> Vec<&'a ServiceBackend> {
    let all = |hints: fn(&ServiceBackend) -> &BTreeSet<String>| {
        !tier.is_empty() && tier.iter().all(|backend| !hints(backend).is_empty())
    };
    let of = |fits: &dyn Fn(&ServiceBackend) -> bool| {
        tier.iter().filter(|backend| fits(backend)).copied().collect::<Vec<_>>()
    };
    let of_node = if all(|backend| &backend.hint_nodes) {
        of(&|backend| backend.hint_nodes.contains(&here.node))
    } else if wishes.same_node {
        of(&|backend| here.addresses.contains(&backend.address))
    } else {
        Vec::new()
    };
    if !of_node.is_empty() {
        return of_node;
    }
    let of_zone = if here.zone.is_empty() {
        Vec::new()
    } else if all(|backend| &backend.hint_zones) {
        of(&|backend| backend.hint_zones.contains(&here.zone))
    } else if wishes.same_zone {
        of(&|backend| backend.zone == here.zone)
    } else {
        Vec::new()
    };
    if of_zone.is_empty() { tier } else { of_zone }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(last: u8) -> ServiceBackend {
        ServiceBackend {
            address: std::net::Ipv4Addr::new(10, 1, 0, last).into(),
            port: 80,
            weight: 1,
            ..ServiceBackend::default()
        }
    }

    fn chosen(backends: &[ServiceBackend], wishes: Wishes, here: &Here) -> Vec<u8> {
        let all: Vec<_> = backends.iter().collect();
        let last = |backend: &&ServiceBackend| match backend.address {
            IpAddr::V4(addr) => addr.octets()[3],
            IpAddr::V6(_) => 0,
        };
        eligible(&all, wishes, here).iter().map(last).collect()
    }

    fn zone(zone: &str) -> Here {
        Here { zone: zone.into(), ..Here::default() }
    }

    #[test]
    fn the_lowest_tier_with_an_active_backend_serves() {
        let mut all = [backend(1), backend(2), backend(3)];
        all[1].priority = 1;
        all[2].priority = 2;
        let any = Wishes::default();
        assert_eq!(chosen(&all, any, &Here::default()), [1]);
        all[0].state = BackendState::Terminating;
        assert_eq!(chosen(&all, any, &Here::default()), [2], "fails over while the first drains");
        all[1].state = BackendState::NotReady;
        assert_eq!(chosen(&all, any, &Here::default()), [3]);
        all[2].state = BackendState::NotReady;
        assert_eq!(chosen(&all, any, &Here::default()), [1], "nothing else is left");
        all[0].state = BackendState::NotReady;
        assert!(chosen(&all, any, &Here::default()).is_empty());
    }

    #[test]
    fn a_local_service_is_served_by_this_node_or_not_at_all() {
        let all = [backend(1), backend(2)];
        let local = Wishes { local_only: true, ..Wishes::default() };
        let mut here = Here::default();
        assert!(chosen(&all, local, &here).is_empty());
        here.addresses.insert(all[1].address);
        assert_eq!(chosen(&all, local, &here), [2]);
    }

    #[test]
    fn the_own_zone_is_preferred_while_it_has_a_backend() {
        let mut all = [backend(1), backend(2), backend(3)];
        all[0].zone = "a".into();
        all[1].zone = "b".into();
        let close = Wishes { same_zone: true, ..Wishes::default() };
        assert_eq!(chosen(&all, close, &zone("b")), [2]);
        assert_eq!(chosen(&all, close, &zone("c")), [1, 2, 3]);
        assert_eq!(chosen(&all, close, &zone("")), [1, 2, 3]);
        assert_eq!(chosen(&all, Wishes::default(), &zone("b")), [1, 2, 3]);
        all[1].state = BackendState::Terminating;
        assert_eq!(chosen(&all, close, &zone("b")), [1, 3], "not its zone's last one that ends");
    }

    #[test]
    fn the_own_node_is_preferred_to_the_own_zone_while_it_has_a_backend() {
        let mut all = [backend(1), backend(2), backend(3)];
        all[0].zone = "a".into();
        all[1].zone = "a".into();
        let near = Wishes { same_zone: true, same_node: true, ..Wishes::default() };
        let here = Here { addresses: [all[1].address].into(), node: "n1".into(), zone: "a".into() };
        assert_eq!(chosen(&all, near, &here), [2]);
        assert_eq!(chosen(&all, Wishes { same_zone: true, ..Wishes::default() }, &here), [1, 2]);
        assert_eq!(chosen(&all, Wishes::default(), &here), [1, 2, 3]);
        all[1].state = BackendState::NotReady;
        assert_eq!(chosen(&all, near, &here), [1], "its zone's");
        all[0].state = BackendState::NotReady;
        assert_eq!(chosen(&all, near, &here), [3], "whoever is there");
        all[1].state = BackendState::Active;
        all[1].priority = 1;
        assert_eq!(chosen(&all, near, &here), [3], "a reserve is a reserve here too");
    }

    #[test]
    fn hints_for_nodes_go_before_those_for_zones_and_count_when_every_backend_has_them() {
        let mut all = [backend(1), backend(2), backend(3)];
        for (one, (node, zone)) in all.iter_mut().zip([("n1", "a"), ("n2", "a"), ("n3", "b")]) {
            one.hint_nodes.insert(node.into());
            one.hint_zones.insert(zone.into());
        }
        let at = |node: &str, zone: &str| Here { node: node.into(), zone: zone.into(), ..Here::default() };
        let any = Wishes::default();
        assert_eq!(chosen(&all, any, &at("n2", "a")), [2]);
        assert_eq!(chosen(&all, any, &at("n2", "")), [2], "the zone need not be known");
        assert_eq!(chosen(&all, any, &at("n9", "a")), [1, 2]);
        assert_eq!(chosen(&all, any, &at("n9", "c")), [1, 2, 3]);
        assert_eq!(chosen(&all, any, &at("", "")), [1, 2, 3]);
        all[2].hint_nodes.clear();
        assert_eq!(chosen(&all, any, &at("n2", "a")), [1, 2], "one has none");
    }

    #[test]
    fn hints_count_when_every_backend_has_them() {
        let mut all = [backend(1), backend(2)];
        all[0].hint_zones.insert("a".into());
        assert_eq!(chosen(&all, Wishes::default(), &zone("a")), [1, 2]);
        all[1].hint_zones.insert("b".into());
        assert_eq!(chosen(&all, Wishes::default(), &zone("a")), [1]);
        assert_eq!(chosen(&all, Wishes::default(), &zone("c")), [1, 2]);
    }
}
