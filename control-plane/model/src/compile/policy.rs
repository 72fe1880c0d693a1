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

use ipnet::IpNet;

use super::{
    Input, MeshWorkload, PolicyClass,
    class::{Content, Fingerprint, Identities, Numbering, OwnPort, class, own_ports, policy_labels},
    workloads::declared,
};
use crate::{
    identity::{IdentityKey, IdentityNumber},
    policy::{NamespaceMatch, NormalPolicy},
    resource::{LabelSelector, NamespacedName, Protocol},
};

/// Sets each workload's class, and returns the classes in use.
pub(super) fn compile(
    input: &Input,
    workloads: &mut BTreeMap<NamespacedName, MeshWorkload>,
    numbering: Numbering,
) -> BTreeMap<u32, PolicyClass> {
    let policies: Vec<Arc<NormalPolicy>> =
        input.objects.values().flat_map(|object| NormalPolicy::all_of(object)).map(Arc::new).collect();
    // By the only namespace that a policy can select workloads of; none: by labels alone.
    let mut by_namespace: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
    for (i, policy) in policies.iter().enumerate() {
        by_namespace.entry(policy.subject.namespaces.only()).or_default().push(i);
    }
    // By what selects them first: writing down the content once per group is cheaper than once per workload.
    let mut groups: BTreeMap<Group, (Content, Vec<&NamespacedName>)> = BTreeMap::new();
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
        group.or_insert_with(|| (content, Vec::new())).1.push(&workload.meta.name);
    }
    let mut contents: BTreeMap<Fingerprint, (Content, Vec<&NamespacedName>)> = BTreeMap::new();
    for (content, names) in groups.into_values() {
        contents.entry(content.fingerprint()).or_insert_with(|| (content, Vec::new())).1.extend(names);
    }
    let restricted = contents.iter().filter(|(_, (content, _))| !content.unrestricted());
    let mut numbers = numbering.assign(restricted.map(|(fingerprint, _)| fingerprint));
    if let Some((fingerprint, _)) = contents.iter().find(|(_, (content, _))| content.unrestricted()) {
        numbers.insert(0, *fingerprint);
    }
    let scan = Scan::new(input);
    let mut classes = BTreeMap::new();
    for (id, fingerprint) in numbers {
        let Some((content, names)) = contents.get(&fingerprint) else { continue };
        classes.insert(id, class(id, content, &scan));
        for name in names {
            if let Some(workload) = workloads.get_mut(*name) {
                workload.policy_class = id;
            }
        }
    }
    classes
}

/// What a class depends on: the policies that select a workload, by their place, and the workload's own meaning of the
/// port names that they use.
type Group = (Vec<usize>, Vec<OwnPort>);

/// Looks through all declared workloads. (The table also has identities of workloads that are gone, which would only
/// fill the kernel's maps.)
struct Scan<'a> {
    nodes: Vec<IpAddr>,
    pods: IpNet,
    identities: BTreeMap<IdentityNumber, IdentityKey>,
    ports: BTreeMap<IdentityNumber, BTreeSet<(Protocol, &'a str, u16)>>,
}

impl<'a> Scan<'a> {
    fn new(input: &'a Input) -> Self {
        let nodes = input.nodes.values().flat_map(|node| node.addresses()).collect();
        let mut scan =
            Self { nodes, pods: input.cluster.pod_cidr, identities: BTreeMap::new(), ports: BTreeMap::new() };
        for workload in declared(input) {
            let key = IdentityKey::of(&input.cluster.trust_domain, workload);
            let Some(number) = input.identities.lookup(&key) else { continue };
            scan.identities.insert(number, key);
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

    fn pods(&self) -> IpNet {
        self.pods
    }
}
