//! Policy classes: what the kernel's maps are keyed by.
//!
//! A class's number is a hash of what its policies *say*, not of the identities that their selectors find at the
//! moment. So a new identity adds rules to a class that stays, and an edited policy makes another class, to
//! which endpoints move in one step: the verdict is the old one or the new one, never a mixture. And it is a function
//! of the state alone, so that replicas agree on it whatever each of them has compiled before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::IpNet;

use super::{
    Input, MeshWorkload, PolicyClass,
    class::{
        Content, Fingerprint, Identities, Numbering, OwnPort, Target, class, own_ports, policy_labels,
        targets,
    },
    workloads::declared,
};
use crate::{
    identity::{IdentityKey, IdentityNumber},
    policy::{NamespaceMatch, Namespaces, NormalPolicy, ServiceMatch},
    resource::{LabelSelector, NamespacedName, Object, Protocol, ProxyMode, Service},
};

/// Who has a class.
enum Member<'a> {
    Workload(&'a NamespacedName),
    Node(&'a String),
}

/// Sets each workload's class, and returns the classes in use, and those of nodes that a policy selects.
pub(super) fn compile(
    input: &Input,
    workloads: &mut BTreeMap<NamespacedName, MeshWorkload>,
    numbering: Numbering,
) -> (BTreeMap<u32, PolicyClass>, OrdMap<String, u32>) {
    let namespaces = Namespaces::of(&input.objects);
    let all = input.objects.values().flat_map(|object| NormalPolicy::all_of(object, namespaces));
    let policies: Vec<Arc<NormalPolicy>> = all.map(Arc::new).collect();
    // By the only namespace that a policy can select workloads of; none: by labels alone.
    let mut by_namespace: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
    for (i, policy) in policies.iter().enumerate() {
        by_namespace.entry(policy.subject.namespaces.only()).or_default().push(i);
    }
    // By what selects them first: writing down the content once per group is cheaper than once per workload.
    let mut groups: BTreeMap<Group, (Content, Vec<Member<'_>>)> = BTreeMap::new();
    for workload in declared(input) {
        let namespace = workload.meta.name.namespace.as_str();
        let labels = policy_labels(workload);
        let candidates = [Some(namespace), None].into_iter().filter_map(|n| by_namespace.get(&n)).flatten();
        let mut selecting: Vec<usize> =
            candidates.copied().filter(|i| policies[*i].subject.matches(namespace, &labels)).collect();
        selecting.sort_unstable();
        let chosen: Vec<Arc<NormalPolicy>> = selecting.iter().map(|i| policies[*i].clone()).collect();
        let ports = own_ports(workload, &chosen);
        let group = groups.entry((selecting, ports.clone()));
        let content = Content { policies: chosen, own_ports: ports };
        group.or_insert_with(|| (content, Vec::new())).1.push(Member::Workload(&workload.meta.name));
    }
    for (name, node) in &input.nodes {
        let labels = node.labels();
        let selecting: Vec<usize> =
            (0..policies.len()).filter(|i| policies[*i].subject.selects_node(&labels)).collect();
        if selecting.is_empty() {
            continue;
        }
        let chosen = selecting.iter().map(|i| policies[*i].clone()).collect();
        let content = Content { policies: chosen, own_ports: Vec::new() };
        groups
            .entry((selecting, Vec::new()))
            .or_insert_with(|| (content, Vec::new()))
            .1
            .push(Member::Node(name));
    }
    let mut contents: BTreeMap<Fingerprint, (Content, Vec<Member<'_>>)> = BTreeMap::new();
    for (content, names) in groups.into_values() {
        contents.entry(content.fingerprint()).or_insert_with(|| (content, Vec::new())).1.extend(names);
    }
    let restricted = contents.iter().filter(|(_, (content, _))| !content.unrestricted());
    let mut numbers = numbering.assign(restricted.map(|(fingerprint, _)| fingerprint));
    if let Some((fingerprint, _)) = contents.iter().find(|(_, (content, _))| content.unrestricted()) {
        numbers.insert(0, *fingerprint);
    }
    let scan = Scan::new(input);
    let (mut classes, mut hosts) = (BTreeMap::new(), OrdMap::new());
    for (id, fingerprint) in numbers {
        let Some((content, members)) = contents.get(&fingerprint) else { continue };
        classes.insert(id, class(id, content, &scan));
        for member in members {
            match member {
                Member::Workload(name) => {
                    if let Some(workload) = workloads.get_mut(*name) {
                        workload.policy_class = id;
                    }
                }
                Member::Node(name) => drop(hosts.insert((*name).clone(), id)),
            }
        }
    }
    (classes, hosts)
}

/// What a class depends on: the policies that select a workload, by their place, and the workload's own meaning of the
/// port names that they use.
type Group = (Vec<usize>, Vec<OwnPort>);

/// Looks through all declared workloads. (The table also has identities of workloads that are gone, which would only
/// fill the kernel's maps.)
struct Scan<'a> {
    input: &'a Input,
    nodes: Vec<IpAddr>,
    /// Identities of which a workload is no gateway.
    plain: BTreeSet<IdentityNumber>,
    identities: BTreeMap<IdentityNumber, IdentityKey>,
    ports: BTreeMap<IdentityNumber, BTreeSet<(Protocol, &'a str, u16)>>,
}

impl<'a> Scan<'a> {
    fn new(input: &'a Input) -> Self {
        let nodes = input.nodes.values().flat_map(|node| node.addresses()).collect();
        let (identities, ports) = (BTreeMap::new(), BTreeMap::new());
        let mut scan = Self { input, nodes, plain: BTreeSet::new(), identities, ports };
        for workload in declared(input) {
            let key = IdentityKey::of(&input.cluster.trust_domain, workload);
            let Some(number) = input.identities.lookup(&key) else { continue };
            scan.identities.insert(number, key);
            if workload.proxy != ProxyMode::Gateway {
                scan.plain.insert(number);
            }
            let named = workload.ports.iter().filter_map(|p| Some((p.protocol, p.name.as_deref()?, p.port)));
            scan.ports.entry(number).or_default().extend(named);
        }
        scan
    }
}

impl Identities for Scan<'_> {
    fn all(&self) -> Vec<IdentityNumber> {
        self.identities.keys().copied().collect()
    }

    fn select(&self, namespaces: &NamespaceMatch, pods: &LabelSelector) -> Vec<IdentityNumber> {
        let matching = self
            .identities
            .iter()
            .filter(|(_, key)| namespaces.matches(&key.namespace) && pods.matches(&key.labels));
        matching.map(|(number, _)| *number).collect()
    }

    fn ports(&self, identity: IdentityNumber, protocol: Protocol, name: &str) -> Vec<u16> {
        let named = self.ports.get(&identity).into_iter().flatten();
        named.filter(|(p, n, _)| *p == protocol && *n == name).map(|(_, _, port)| *port).collect()
    }

    fn nodes(&self) -> Vec<IpAddr> {
        self.nodes.clone()
    }

    fn pods(&self) -> Vec<IpNet> {
        self.input.cluster.pod_cidrs().collect()
    }

    fn gateways(&self) -> Vec<IdentityNumber> {
        self.identities.keys().filter(|number| !self.plain.contains(number)).copied().collect()
    }

    fn services(&self, wanted: &ServiceMatch) -> Vec<Target> {
        let objects = || self.input.objects.values().map(AsRef::as_ref);
        let services = objects().filter_map(|object| match object {
            Object::Service(service) if wanted.matches(service) => Some(service),
            _ => None,
        });
        let of = |service: &'_ Service| {
            let name = service.meta.name.clone();
            let slices = objects().filter_map(move |object| match object {
                Object::EndpointSlice(slice) if slice.is_of(&name) => Some(slice),
                _ => None,
            });
            targets(service, slices)
        };
        services.flat_map(of).collect()
    }
}
