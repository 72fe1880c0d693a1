//! What Cilium's policies say of a flow, read from the objects as the user wrote them.

use super::{End, Side, World};
use crate::{
    compile::Direction,
    policy::Flow,
    resource::{
        CiliumEntity, CiliumEntry, CiliumPeers, CiliumPolicy, CiliumPort, CiliumSelector, Labels,
        NAMESPACE_NAME_LABEL, Workload,
    },
};

/// Adds what a policy says of traffic in this direction between `own` and `other`.
pub(super) fn judge(
    world: World<'_>,
    kind: &str,
    policy: &CiliumPolicy,
    direction: Direction,
    (own, other): (&Workload, &End<'_>),
    flow: &Flow,
    said: &mut Side,
) {
    let namespace = &policy.meta.name.namespace;
    let specs = policy.specs.iter().enumerate().map(|(i, rule)| (format!("specs[{i}]."), rule));
    for (place, rule) in policy.spec.iter().map(|rule| (String::new(), rule)).chain(specs) {
        let at_home = namespace.is_empty() || *namespace == own.meta.name.namespace;
        if !at_home || !selects(&rule.subject, "", own) {
            continue;
        }
        let side = match direction {
            Direction::Ingress => &rule.ingress,
            Direction::Egress => &rule.egress,
        };
        let name = format!("{kind}/{}#{place}", policy.meta.name);
        let word = direction.as_str();
        if side.default_deny.unwrap_or(!side.allow.is_empty() || !side.deny.is_empty()) {
            said.default_denials.push(format!("{name}default-deny-{word}"));
        }
        let matches =
            |entry: &CiliumEntry| entry_matches(world, entry, namespace, direction, (own, other), flow);
        for (i, entry) in side.deny.iter().enumerate() {
            if matches(entry) {
                said.denials.push(format!("{name}{word}Deny[{i}]"));
                said.denies_anybody |= anybody(entry);
            }
        }
        for (i, _) in side.allow.iter().enumerate().filter(|(_, entry)| matches(entry)) {
            said.permits.push(format!("{name}{word}[{i}]"));
        }
    }
}

/// Whether an entry is about whoever it is.
fn anybody(entry: &CiliumEntry) -> bool {
    match &entry.peers {
        CiliumPeers::Unsaid => true,
        CiliumPeers::Entities(list) => list.contains(&CiliumEntity::All),
        CiliumPeers::Endpoints(_) | CiliumPeers::Cidrs(_) | CiliumPeers::CidrSets(_) => false,
    }
}

/// `home` is the only namespace that it can mean when it names none; empty: any.
fn selects(selector: &CiliumSelector, home: &str, workload: &Workload) -> bool {
    let namespace = &workload.meta.name.namespace;
    let here: Labels = [(NAMESPACE_NAME_LABEL.to_owned(), namespace.clone())].into();
    let at_home = match &selector.namespaces {
        Some(namespaces) => namespaces.matches(&here),
        None => home.is_empty() || home == namespace,
    };
    at_home && selector.pods.matches(&workload.meta.labels)
}

fn entry_matches(
    world: World<'_>,
    entry: &CiliumEntry,
    home: &str,
    direction: Direction,
    (own, other): (&Workload, &End<'_>),
    flow: &Flow,
) -> bool {
    let by_peer = match &entry.peers {
        CiliumPeers::Unsaid => !entry.ports.is_empty(),
        CiliumPeers::Endpoints(list) => {
            matches!(other, End::Workload(w) if list.iter().any(|selector| selects(selector, home, w)))
        }
        CiliumPeers::Cidrs(list) => {
            matches!(other, End::Node { ip, .. } | End::Outside(ip) if list.iter().any(|net| net.contains(ip)))
        }
        CiliumPeers::CidrSets(list) => matches!(other, End::Node { ip, .. } | End::Outside(ip) if list.iter()
            .any(|set| set.cidr.contains(ip) && !set.except.iter().any(|except| except.contains(ip)))),
        CiliumPeers::Entities(list) => list.iter().any(|entity| match (entity, other) {
            (CiliumEntity::All, _) => true,
            (CiliumEntity::World, End::Outside(_)) => true,
            (CiliumEntity::WorldIpv4, End::Outside(ip)) => ip.is_ipv4(),
            (CiliumEntity::WorldIpv6, End::Outside(ip)) => ip.is_ipv6(),
            (CiliumEntity::Cluster, End::Workload(_) | End::Node { .. }) => true,
            (CiliumEntity::RemoteNode, End::Node { .. }) => true,
            _ => false,
        }),
    };
    let by_port = |port: &CiliumPort| {
        port.protocols().iter().any(|protocol| flow.protocol == (*protocol).into())
            && world.is_at(port.port.as_ref(), port.end_port, direction, (own, other), flow)
    };
    by_peer && (entry.ports.is_empty() || entry.ports.iter().any(by_port))
}
