//! Classes of policy in the kernel. A class is written once and never changed: see the order of writes in
//! [`super`].

use std::collections::{BTreeMap, BTreeSet};

use ebpf_shared::{Class, PolicyValue};

use super::rules::{CompiledClass, RulePrefix};
use super::{Kernel, KernelError, TrieTable};

impl Kernel {
    /// Writes a class, rules first, under a number that no endpoint has yet:
    /// [`ebpf_shared::Endpoint::class`]. What an agent that died while writing has left under the number is
    /// replaced.
    pub fn put_class(&mut self, number: u32, compiled: &CompiledClass) -> Result<(), KernelError> {
        self.remove_class(number)?;
        let installed = self.installed.entry(number).or_default();
        for (prefix, value) in &compiled.rules {
            let prefix = prefix.of_class(number);
            installed.push(prefix);
            self.policy.upsert(&prefix, *value)?;
        }
        self.classes.upsert(number, compiled.class)
    }

    /// Removes a class and its rules. An endpoint that still has it gets no traffic.
    pub fn remove_class(&mut self, number: u32) -> Result<(), KernelError> {
        self.classes.delete(&number)?;
        for prefix in self.installed.remove(&number).unwrap_or_default() {
            self.policy.delete(&prefix)?;
        }
        Ok(())
    }

    /// The numbers of all classes, also of those that only have rules (an agent died while writing one).
    pub fn class_numbers(&self) -> Result<BTreeSet<u32>, KernelError> {
        let mut numbers: BTreeSet<u32> = self.classes.dump()?.into_keys().collect();
        numbers.extend(self.installed.keys());
        Ok(numbers)
    }

    /// A class as it is in the kernel.
    pub fn class(&self, number: u32) -> Result<Option<Class>, KernelError> {
        self.classes.get(&number)
    }
}

/// The rules that an earlier agent has left, by class.
pub(super) fn installed(
    policy: &TrieTable<RulePrefix, PolicyValue>,
) -> Result<BTreeMap<u32, Vec<RulePrefix>>, KernelError> {
    let mut classes: BTreeMap<u32, Vec<RulePrefix>> = BTreeMap::new();
    for (prefix, _) in policy.dump()? {
        classes.entry(prefix.key.class).or_default().push(prefix);
    }
    Ok(classes)
}
