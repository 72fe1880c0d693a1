//! Identities of declared workloads: which there are, and what their ports are called.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{super::class::OwnPort, labels::Labelled};
use crate::{
    identity::{IdentityKey, IdentityNumber},
    resource::{NamespacedName, Protocol, ProxyMode, Workload},
};

/// Port names of an identity, with how many workloads give each.
type Ports = BTreeMap<(Protocol, String), BTreeMap<u16, usize>>;

#[derive(Debug, Clone, Default)]
pub(super) struct Counted {
    /// What each workload was counted as.
    of: BTreeMap<NamespacedName, (IdentityNumber, Vec<OwnPort>, bool)>,
    known: BTreeMap<IdentityNumber, Identity>,
    pub(super) labelled: Labelled<IdentityNumber>,
}

#[derive(Debug, Clone)]
struct Identity {
    key: Arc<IdentityKey>,
    workloads: usize,
    /// How many of them are gateways.
    gateways: usize,
    ports: Ports,
}

/// An identity as it was and as it is.
#[derive(Debug)]
pub(super) struct Shift {
    pub(super) number: IdentityNumber,
    /// None: it was not there.
    pub(super) before: Option<Arc<IdentityKey>>,
    /// None: it is gone.
    pub(super) after: Option<Arc<IdentityKey>>,
    /// Its workloads call their ports something else.
    pub(super) ports: bool,
    /// They are gateways, or are none any more.
    pub(super) gateways: bool,
}

/// What of an identity classes depend on: also whether all its workloads are gateways.
type Shown = (Arc<IdentityKey>, BTreeSet<OwnPort>, bool);

/// What was there before a round of changes, by number.
pub(super) type Before = BTreeMap<IdentityNumber, Option<Shown>>;

impl Counted {
    pub(super) fn numbers(&self) -> impl Iterator<Item = IdentityNumber> {
        self.known.keys().copied()
    }

    pub(super) fn key(&self, number: IdentityNumber) -> Option<&Arc<IdentityKey>> {
        self.known.get(&number).map(|identity| &identity.key)
    }

    pub(super) fn ports(&self, number: IdentityNumber, protocol: Protocol, name: &str) -> Vec<u16> {
        let named = self.known.get(&number).and_then(|i| i.ports.get(&(protocol, name.to_owned())));
        named.into_iter().flat_map(BTreeMap::keys).copied().collect()
    }

    /// Those whose workloads all are gateways.
    pub(super) fn gateways(&self) -> Vec<IdentityNumber> {
        let all = self.known.iter().filter(|(_, identity)| identity.gateways == identity.workloads);
        all.map(|(number, _)| *number).collect()
    }

    /// Forgets a workload. All that go must go before others come, lest two keys share a number for a moment.
    pub(super) fn forget(&mut self, workload: &NamespacedName, before: &mut Before) {
        let Some((number, ports, is_gateway)) = self.of.remove(workload) else { return };
        self.remember(number, before);
        let Some(identity) = self.known.get_mut(&number) else { return };
        for (protocol, name, port) in ports {
            let Some(numbers) = identity.ports.get_mut(&(protocol, name.clone())) else { continue };
            if let Some(count) = numbers.get_mut(&port) {
                *count -= 1;
                if *count == 0 {
                    numbers.remove(&port);
                }
            }
            if numbers.is_empty() {
                identity.ports.remove(&(protocol, name));
            }
        }
        identity.workloads -= 1;
        identity.gateways -= usize::from(is_gateway);
        if identity.workloads == 0 {
            let key = identity.key.clone();
            self.known.remove(&number);
            self.labelled.remove(&key.namespace, &key.labels, &number);
        }
    }

    pub(super) fn count(
        &mut self,
        workload: &Workload,
        number: IdentityNumber,
        key: &Arc<IdentityKey>,
        before: &mut Before,
    ) {
        self.remember(number, before);
        if !self.known.contains_key(&number) {
            self.labelled.insert(&key.namespace, &key.labels, &number);
        }
        let identity = self.known.entry(number).or_insert_with(|| Identity {
            key: key.clone(),
            workloads: 0,
            gateways: 0,
            ports: Ports::new(),
        });
        identity.workloads += 1;
        let is_gateway = workload.proxy == ProxyMode::Gateway;
        identity.gateways += usize::from(is_gateway);
        let ports: Vec<_> =
            workload.ports.iter().filter_map(|p| Some((p.protocol, p.name.clone()?, p.port))).collect();
        for (protocol, name, port) in &ports {
            let numbers = identity.ports.entry((*protocol, name.clone())).or_default();
            *numbers.entry(*port).or_default() += 1;
        }
        self.of.insert(workload.meta.name.clone(), (number, ports, is_gateway));
    }

    fn remember(&self, number: IdentityNumber, before: &mut Before) {
        before.entry(number).or_insert_with(|| self.shown(number));
    }

    fn shown(&self, number: IdentityNumber) -> Option<Shown> {
        let identity = self.known.get(&number)?;
        let ports = identity.ports.iter().flat_map(|((protocol, name), numbers)| {
            numbers.keys().map(|port| (*protocol, name.clone(), *port))
        });
        Some((identity.key.clone(), ports.collect(), identity.gateways == identity.workloads))
    }

    /// What is different after a round.
    pub(super) fn shifts(&self, before: Before) -> Vec<Shift> {
        let mut shifts = Vec::new();
        for (number, before) in before {
            let after = self.shown(number);
            if before == after {
                continue;
            }
            let [(ports_before, gateways_before), (ports, gateways)] = [&before, &after]
                .map(|shown| (shown.as_ref().map(|s| &s.1), shown.as_ref().is_some_and(|s| s.2)));
            shifts.push(Shift {
                number,
                ports: ports_before != ports,
                gateways: gateways_before || gateways,
                before: before.map(|(key, ..)| key),
                after: after.map(|(key, ..)| key),
            });
        }
        shifts
    }
}
