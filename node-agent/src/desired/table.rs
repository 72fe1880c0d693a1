//! Who addresses are, with what is asked of it on the way from one table to another.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;

use ebpf_shared::identity::WORLD;
use ipnet::IpNet;

/// Prefix to identity, and how many prefixes each identity has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdentityTable {
    nets: BTreeMap<IpNet, u32>,
    counts: HashMap<u32, usize>,
    /// Prefixes that are single addresses.
    hosts: usize,
}

impl Deref for IdentityTable {
    type Target = BTreeMap<IpNet, u32>;

    fn deref(&self) -> &Self::Target {
        &self.nets
    }
}

impl FromIterator<(IpNet, u32)> for IdentityTable {
    fn from_iter<T: IntoIterator<Item = (IpNet, u32)>>(entries: T) -> Self {
        let mut table = Self::default();
        for (net, identity) in entries {
            table.insert(net, identity);
        }
        table
    }
}

impl IdentityTable {
    /// Says who a prefix is.
    pub fn insert(&mut self, net: IpNet, identity: u32) {
        match self.nets.insert(net, identity) {
            Some(before) => self.forget(before),
            None => self.hosts += usize::from(is_host(&net)),
        }
        *self.counts.entry(identity).or_default() += 1;
    }

    /// What is around it holds from now on.
    pub fn remove(&mut self, net: &IpNet) {
        if let Some(before) = self.nets.remove(net) {
            self.forget(before);
            self.hosts -= usize::from(is_host(net));
        }
    }

    fn forget(&mut self, identity: u32) {
        if let Some(count) = self.counts.get_mut(&identity) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&identity);
            }
        }
    }

    /// How many prefixes are single addresses.
    pub fn hosts(&self) -> usize {
        self.hosts
    }

    /// How many prefixes have this identity.
    pub fn count(&self, identity: u32) -> usize {
        self.counts.get(&identity).copied().unwrap_or(0)
    }

    /// Whether a packet may come with this identity.
    pub fn has(&self, identity: u32) -> bool {
        identity == WORLD || self.counts.contains_key(&identity)
    }

    /// Who the addresses of a prefix are that nothing narrower is said of.
    pub fn identity(&self, net: &IpNet) -> u32 {
        identity(net, |net| self.nets.get(net).copied())
    }
}

/// Whether a prefix is a single address.
pub fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// The same for any table.
pub fn identity(net: &IpNet, table: impl Fn(&IpNet) -> Option<u32>) -> u32 {
    let mut wider = Some(*net);
    while let Some(net) = wider {
        if let Some(identity) = table(&net) {
            return identity;
        }
        wider = net.supernet();
    }
    WORLD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_there_as_long_as_a_prefix_has_it() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut table = IdentityTable::default();
        table.insert(net("10.0.0.0/8"), 7);
        table.insert(net("10.1.0.0/16"), 7);
        table.insert(net("10.1.0.0/16"), 8);
        assert_eq!((table.count(7), table.count(8), table.has(9)), (1, 1, false));
        assert_eq!(table.identity(&net("10.1.2.3/32")), 8);
        assert_eq!(table.identity(&net("192.0.2.1/32")), WORLD);
        table.remove(&net("10.1.0.0/16"));
        table.remove(&net("10.1.0.0/16"));
        assert!(!table.has(8) && table.has(7) && table.has(WORLD));
        assert_eq!(table.identity(&net("10.1.2.3/32")), 7);
    }
}
