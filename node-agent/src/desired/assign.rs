//! Which of the kernel's classes is to hold which policy.
//!
//! A class is edited in place, which costs what changed, if nobody notices but those who are to have the new policy. Whoever
//! is not named has the same in all states of a class (see [`ebpf_shared::policy`]): where that changes, and with it nearly
//! everything, the policy gets another class, and each endpoint changes over with one write.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_shared::limits;

use super::{Desired, Dictionary};
use crate::kernel::rules::ClassEntry;

/// What an endpoint is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// A class of the control plane's.
    Class(u32),
    /// Whatever it has: a class of the kernel's.
    Kept(u32),
}

/// Gives each class of the control plane's a number in the kernel. `wants` has the endpoints that are to be, by
/// interface. Classes in `unchanged` have the contents that the kernel holds under their number.
///
/// A class for which there is no number is left out: its endpoints stay as they are.
pub fn assign(
    wants: &BTreeMap<u32, Want>,
    entries: &BTreeMap<u32, ClassEntry>,
    current: &Desired,
    dictionary: &mut Dictionary,
) -> BTreeMap<u32, u32> {
    // Who has a class now, and what they are to have.
    let mut holders: BTreeMap<u32, BTreeSet<Want>> = BTreeMap::new();
    for (ifindex, endpoint) in &current.endpoints {
        // Others are closed before anything else changes.
        if let Some(want) = wants.get(ifindex) {
            holders.entry(endpoint.class).or_default().insert(*want);
        }
    }
    let mut held_by: BTreeMap<Want, BTreeSet<u32>> = BTreeMap::new();
    for (class, wanted) in &holders {
        for want in wanted {
            held_by.entry(*want).or_default().insert(*class);
        }
    }
    let wanted: BTreeSet<Want> = wants.values().copied().collect();
    let mut claimed: BTreeSet<u32> = wanted
        .iter()
        .filter_map(|want| match want {
            Want::Kept(class) => Some(*class),
            Want::Class(_) => None,
        })
        .collect();
    let mut numbers = BTreeMap::new();
    for want in &wanted {
        let Want::Class(wire) = want else { continue };
        let before = dictionary.classes.get(wire).copied();
        let alone = BTreeSet::from([*want]);
        let fits = |class: &u32| {
            let Some(held) = current.classes.get(class) else { return false };
            let is_alone = holders.get(class).is_none_or(|wanted| *wanted == alone);
            !claimed.contains(class)
                && match entries.get(wire) {
                    Some(entry) => held.own == entry.own && (is_alone || held == entry),
                    None => before == Some(*class),
                }
        };
        let candidates = before.into_iter().chain(held_by.get(want).into_iter().flatten().copied());
        let number = candidates.into_iter().find(fits).or_else(|| free(current, &claimed));
        if let Some(number) = number {
            claimed.insert(number);
            numbers.insert(*wire, number);
        }
    }
    dictionary.classes.clone_from(&numbers);
    numbers
}

/// A number that no class has.
fn free(current: &Desired, claimed: &BTreeSet<u32>) -> Option<u32> {
    (1..limits::CLASSES).find(|number| !current.classes.contains_key(number) && !claimed.contains(number))
}
