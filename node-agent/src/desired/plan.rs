//! From one state of the maps to another by way of others, so that each step changes one kind of thing.
//!
//! The identity of an address outside the mesh is that of the narrowest CIDR around it that *any* policy names. So a
//! policy that names a new CIDR changes the identity of addresses that old policies have rules about, and one that
//! goes takes identities with it that are still in use. In between, every class knows the CIDRs of both sides:
//!
//! 1. Classes in use get, for each new CIDR, the rules of the narrowest old one around it.
//! 2. The new CIDRs go into the maps. No verdict changes.
//! 3. The endpoints change over to the new classes, which have, for each old CIDR, the rules of the narrowest
//!    new one around it.
//! 4. The old CIDRs go. No verdict changes.
//! 5. The endpoints change over to the new classes as they were meant.
//!
//! Where no CIDR comes or goes, which is nearly always, the first two and the last two do nothing.

use std::collections::BTreeMap;

use ebpf_shared::identity::{LOCAL, WORLD};
use ipnet::IpNet;

use super::{ClassRules, Desired, Dictionary, MapOp, RuleEntry, diff};

/// The writes from `current` to `desired`, in order.
pub fn plan(current: &Desired, desired: &Desired, dictionary: &mut Dictionary) -> Vec<MapOp> {
    let coming = missing(desired, current);
    let going = missing(current, desired);
    let mut way = Vec::new();
    if !coming.is_empty() {
        let known = with_rules_of(current, &coming, &current.identities, &[current, desired], dictionary);
        let mut added = known.clone();
        added.identities.extend(coming.iter().copied());
        way.extend([known, added]);
    }
    if !going.is_empty() {
        let before: Vec<&Desired> = [current, desired].into_iter().chain(&way).collect();
        let changed = with_rules_of(desired, &going, &desired.identities, &before, dictionary);
        let mut both = changed.clone();
        both.identities.extend(going.iter().copied());
        way.extend([both, changed]);
    }
    way.push(desired.clone());
    let mut ops = Vec::new();
    let mut from = current;
    for to in &way {
        ops.extend(diff(from, to));
        from = to;
    }
    ops
}

/// CIDRs with a number of their own that `all` has and `known` has not.
fn missing(all: &Desired, known: &Desired) -> Vec<(IpNet, u32)> {
    let cidrs = all.identities.iter().filter(|(_, identity)| **identity & LOCAL != 0);
    cidrs
        .filter(|(net, _)| !known.identities.contains_key(net))
        .map(|(net, identity)| (*net, *identity))
        .collect()
}

/// The state with its endpoints in classes that treat each CIDR of `cidrs` as what `table` has around it. `before` are
/// states whose class numbers are taken.
fn with_rules_of(
    state: &Desired,
    cidrs: &[(IpNet, u32)],
    table: &BTreeMap<IpNet, u32>,
    before: &[&Desired],
    dictionary: &mut Dictionary,
) -> Desired {
    let mut result = state.clone();
    let copies: Vec<(u32, u32)> =
        cidrs.iter().map(|(net, identity)| (around(*net, table), *identity)).collect();
    let mut taken: BTreeMap<u32, ClassRules> = BTreeMap::new();
    for state in before {
        taken.extend(state.classes.clone());
    }
    for (number, rules) in &state.classes {
        let mut more = rules.clone();
        for (from, to) in &copies {
            let same = rules.rules.iter().filter(|rule| rule.identity == *from);
            more.rules.extend(same.map(|rule| RuleEntry { identity: *to, ..*rule }));
        }
        if more == *rules {
            continue;
        }
        let new = dictionary.class(&more, &taken, &result.classes);
        taken.insert(new, more.clone());
        result.classes.remove(number);
        result.classes.insert(new, more);
        for endpoint in result.endpoints.values_mut().filter(|endpoint| endpoint.class == *number) {
            endpoint.class = new;
        }
    }
    result
}

/// What the addresses of a CIDR are to a table that does not have it.
fn around(net: IpNet, table: &BTreeMap<IpNet, u32>) -> u32 {
    let mut wider = net;
    while let Some(parent) = wider.supernet() {
        if let Some(identity) = table.get(&parent) {
            return *identity;
        }
        wider = parent;
    }
    WORLD
}
