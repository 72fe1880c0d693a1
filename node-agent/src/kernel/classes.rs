//! Policy in the kernel: classes, their peers, and rulesets. In which order to write is for [`crate::desired`] to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use ebpf_shared::{PeerKey, RuleValue, Sides, Unnamed};

use super::rules::ClassEntry;
use super::ruleset::{RulePrefix, RuleSet};
use super::{Kernel, KernelError};

impl Kernel {
    /// Writes a ruleset that nothing refers to yet.
    pub fn put_ruleset(&mut self, number: u32, set: &RuleSet) -> Result<(), KernelError> {
        for (traffic, value) in set.entries() {
            self.rules.upsert(&RulePrefix { set: number, traffic: *traffic }, *value)?;
        }
        Ok(())
    }

    /// Removes a ruleset that nothing has referred to for a moment. What is written last goes first, so that what is
    /// left of it after a crash is not complete.
    pub fn remove_ruleset(&mut self, number: u32, set: &RuleSet) -> Result<(), KernelError> {
        for (traffic, _) in set.entries().iter().rev() {
            self.rules.delete(&RulePrefix { set: number, traffic: *traffic })?;
        }
        Ok(())
    }

    /// Writes a class under a number that no endpoint has yet: [`ebpf_shared::Endpoint::class`].
    pub fn put_class(&mut self, number: u32, entry: &ClassEntry) -> Result<(), KernelError> {
        for (identity, sides) in &entry.peers {
            self.peers.upsert(PeerKey { class: number, identity: *identity }, *sides)?;
        }
        self.classes.upsert(number, entry.own)?;
        self.epochs.raise_class(number);
        Ok(())
    }

    /// Removes a class with so many of its peers as there are. An endpoint that still has it gets no traffic.
    pub fn remove_class(
        &mut self,
        number: u32,
        identities: impl IntoIterator<Item = u32>,
    ) -> Result<(), KernelError> {
        self.classes.delete(&number)?;
        for identity in identities {
            self.peers.delete(&PeerKey { class: number, identity })?;
        }
        self.epochs.raise_class(number);
        Ok(())
    }

    /// Says what holds for an identity, in one write.
    pub fn put_peer(&mut self, class: u32, identity: u32, sides: Sides) -> Result<(), KernelError> {
        self.peers.upsert(PeerKey { class, identity }, sides)?;
        self.epochs.raise_class(class);
        Ok(())
    }

    /// From now on, for this identity holds what holds for whoever is not named.
    pub fn remove_peer(&mut self, class: u32, identity: u32) -> Result<(), KernelError> {
        self.peers.delete(&PeerKey { class, identity })?;
        self.epochs.raise_class(class);
        Ok(())
    }

    /// All classes. One that only has peers (an agent died while it wrote or removed it) allows nothing.
    pub fn policy_classes(&self) -> Result<BTreeMap<u32, ClassEntry>, KernelError> {
        Ok(classes_of(self.classes.dump()?, self.peers.dump()?))
    }

    /// All rulesets, those that are not complete as well.
    pub fn rulesets(&self) -> Result<BTreeMap<u32, Arc<RuleSet>>, KernelError> {
        Ok(rulesets_of(self.rules.dump()?))
    }
}

pub(super) fn classes_of(
    own: BTreeMap<u32, Unnamed>,
    peers: BTreeMap<PeerKey, Sides>,
) -> BTreeMap<u32, ClassEntry> {
    let own = own.into_iter();
    let mut classes: BTreeMap<u32, ClassEntry> =
        own.map(|(number, own)| (number, ClassEntry { own, peers: BTreeMap::new() })).collect();
    for (key, sides) in peers {
        classes.entry(key.class).or_default().peers.insert(key.identity, sides);
    }
    classes
}

pub(super) fn rulesets_of(rules: BTreeMap<RulePrefix, RuleValue>) -> BTreeMap<u32, Arc<RuleSet>> {
    let mut sets: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (prefix, value) in rules {
        sets.entry(prefix.set).or_default().push((prefix.traffic, value));
    }
    sets.into_iter().map(|(number, entries)| (number, Arc::new(RuleSet::new(entries)))).collect()
}
