//! What nothing needs any more.
//!
//! A program that began before the last write may still hold the number of a class or a ruleset. So these are not removed
//! when they are found to be unneeded, but when that has been so for a while: two looks, a second apart, are ages for a
//! program.

use std::collections::BTreeSet;

use super::{Desired, MapOp};

/// What was found to be unneeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Garbage {
    classes: BTreeSet<u32>,
    rulesets: BTreeSet<u32>,
}

impl Garbage {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty() && self.rulesets.is_empty()
    }
}

/// The writes that remove what was found by the look before as well, and what was found by this one.
pub fn collect(current: &Desired, before: &Garbage) -> (Vec<MapOp>, Garbage) {
    let in_use: BTreeSet<u32> = current.endpoints.values().map(|endpoint| endpoint.class).collect();
    let classes: BTreeSet<u32> =
        current.classes.keys().filter(|number| !in_use.contains(number)).copied().collect();
    // A class refers to its rulesets until it is gone itself.
    let referred: BTreeSet<u32> =
        current.classes.values().flat_map(|entry| entry.rulesets()).map(|by| by.set).collect();
    let rulesets: BTreeSet<u32> =
        current.rulesets.keys().filter(|number| !referred.contains(number)).copied().collect();
    let mut ops = Vec::new();
    for number in classes.intersection(&before.classes) {
        let identities =
            current.classes.get(number).into_iter().flat_map(|entry| entry.peers.keys().copied());
        ops.push(MapOp::RemoveClass(*number, identities.collect()));
    }
    for number in rulesets.intersection(&before.rulesets) {
        if let Some(set) = current.rulesets.get(number) {
            ops.push(MapOp::RemoveRuleSet(*number, set.clone()));
        }
    }
    (ops, Garbage { classes, rulesets })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{rules::ClassEntry, ruleset::RuleSet};
    use ebpf_shared::{RuleRef, Sides, Unnamed};
    use std::sync::Arc;

    #[test]
    fn what_is_needed_stays_and_the_rest_goes_at_the_second_look() {
        let mut current = Desired::default();
        let own = Sides { ingress: RuleRef::ruleset(4), egress: RuleRef::uniform(1, 0) };
        current.classes.insert(1, ClassEntry { own: Unnamed::alike(own), ..ClassEntry::default() });
        current.rulesets.insert(4, Arc::new(RuleSet::default()));
        current.rulesets.insert(5, Arc::new(RuleSet::default()));
        let mut garbage = Garbage::default();
        let mut steps = Vec::new();
        for _ in 0..4 {
            let (ops, found) = collect(&current, &garbage);
            ops.iter().for_each(|op| op.apply(&mut current));
            steps.push((ops.len(), current.classes.len(), current.rulesets.len()));
            garbage = found;
        }
        // The class's own ruleset is let go of only when the class is gone.
        assert_eq!(steps, [(0, 1, 2), (2, 0, 1), (0, 0, 1), (1, 0, 0)]);
    }
}
