//! What is to change, as writes in an order in which each of them leaves every verdict as it was or as it is to be.
//!
//! A verdict is about one address and one endpoint. It is made of one entry of the identities, one endpoint and one entry of
//! the endpoint's class, and each of these changes with one write. Identities of CIDRs come and go with the policies that
//! name them, so more than one of them changes at once. Therefore:
//!
//! * what a class says of an identity that nobody has yet is written before anybody has it: an address then goes from one to
//!   the other, and from its old verdict to its new one, with the one write of its identity;
//! * of an identity that nobody will have any more, a class says what it is to say of the address before others come to the
//!   class, and forgets it when nobody has it;
//! * a class that endpoints are about to leave says of a new identity what it says of the address now;
//! * a class that they are about to have says of an old identity what it is to say of the address.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use ebpf_shared::{Sides, identity::LOCAL};
use ipnet::IpNet;

use super::{Delta, Desired, MapOp, diff::changes, table};
use crate::kernel::rules::ClassEntry;

/// The steps of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// An endpoint that is to be gone is closed before anything changes around it.
    Close,
    /// Nothing refers to it yet.
    Prepare,
    /// About identities that nobody has yet.
    Cover,
    /// Narrow prefixes first, so that no address falls to what neither state says of it.
    Identities,
    /// Peers, services, sidecars: each in one write.
    Switch,
    /// Each endpoint in one write, when all that it needs is there.
    Open,
    /// Identities (wide prefixes first), services and sidecars that are to be gone.
    Retire,
    /// About identities that nobody has any more.
    Uncover,
}

/// The writes that make of `current` what it is to be.
pub fn plan(current: &Desired, delta: &Delta) -> Vec<MapOp> {
    let mut way = Way::new(current, delta);
    way.endpoints();
    way.policy();
    way.identities();
    way.others();
    let mut ops = way.ops;
    ops.sort_by_key(|(phase, _)| *phase);
    ops.into_iter().map(|(_, op)| op).collect()
}

/// Whether [`plan`] is not enough: where a class that is left, or one that is about to be had, would have to say two things
/// of one identity; and where addresses leave or join an identity of this node's making while what it means changes for those
/// that have it throughout.
pub(super) fn conflicts(current: &Desired, delta: &Delta) -> bool {
    let way = Way::new(current, delta);
    (!delta.retiring.is_empty() && way.coming().is_none())
        || (!delta.classes.is_empty() && way.going().is_none())
        || (way.has_movers() && (way.has_joiners() || way.has_other_meanings()))
}

/// Notes what an identity is like; `None` if it is like something else already.
fn alike(all: &mut BTreeMap<u32, u32>, identity: u32, like: u32) -> Option<()> {
    (*all.entry(identity).or_insert(like) == like).then_some(())
}

struct Way<'a> {
    current: &'a Desired,
    delta: &'a Delta,
    /// Of each identity whose number of prefixes changes, how many it will have.
    counts: HashMap<u32, usize>,
    /// Identities that addresses have for connections that are there, before and after.
    lasting: [BTreeSet<u32>; 2],
    ops: Vec<(Phase, MapOp)>,
}

impl<'a> Way<'a> {
    fn new(current: &'a Desired, delta: &'a Delta) -> Self {
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for (net, after) in &delta.identities {
            let count = |identity: u32| move || current.identities.count(identity);
            if let Some(identity) = after {
                *counts.entry(*identity).or_insert_with(count(*identity)) += 1;
            }
            if let Some(identity) = current.identities.get(net) {
                *counts.entry(*identity).or_insert_with(count(*identity)) -= 1;
            }
        }
        let before = current.lingering.values().copied().collect();
        let stays = current.lingering.iter().filter(|(address, _)| !delta.lingering.contains_key(address));
        let comes = delta.lingering.values().filter_map(|after| *after);
        let after = stays.map(|(_, identity)| *identity).chain(comes).collect();
        Self { current, delta, counts, lasting: [before, after], ops: Vec::new() }
    }

    fn push(&mut self, phase: Phase, op: MapOp) {
        self.ops.push((phase, op));
    }

    /// Whether anybody has an identity.
    fn has(&self, identity: u32) -> bool {
        self.current.identities.has(identity) || self.lasting[0].contains(&identity)
    }

    /// Whether anybody will have it.
    fn will_have(&self, identity: u32) -> bool {
        if self.lasting[1].contains(&identity) {
            return true;
        }
        match self.counts.get(&identity) {
            Some(count) => *count > 0,
            None => self.current.identities.has(identity),
        }
    }

    /// Whether nobody will have an identity of this node's making that somebody has.
    fn goes(&self, identity: Option<u32>) -> bool {
        identity.is_some_and(|identity| identity & LOCAL != 0 && !self.will_have(identity))
    }

    /// Whether single addresses change who they are, from or to an identity of this node's making.
    fn has_movers(&self) -> bool {
        let is_local = |identity: Option<&u32>| identity.is_some_and(|identity| identity & LOCAL != 0);
        let moves = |(net, after): (&IpNet, &Option<u32>)| {
            table::is_host(net) && (is_local(after.as_ref()) || is_local(self.current.identities.get(net)))
        };
        !self.delta.lingering.is_empty() || self.delta.identities.iter().any(moves)
    }

    /// Whether an endpoint comes to a class.
    fn has_joiners(&self) -> bool {
        self.delta.endpoints.iter().any(|(ifindex, after)| {
            let before = self.current.endpoints.get(ifindex).map(|before| before.class);
            after.is_some_and(|after| before != Some(after.class))
        })
    }

    /// Whether a class is to say something else of an identity that somebody has and will have.
    fn has_other_meanings(&self) -> bool {
        self.delta.classes.iter().any(|(number, after)| {
            let Some(before) = self.current.classes.get(number) else { return false };
            let stays = |identity: &u32| self.has(*identity) && self.will_have(*identity);
            let changes = |identity: &u32| before.sides(*identity) != after.sides(*identity);
            before.own != after.own
                || before
                    .peers
                    .keys()
                    .chain(after.peers.keys())
                    .any(|identity| stays(identity) && changes(identity))
        })
    }

    /// Local identities that come while endpoints have their old classes, and who their addresses are now; `None`: not all
    /// addresses of one are the same.
    fn coming(&self) -> Option<BTreeMap<u32, u32>> {
        let mut coming = BTreeMap::new();
        let is_new = |identity: &u32| identity & LOCAL != 0 && !self.has(*identity);
        for (net, after) in &self.delta.identities {
            let before = self.current.identities.get(net).copied();
            if let Some(identity) = after.filter(is_new).filter(|_| !self.goes(before)) {
                alike(&mut coming, identity, self.current.identities.identity(net))?;
            }
        }
        for (address, after) in &self.delta.lingering {
            let before = self.current.lingering.get(address).copied();
            if let Some(identity) = after.filter(is_new).filter(|_| !self.goes(before)) {
                let now = || self.current.identities.identity(&IpNet::from(*address));
                alike(&mut coming, identity, before.unwrap_or_else(now))?;
            }
        }
        Some(coming)
    }

    /// Local identities that go, and who their addresses will be; `None`: not all the same.
    fn going(&self) -> Option<BTreeMap<u32, u32>> {
        let after = |net: &IpNet| match self.delta.identities.get(net) {
            Some(after) => *after,
            None => self.current.identities.get(net).copied(),
        };
        let mut going = BTreeMap::new();
        for net in self.delta.identities.keys() {
            if let Some(before) = self.current.identities.get(net).filter(|before| self.goes(Some(**before)))
            {
                alike(&mut going, *before, table::identity(net, after))?;
            }
        }
        for (address, then) in &self.delta.lingering {
            let before = self.current.lingering.get(address).filter(|before| self.goes(Some(**before)));
            if let Some(before) = before {
                let then = then.unwrap_or_else(|| table::identity(&IpNet::from(*address), after));
                alike(&mut going, *before, then)?;
            }
        }
        Some(going)
    }

    fn endpoints(&mut self) {
        for (ifindex, endpoint) in &self.delta.endpoints {
            match endpoint {
                Some(endpoint) => self.push(Phase::Open, MapOp::PutEndpoint(*ifindex, *endpoint)),
                None => self.push(Phase::Close, MapOp::RemoveEndpoint(*ifindex)),
            }
        }
    }

    fn policy(&mut self) {
        let (current, delta) = (self.current, self.delta);
        for (number, set) in &delta.rulesets {
            self.push(Phase::Prepare, MapOp::PutRuleSet(*number, set.clone()));
        }
        let going = self.going().unwrap_or_default();
        for (number, entry) in &delta.classes {
            match current.classes.get(number) {
                Some(before) => self.edit(*number, before, entry, &going),
                None => self.begin(*number, entry, &going),
            }
        }
        let coming = self.coming().unwrap_or_default();
        for class in &delta.retiring {
            let Some(entry) = current.classes.get(class) else { continue };
            for (identity, now) in &coming {
                let sides = entry.sides(*now);
                if sides != entry.sides(*identity) {
                    self.push(Phase::Cover, MapOp::PutPeer { class: *class, identity: *identity, sides });
                }
            }
        }
    }

    fn begin(&mut self, class: u32, entry: &ClassEntry, going: &BTreeMap<u32, u32>) {
        let mut first = entry.clone();
        for (identity, then) in going {
            let sides = entry.sides(*then);
            if sides != entry.sides(*identity) {
                first.peers.insert(*identity, sides);
                let meant = entry.peers.get(identity).copied();
                self.push(Phase::Uncover, peer(class, *identity, meant));
            }
        }
        self.push(Phase::Prepare, MapOp::PutClass(class, first));
    }

    fn edit(&mut self, class: u32, before: &ClassEntry, after: &ClassEntry, going: &BTreeMap<u32, u32>) {
        // Endpoints may come to the class before its last address with such an identity has another.
        for (identity, then) in going {
            let sides = after.sides(*then);
            let mut held = before.peers.get(identity).copied();
            if sides != before.sides(*identity) {
                self.push(Phase::Switch, peer(class, *identity, Some(sides)));
                held = Some(sides);
            }
            let meant = after.peers.get(identity).copied();
            if held != meant {
                self.push(Phase::Uncover, peer(class, *identity, meant));
            }
        }
        let mut changed: Vec<_> = changes(&before.peers, &after.peers).into_iter().collect();
        // What is to be gone goes first.
        changed.sort_by_key(|(_, sides)| sides.is_some());
        changed.retain(|(identity, _)| !going.contains_key(identity));
        for (identity, sides) in changed {
            let phase = if self.has(identity) { Phase::Switch } else { Phase::Cover };
            self.push(phase, peer(class, identity, sides));
        }
    }

    fn identities(&mut self) {
        // Before an address is another for what begins, and until it is the same for both again.
        for (address, after) in &self.delta.lingering {
            if let Some(identity) = after {
                let goes = self.goes(self.current.lingering.get(address).copied());
                let phase = if goes { Phase::Retire } else { Phase::Identities };
                self.push(phase, MapOp::PutLingering(*address, *identity));
            }
        }
        let mut all: Vec<_> = self.delta.identities.iter().collect();
        all.sort_by_key(|(net, _)| Reverse(net.prefix_len()));
        for (net, after) in &all {
            if let Some(identity) = after {
                // Where a narrower CIDR had it before, it is another's only when the CIDR goes.
                let goes = self.goes(self.current.identities.get(net).copied());
                let phase = if goes { Phase::Retire } else { Phase::Identities };
                self.push(phase, MapOp::PutIdentity(**net, *identity));
            }
        }
        for (net, after) in all.into_iter().rev() {
            if after.is_none() {
                self.push(Phase::Retire, MapOp::RemoveIdentity(*net));
            }
        }
        for (address, after) in &self.delta.lingering {
            if after.is_none() {
                self.push(Phase::Retire, MapOp::RemoveLingering(*address));
            }
        }
    }

    fn others(&mut self) {
        for (slot, proxy) in &self.delta.proxies {
            let put = proxy.map(|proxy| (Phase::Prepare, MapOp::PutProxy(*slot, proxy)));
            self.ops.extend(put);
        }
        for (cookie, netns) in &self.delta.netns {
            match netns {
                Some(netns) => self.push(Phase::Switch, MapOp::PutNetns(*cookie, netns.clone())),
                None => self.push(Phase::Retire, MapOp::RemoveNetns(*cookie)),
            }
        }
        for (frontend, service) in &self.delta.services {
            match service {
                Some(service) => self.push(Phase::Switch, MapOp::PutService(*frontend, service.clone())),
                None => self.push(Phase::Retire, MapOp::RemoveService(*frontend)),
            }
        }
    }
}

fn peer(class: u32, identity: u32, sides: Option<Sides>) -> MapOp {
    match sides {
        Some(sides) => MapOp::PutPeer { class, identity, sides },
        None => MapOp::RemovePeer { class, identity },
    }
}
