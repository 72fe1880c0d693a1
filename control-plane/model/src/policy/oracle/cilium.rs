//! What Cilium's policies say of a flow, read from the objects as the user wrote them.

use super::{End, Side, World, same_identity};
use crate::{
    compile::{Direction, FlowProtocol},
    policy::Flow,
    resource::{
        CiliumEntity, CiliumEntry, CiliumPeers, CiliumPolicy, CiliumPort, CiliumRule, CiliumSelector,
        CiliumService, Object, ProxyMode, Service, Workload,
    },
};

/// Adds what a policy says of traffic in this direction between `own` and `other`.
pub(super) fn judge(
    world: World<'_>,
    kind: &str,
    policy: &CiliumPolicy,
    direction: Direction,
    (own, other): (&End<'_>, &End<'_>),
    flow: &Flow,
    said: &mut Side,
) {
    let home = policy.meta.name.namespace.as_str();
    let specs = policy.specs.iter().enumerate().map(|(i, rule)| (format!("specs[{i}]."), rule));
    for (place, rule) in policy.spec.iter().map(|rule| (String::new(), rule)).chain(specs) {
        if !is_subject(world, rule, home, own) {
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
        let entry = Entry { world, home, direction, own, other, flow };
        for (i, _) in side.deny.iter().enumerate().filter(|(_, deny)| entry.matches(deny)) {
            said.denials.push(format!("{name}{word}Deny[{i}]"));
        }
        for (i, allow) in side.allow.iter().enumerate().filter(|(_, allow)| entry.matches(allow)) {
            said.permits.push(format!("{name}{word}[{i}]"));
            said.permits_unread |= allow.dns.is_empty() && allow.proxy.is_none() && allow.http.is_empty();
            said.requests.extend(allow.http.iter().cloned());
        }
    }
}

fn is_subject(world: World<'_>, rule: &CiliumRule, home: &str, own: &End<'_>) -> bool {
    match (own, &rule.nodes) {
        (End::Workload(own), None) => {
            let at_home = home.is_empty() || home == own.meta.name.namespace;
            at_home && selects(world, &rule.subject, "", own)
        }
        (End::Node { names, .. }, Some(selector)) => {
            let node = names.first().and_then(|name| world.nodes.get(*name));
            node.is_some_and(|node| selector.matches(&node.labels()))
        }
        _ => false,
    }
}

/// `home` is the only namespace that it can mean when it names none; empty: any.
fn selects(world: World<'_>, selector: &CiliumSelector, home: &str, workload: &Workload) -> bool {
    let namespace = &workload.meta.name.namespace;
    let at_home = match &selector.namespaces {
        Some(namespaces) => namespaces.matches(&world.namespace_labels(namespace)),
        None => home.is_empty() || home == namespace,
    };
    at_home && selector.pods.matches(&workload.meta.labels)
}

/// What an entry is held against.
struct Entry<'a> {
    world: World<'a>,
    home: &'a str,
    direction: Direction,
    own: &'a End<'a>,
    other: &'a End<'a>,
    flow: &'a Flow,
}

impl Entry<'_> {
    fn matches(&self, entry: &CiliumEntry) -> bool {
        let other = self.other;
        let by_peer = match &entry.peers {
            CiliumPeers::Unsaid => !entry.ports.is_empty() || !entry.icmps.is_empty(),
            CiliumPeers::Endpoints(list) => {
                matches!(other, End::Workload(w) | End::OwnNode(Some(w)) if list.iter().any(|selector| selects(self.world, selector, self.home, w)))
            }
            CiliumPeers::Cidrs(list) => {
                matches!(other, End::Node { ip, .. } | End::Outside(ip, _) if list.iter().any(|net| net.contains(ip)))
            }
            CiliumPeers::CidrSets(list) => {
                matches!(other, End::Node { ip, .. } | End::Outside(ip, _) if list.iter()
                    .any(|set| set.cidr.contains(ip) && !set.except.iter().any(|except| except.contains(ip))))
            }
            CiliumPeers::Entities(list) => list.iter().any(|entity| self.is_entity(*entity)),
            CiliumPeers::Services(list) => list.iter().any(|service| self.is_behind(service)),
            CiliumPeers::Names(list) => {
                matches!(other, End::Outside(_, Some(name)) if list.iter().any(|pattern| pattern.matches(name)))
            }
        };
        let flow = self.flow;
        let any = entry.ports.is_empty() && entry.icmps.is_empty();
        let by_type = entry.icmps.iter().any(|icmp| {
            let protocol = if icmp.v6 { FlowProtocol::Icmpv6 } else { FlowProtocol::Icmp };
            flow.protocol == protocol && flow.port / 256 == u16::from(icmp.kind)
        });
        by_peer && (any || by_type || entry.ports.iter().any(|port| self.is_port(port)))
    }

    fn is_port(&self, port: &CiliumPort) -> bool {
        let spoken = port.protocols().iter().any(|protocol| self.flow.protocol == (*protocol).into());
        let number = |own| {
            self.world.is_at(port.port.as_ref(), port.end_port, self.direction, (own, self.other), self.flow)
        };
        match self.own {
            End::Workload(own) => spoken && number(Some(*own)),
            _ => spoken && number(None),
        }
    }

    fn is_entity(&self, entity: CiliumEntity) -> bool {
        match (entity, self.other) {
            (CiliumEntity::All, _) => true,
            (CiliumEntity::World, End::Outside(..)) => true,
            (CiliumEntity::WorldIpv4, End::Outside(ip, _)) => ip.is_ipv4(),
            (CiliumEntity::WorldIpv6, End::Outside(ip, _)) => ip.is_ipv6(),
            (CiliumEntity::Cluster, End::Workload(_) | End::Node { .. } | End::OwnNode(_)) => true,
            (CiliumEntity::Mesh, End::Workload(_) | End::OwnNode(Some(_))) => true,
            (CiliumEntity::RemoteNode, End::Node { .. }) => true,
            (CiliumEntity::Host | CiliumEntity::Health, End::OwnNode(_)) => true,
            (CiliumEntity::Unmanaged, End::Unmanaged) => true,
            (CiliumEntity::Ingress, End::Workload(other) | End::OwnNode(Some(other))) => {
                let alike = self.world.workloads().filter(|w| same_identity(w, other));
                alike.into_iter().all(|w| w.proxy == ProxyMode::Gateway)
            }
            (CiliumEntity::KubeApiserver, _) => self.leads(|service| {
                service.meta.name.namespace == "default" && service.meta.name.name == "kubernetes"
            }),
            _ => false,
        }
    }

    fn is_behind(&self, wanted: &CiliumService) -> bool {
        self.leads(|service| {
            let name = &service.meta.name;
            match wanted {
                CiliumService::Named { namespace, name: wanted } => {
                    name.namespace == namespace.as_deref().unwrap_or(self.home) && name.name == *wanted
                }
                CiliumService::Selected { namespace, labels } => {
                    let namespace = namespace.as_deref().unwrap_or(self.home);
                    (namespace.is_empty() || name.namespace == namespace)
                        && labels.matches(&service.meta.labels)
                }
            }
        })
    }

    /// Whether one of these services leads to the other end.
    fn leads(&self, wanted: impl Fn(&Service) -> bool) -> bool {
        let objects = || self.world.objects.values().map(AsRef::as_ref);
        let services = objects().filter_map(|object| match object {
            Object::Service(service) if wanted(service) => Some(service),
            _ => None,
        });
        services.into_iter().any(|service| {
            let name = &service.meta.name;
            match self.other {
                End::Workload(other) | End::OwnNode(Some(other)) => {
                    !service.selector.is_empty()
                        && other.meta.name.namespace == name.namespace
                        && service.selector.iter().all(|(key, value)| {
                            crate::identity::is_policy_label(key) && other.meta.labels.get(key) == Some(value)
                        })
                }
                End::Outside(ip, _) | End::Node { ip, .. } => {
                    service.selector.is_empty()
                        && objects().any(|object| {
                            matches!(object, Object::EndpointSlice(slice)
                                if slice.service == name.name && slice.meta.name.namespace == name.namespace
                                    && slice.endpoints.iter().any(|endpoint| endpoint.addresses.contains(ip)))
                        })
                }
                _ => false,
            }
        })
    }
}
