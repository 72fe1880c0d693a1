//! Selectors of rules' peers with the identities that each of them finds, and the classes that use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    super::class::{Content, Fingerprint, Identities, everybody, names_nodes},
    identities::{Counted, Shift},
    labels::Selectors,
};
use crate::{
    identity::{IdentityKey, IdentityNumber},
    policy::{NamespaceMatch, PeerMatch, PortMatch},
    resource::{LabelSelector, Protocol},
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
                let found = identities.labelled.candidates(namespaces.only(), &anchor);
                let matching =
                    found.into_iter().filter(|n| identities.key(**n).is_some_and(|k| matches(&key, k)));
                let set = PeerSet { found: matching.copied().collect(), users: BTreeSet::new() };
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
    }

    /// Takes over what became of identities; adds the classes whose rules change to `dirty`.
    pub(super) fn shift(&mut self, shifts: &[Shift], dirty: &mut BTreeSet<Fingerprint>) {
        for shift in shifts {
            if shift.ports {
                dirty.extend(&self.naming_all);
            }
            let same_key = shift.before == shift.after;
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

fn matches((namespaces, pods): &(NamespaceMatch, LabelSelector), key: &IdentityKey) -> bool {
    pods.matches(&key.labels) && namespaces.matches(&key.namespace)
}

fn selectors(content: &Content) -> BTreeSet<PeerKey> {
    let rules = content.ingress().chain(content.egress()).flat_map(|side| &side.rules);
    let peers = rules.flat_map(|rule| &rule.peers);
    peers
        .filter_map(|peer| match peer {
            PeerMatch::Workloads { namespaces, pods } => Some(Arc::new((namespaces.clone(), pods.clone()))),
            // They may turn out to be everybody.
            PeerMatch::Networks(_) => Some(Arc::new(everybody())),
            PeerMatch::Any | PeerMatch::Outside(_) | PeerMatch::World(_) | PeerMatch::Nodes => None,
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
    pub(super) pods: IpNet,
}

impl Identities for Resolved<'_> {
    fn all(&self) -> Vec<IdentityNumber> {
        self.identities.numbers().collect()
    }

    fn select(&self, namespaces: &NamespaceMatch, pods: &LabelSelector) -> Vec<IdentityNumber> {
        let set = self.peers.sets.get(&(namespaces.clone(), pods.clone()));
        set.map(|set| set.found.iter().copied().collect()).unwrap_or_default()
    }

    fn ports(&self, identity: IdentityNumber, protocol: Protocol, name: &str) -> Vec<u16> {
        self.identities.ports(identity, protocol, name)
    }

    fn nodes(&self) -> Vec<IpAddr> {
        self.nodes.keys().copied().collect()
    }

    fn pods(&self) -> IpNet {
        self.pods
    }
}
