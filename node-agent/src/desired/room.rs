//! Whether the maps have room for what is to be written. It is looked at before anything is: a map that is full in the
//! middle of a change would leave the rest of the change unmade. Policy is one change; of services, each is one.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_shared::limits;
use thiserror::Error;

use super::{Desired, MapOp, ServiceEntry, table::is_host};

/// A map that is too small.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("kernel map {map} has room for {limit} entries, {wanted} are wanted: nothing was changed")]
pub struct Full {
    /// Its name.
    pub map: &'static str,
    /// What would be in it.
    pub wanted: usize,
    /// What fits.
    pub limit: usize,
}

/// Ceilings of the maps that the agent writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Limits {
    pub hosts: u32,
    pub lingering: u32,
    pub cidrs: u32,
    pub endpoints: u32,
    pub classes: u32,
    pub peers: u32,
    pub rules: u32,
    pub services: u32,
    pub backends: u32,
    pub sources: u32,
    pub netns: u32,
    pub captured: u32,
}

impl Limits {
    /// The kernel's.
    pub const KERNEL: Self = Self {
        hosts: limits::HOSTS,
        lingering: limits::LINGERING,
        // One is always there.
        cidrs: limits::CIDRS - 1,
        endpoints: limits::ENDPOINTS,
        classes: limits::CLASSES - 1,
        peers: limits::PEERS,
        rules: limits::RULES,
        services: limits::SERVICES,
        backends: limits::BACKENDS,
        sources: limits::SOURCES,
        netns: limits::NETNS,
        captured: limits::CAPTURED,
    };

    /// Whether the writes fit.
    ///
    /// # Errors
    /// Names the first map that they don't fit in.
    pub fn check(&self, current: &Desired, ops: &[MapOp]) -> Result<(), Full> {
        let mut added: BTreeMap<&'static str, usize> = BTreeMap::new();
        for op in ops {
            for (map, count) in additions(op, current) {
                *added.entry(map).or_default() += count;
            }
        }
        for (map, added) in added {
            let (held, limit) = self.of(map, current);
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            if added > 0 && held + added > limit {
                return Err(Full { map, wanted: held + added, limit });
            }
        }
        Ok(())
    }

    fn of(&self, map: &'static str, current: &Desired) -> (usize, u32) {
        match map {
            HOSTS => (current.identities.hosts(), self.hosts),
            LINGERING => (current.lingering.len(), self.lingering),
            CIDRS => (current.identities.len() - current.identities.hosts(), self.cidrs),
            ENDPOINTS => (current.endpoints.len(), self.endpoints),
            CLASSES => (current.classes.len(), self.classes),
            PEERS => (current.classes.values().map(|entry| entry.peers.len()).sum(), self.peers),
            SERVICES => (current.services.len(), self.services),
            BACKENDS => {
                (current.services.values().map(|service| service.backends.len()).sum(), self.backends)
            }
            SOURCES => (current.services.values().map(|service| service.sources.len()).sum(), self.sources),
            NETNS => (current.netns.len(), self.netns),
            CAPTURED => (current.netns.values().map(|entry| entry.captured.len()).sum(), self.captured),
            _ => (current.rulesets.values().map(|set| set.entries().len()).sum(), self.rules),
        }
    }
}

/// Which writes of sidecars fit: no verdict of policy depends on them, so one that does not keeps out no other.
pub fn sidecars_without_room(
    limits: Limits,
    current: &Desired,
    ops: &[MapOp],
) -> (BTreeSet<u64>, Option<Full>) {
    let maps = [NETNS, CAPTURED];
    let mut held = maps.map(|map| limits.of(map, current));
    let (mut left, mut first) = (BTreeSet::new(), None);
    for op in ops {
        let MapOp::PutNetns(cookie, _) = op else { continue };
        let added = maps.map(|wanted| {
            let all = additions(op, current).into_iter().filter(|(map, _)| *map == wanted);
            all.map(|(_, count)| count).sum::<usize>()
        });
        let full = maps.iter().zip(held).zip(added).find_map(|((map, (held, limit)), added)| {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            (added > 0 && held + added > limit).then_some(Full { map, wanted: held + added, limit })
        });
        match full {
            Some(full) => {
                left.insert(*cookie);
                first = first.or(Some(full));
            }
            None => held.iter_mut().zip(added).for_each(|((held, _), added)| *held += added),
        }
    }
    (left, first)
}

/// What the maps of services hold while services are written one by one.
#[derive(Debug)]
pub struct ServiceRoom {
    limits: Limits,
    /// Of `SERVICES`, `BACKENDS` and `SOURCES`.
    held: [usize; 3],
}

impl ServiceRoom {
    /// Counts what is there.
    pub fn new(limits: Limits, current: &Desired) -> Self {
        Self { limits, held: [SERVICES, BACKENDS, SOURCES].map(|map| limits.of(map, current).0) }
    }

    /// Whether the write of a service fits beside what is there.
    ///
    /// # Errors
    /// Names the first map that it doesn't fit in.
    pub fn check(&self, op: &MapOp, current: &Desired) -> Result<(), Full> {
        let limits = [self.limits.services, self.limits.backends, self.limits.sources];
        for (map, added) in additions(op, current) {
            let Some(at) = [SERVICES, BACKENDS, SOURCES].iter().position(|known| *known == map) else {
                continue;
            };
            let limit = usize::try_from(limits[at]).unwrap_or(usize::MAX);
            let wanted = self.held[at] + added;
            if added > 0 && wanted > limit {
                return Err(Full { map, wanted, limit });
            }
        }
        Ok(())
    }

    /// The write is about to be made. Whether there is more room in some map than before.
    pub fn note(&mut self, op: &MapOp, current: &Desired) -> bool {
        let count = |entry: &ServiceEntry| [1, entry.backends.len(), entry.sources.len()];
        let (frontend, after) = match op {
            MapOp::PutService(frontend, entry) => (frontend, count(entry)),
            MapOp::RemoveService(frontend) => (frontend, [0; 3]),
            _ => return false,
        };
        let before = current.services.get(frontend).map_or([0; 3], count);
        for (held, (before, after)) in self.held.iter_mut().zip(before.into_iter().zip(after)) {
            *held = (*held + after).saturating_sub(before);
        }
        before.into_iter().zip(after).any(|(before, after)| after < before)
    }
}

const HOSTS: &str = "HOSTS";
const LINGERING: &str = "LINGERING";
const CIDRS: &str = "CIDRS";
const ENDPOINTS: &str = "ENDPOINTS";
const CLASSES: &str = "CLASSES";
const PEERS: &str = "PEERS";
const RULES: &str = "RULES";
const SERVICES: &str = "SERVICES";
const BACKENDS: &str = "BACKENDS";
const SOURCES: &str = "SOURCES";
const NETNS: &str = "NETNS";
const CAPTURED: &str = "CAPTURED";

/// Entries that a write adds.
fn additions(op: &MapOp, current: &Desired) -> Vec<(&'static str, usize)> {
    match op {
        MapOp::PutRuleSet(_, set) => vec![(RULES, set.entries().len())],
        MapOp::PutClass(_, entry) => vec![(CLASSES, 1), (PEERS, entry.peers.len())],
        MapOp::PutPeer { class, identity, .. } => {
            let is_there = current.classes.get(class).is_some_and(|entry| entry.peers.contains_key(identity));
            vec![(PEERS, usize::from(!is_there))]
        }
        MapOp::PutIdentity(net, _) => {
            let map = if is_host(net) { HOSTS } else { CIDRS };
            vec![(map, usize::from(!current.identities.contains_key(net)))]
        }
        MapOp::PutLingering(address, _) => {
            vec![(LINGERING, usize::from(!current.lingering.contains_key(address)))]
        }
        MapOp::PutEndpoint(ifindex, _) => {
            vec![(ENDPOINTS, usize::from(!current.endpoints.contains_key(ifindex)))]
        }
        // New backends are there before the old ones go.
        MapOp::PutService(frontend, entry) => {
            let before = current.services.get(frontend);
            let backends =
                entry.backends.keys().filter(|at| before.is_none_or(|old| !old.backends.contains_key(at)));
            let sources =
                entry.sources.iter().filter(|net| before.is_none_or(|old| !old.sources.contains(net)));
            vec![
                (SERVICES, usize::from(before.is_none())),
                (BACKENDS, backends.count()),
                (SOURCES, sources.count()),
            ]
        }
        MapOp::PutNetns(cookie, entry) => {
            let before = current.netns.get(cookie);
            let ports =
                entry.captured.iter().filter(|port| before.is_none_or(|old| !old.captured.contains(port)));
            vec![(NETNS, usize::from(before.is_none())), (CAPTURED, ports.count())]
        }
        MapOp::RemovePeer { .. }
        | MapOp::RemoveIdentity(_)
        | MapOp::RemoveLingering(_)
        | MapOp::PutProxy(..)
        | MapOp::RemoveEndpoint(_)
        | MapOp::RemoveService(_)
        | MapOp::RemoveNetns(_)
        | MapOp::RemoveClass(..)
        | MapOp::RemoveRuleSet(..) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_that_does_not_fit_keeps_out_no_other() {
        use super::super::NetnsEntry;
        let netns = |ports: u16| NetnsEntry { captured: (1..=ports).map(|port| (port, 6)).collect() };
        let mut current = Desired::default();
        current.netns.insert(1, netns(2));
        let small = Limits { netns: 3, captured: 5, ..Limits::KERNEL };
        let ops = [
            MapOp::PutNetns(2, netns(4)),
            MapOp::PutNetns(3, netns(2)),
            // It takes the place of the same ports, and one more.
            MapOp::PutNetns(1, netns(3)),
            MapOp::PutNetns(4, netns(0)),
            MapOp::PutNetns(5, netns(0)),
        ];
        let (left, full) = sidecars_without_room(small, &current, &ops);
        assert_eq!(left, BTreeSet::from([2, 5]));
        assert_eq!(full, Some(Full { map: "CAPTURED", wanted: 6, limit: 5 }));
        assert_eq!(sidecars_without_room(Limits::KERNEL, &current, &ops), (BTreeSet::new(), None));
    }

    #[test]
    fn services_are_counted_one_by_one_and_what_goes_makes_room() {
        use super::super::{Scope, ServedBackend, ServiceFrontend};
        let frontend = |port| ServiceFrontend {
            address: [10, 101, 0, 1].into(),
            port,
            protocol: 6,
            scope: Scope::Inside,
        };
        let put = |port, backends: u8| {
            let backends =
                (0..backends).map(|last| (([10, 1, 2, last], 80).into(), ServedBackend::default()));
            MapOp::PutService(
                frontend(port),
                ServiceEntry { backends: backends.collect(), ..Default::default() },
            )
        };
        let mut current = Desired::default();
        let mut room = ServiceRoom::new(Limits { services: 2, backends: 5, ..Limits::KERNEL }, &current);
        let mut make = |op: MapOp| {
            room.check(&op, &current)?;
            let frees = room.note(&op, &current);
            op.apply(&mut current);
            Ok(frees)
        };
        assert_eq!((make(put(1, 2)), make(put(2, 2))), (Ok(false), Ok(false)));
        assert_eq!(make(put(3, 0)), Err(Full { map: "SERVICES", wanted: 3, limit: 2 }));
        assert_eq!(make(put(2, 4)), Err(Full { map: "BACKENDS", wanted: 6, limit: 5 }));
        assert_eq!(make(put(1, 1)), Ok(true));
        assert_eq!(make(put(2, 4)), Ok(false));
        assert_eq!(make(MapOp::RemoveService(frontend(1))), Ok(true));
        assert_eq!(make(put(3, 1)), Ok(false));
    }

    #[test]
    fn what_does_not_fit_is_named_and_what_replaces_always_fits() {
        let net = |n: u8| format!("10.0.0.{n}/32").parse().unwrap();
        let mut current = Desired::default();
        current.identities.insert(net(1), 300);
        current.identities.insert(net(2), 300);
        let small = Limits { hosts: 2, ..Limits::KERNEL };
        assert_eq!(small.check(&current, &[MapOp::PutIdentity(net(1), 301)]), Ok(()));
        let full = small.check(&current, &[MapOp::PutIdentity(net(3), 301)]).unwrap_err();
        assert_eq!(full, Full { map: "HOSTS", wanted: 3, limit: 2 });
        assert!(full.to_string().contains("HOSTS") && full.to_string().contains('2'));
    }
}
