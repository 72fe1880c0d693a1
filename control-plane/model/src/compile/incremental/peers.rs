//! Selectors of rules' peers with the identities that each of them finds, and the classes that use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    super::{
        Input,
        class::{Content, Fingerprint, Identities, Target, everybody, names_nodes, peers, targets},
    },
    identities::{Counted, Shift},
    labels::Selectors,
    services::Services,
};
use crate::{
    identity::{IdentityKey, IdentityNumber},
    policy::{NamespaceMatch, PeerMatch, PortMatch, ServiceMatch},
    resource::{Kind, LabelSelector, Object, Protocol, Service},
};

type PeerKey = Arc<(NamespaceMatch, LabelSelector)>;

#[derive(Debug, Clone, Default)]
pub(super) struct Peers {
    sets: BTreeMap<PeerKey, PeerSet>,
    selectors: Selectors<PeerKey>,
    /// Classes whose egress rules name ports: they change with the port names of the identities they select…
    naming: BTreeSet<Fingerprint>,
    /// …or of all identities.
    naming_all: BTreeSet<Fingerprint>,
    /// Classes that change with the addresses of nodes.
    pub(super) on_nodes: BTreeSet<Fingerprint>,
    /// Classes that change with who is a gateway.
    on_gateways: BTreeSet<Fingerprint>,
    /// Classes that name services.
    on_services: BTreeMap<Fingerprint, Vec<ServiceMatch>>,
}

#[derive(Debug, Clone, Default)]
struct PeerSet {
    found: BTreeSet<IdentityNumber>,
    users: BTreeSet<Fingerprint>,
}

impl Peers {
    /// A class is new: its selectors are resolved, unless another class has done so.
    pub(super) fn add(&mut self, user: &Fingerprint, content: &Content, identities: &Counted) {
        for key in selectors(content) {
            if !self.sets.contains_key(&key) {
                let (namespaces, pods) = &*key;
                let anchor = identities.labelled.anchor(namespaces.only(), pods);
                let set = PeerSet { found: find(identities, &key), users: BTreeSet::new() };
                self.selectors.insert(&key, namespaces.only(), anchor);
                self.sets.insert(key.clone(), set);
            }
            if let Some(set) = self.sets.get_mut(&key) {
                set.users.insert(*user);
            }
        }
        let (naming, naming_all) = names_ports(content);
        if naming {
            self.naming.insert(*user);
        }
        if naming_all {
            self.naming_all.insert(*user);
        }
        if names_nodes(content) {
            self.on_nodes.insert(*user);
        }
        if peers(content).any(|peer| *peer == PeerMatch::Gateways) {
            self.on_gateways.insert(*user);
        }
        let services = peers(content).filter_map(|peer| match peer {
            PeerMatch::Services(wanted) => Some(wanted.clone()),
            _ => None,
        });
        let services: Vec<ServiceMatch> = services.collect();
        if !services.is_empty() {
            self.on_services.insert(*user, services);
        }
    }

    /// Classes that name one of these services, as they were and as they are.
    pub(super) fn naming_services(&self, services: &[&Service]) -> Vec<Fingerprint> {
        let names = |wanted: &Vec<ServiceMatch>| wanted.iter().any(|w| services.iter().any(|s| w.matches(s)));
        self.on_services.iter().filter(|(_, wanted)| names(wanted)).map(|(user, _)| *user).collect()
    }

    /// Whether any class does.
    pub(super) fn names_services(&self) -> bool {
        !self.on_services.is_empty()
    }

    /// A class is gone.
    pub(super) fn remove(&mut self, user: &Fingerprint, content: &Content) {
        for key in selectors(content) {
            let Some(set) = self.sets.get_mut(&key) else { continue };
            set.users.remove(user);
            if set.users.is_empty() {
                self.sets.remove(&key);
                self.selectors.remove(&key);
            }
        }
        self.naming.remove(user);
        self.naming_all.remove(user);
        self.on_nodes.remove(user);
        self.on_gateways.remove(user);
        self.on_services.remove(user);
    }

    /// Takes over what became of identities; adds the classes whose rules change to `dirty`.
    pub(super) fn shift(&mut self, shifts: &[Shift], dirty: &mut BTreeSet<Fingerprint>) {
        for shift in shifts {
            if shift.ports {
                dirty.extend(&self.naming_all);
            }
            if shift.gateways {
                dirty.extend(&self.on_gateways);
            }
            let same_key = shift.before == shift.after;
            if !same_key {
                // Whom a service selects is looked up when a class is made.
                dirty.extend(self.on_services.keys());
            }
            for (key, present) in [(&shift.before, false), (&shift.after, true)] {
                let Some(key) = key else { continue };
                for candidate in self.selectors.candidates(&key.namespace, &key.labels) {
                    if !matches(candidate, key) {
                        continue;
                    }
                    let Some(set) = self.sets.get_mut(candidate) else { continue };
                    if same_key {
                        dirty.extend(set.users.iter().filter(|user| self.naming.contains(*user)));
                        continue;
                    }
                    if present {
                        set.found.insert(shift.number);
                    } else {
                        set.found.remove(&shift.number);
                    }
                    dirty.extend(&set.users);
                }
            }
        }
    }
}

/// Identities that a selector finds.
fn find(identities: &Counted, key: &(NamespaceMatch, LabelSelector)) -> BTreeSet<IdentityNumber> {
    let (namespaces, pods) = key;
    let anchor = identities.labelled.anchor(namespaces.only(), pods);
    let found = identities.labelled.candidates(namespaces.only(), &anchor);
    found.into_iter().filter(|n| identities.key(**n).is_some_and(|k| matches(key, k))).copied().collect()
}

fn matches((namespaces, pods): &(NamespaceMatch, LabelSelector), key: &IdentityKey) -> bool {
    pods.matches(&key.labels) && namespaces.matches(&key.namespace)
}

fn selectors(content: &Content) -> BTreeSet<PeerKey> {
    peers(content)
        .filter_map(|peer| match peer {
            PeerMatch::Workloads { namespaces, pods } => Some(Arc::new((namespaces.clone(), pods.clone()))),
            // They may turn out to be everybody.
            PeerMatch::Networks(_) => Some(Arc::new(everybody())),
            PeerMatch::Any
            | PeerMatch::Outside(_)
            | PeerMatch::World(_)
            | PeerMatch::Entity(_)
            | PeerMatch::Gateways
            | PeerMatch::Services(_)
            | PeerMatch::Names(_) => None,
        })
        .collect()
}

/// Whether egress rules name ports, and whether they do so for all peers.
fn names_ports(content: &Content) -> (bool, bool) {
    let rules = content.egress().flat_map(|side| &side.rules);
    let naming: Vec<_> =
        rules.filter(|rule| rule.ports.iter().any(|p| matches!(p, PortMatch::Named { .. }))).collect();
    let all = naming.iter().any(|rule| rule.peers.contains(&PeerMatch::Any));
    (!naming.is_empty(), all)
}

/// Answers from what is kept.
pub(super) struct Resolved<'a> {
    pub(super) peers: &'a Peers,
    pub(super) identities: &'a Counted,
    pub(super) nodes: &'a BTreeMap<IpAddr, BTreeSet<String>>,
    pub(super) input: &'a Input,
    pub(super) services: &'a Services,
}

impl Identities for Resolved<'_> {
    fn all(&self) -> Vec<IdentityNumber> {
        self.identities.numbers().collect()
    }

    fn select(&self, namespaces: &NamespaceMatch, pods: &LabelSelector) -> Vec<IdentityNumber> {
        let set = self.peers.sets.get(&(namespaces.clone(), pods.clone()));
        match set {
            Some(set) => set.found.iter().copied().collect(),
            // A service's.
            None => find(self.identities, &(namespaces.clone(), pods.clone())).into_iter().collect(),
        }
    }

    fn ports(&self, identity: IdentityNumber, protocol: Protocol, name: &str) -> Vec<u16> {
        self.identities.ports(identity, protocol, name)
    }

    fn nodes(&self) -> Vec<IpAddr> {
        self.nodes.keys().copied().collect()
    }

    fn pods(&self) -> Vec<IpNet> {
        self.input.cluster.pod_cidrs().collect()
    }

    fn gateways(&self) -> Vec<IdentityNumber> {
        self.identities.gateways()
    }

    fn services(&self, wanted: &ServiceMatch) -> Vec<Target> {
        let of =
            |service: &Service| targets(service, self.services.slices_of(self.input, &service.meta.name));
        match wanted {
            ServiceMatch::Named(name) => match self.input.object(Kind::Service, name) {
                Some(Object::Service(service)) => of(service),
                _ => Vec::new(),
            },
            ServiceMatch::Selected { .. } => {
                let services = self.input.objects.values().filter_map(|object| match object.as_ref() {
                    Object::Service(service) if wanted.matches(service) => Some(service),
                    _ => None,
                });
                services.flat_map(of).collect()
            }
        }
    }
}
