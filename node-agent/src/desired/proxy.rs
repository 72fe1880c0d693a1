//! The slots of proxies: numbers by which rules name them in the kernel.

use std::collections::BTreeMap;

use ebpf_shared::{
    limits,
    redirect::{DNS_NAME, DNS_SLOT, NO_SLOT, Proxy, name_hash},
};

/// A proxy of this node, as `PROXIES` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProxyEntry {
    /// [`name_hash`] of its name.
    pub name: u64,
    /// `None`: it is not there, and what is to go by it is refused.
    pub listens: Option<Listens>,
}

/// Where a proxy listens: on the loopback addresses, with sockets that bear [`ebpf_shared::redirect::MARK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Listens {
    /// Port on 127.0.0.1; 0: none.
    pub v4: u16,
    /// Port on `::1`; 0: none.
    pub v6: u16,
    /// It takes connections.
    pub tcp: bool,
    /// It takes datagrams.
    pub udp: bool,
}

impl From<&ProxyEntry> for Proxy {
    fn from(entry: &ProxyEntry) -> Self {
        let Some(Listens { v4, v6, tcp, udp }) = entry.listens else {
            return Self { name: entry.name, ..Self::default() };
        };
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        Self { name: entry.name, v4, v6, flags: Self::ALIVE | flag(tcp, Self::TCP) | flag(udp, Self::UDP) }
    }
}

impl From<&Proxy> for ProxyEntry {
    fn from(proxy: &Proxy) -> Self {
        let Proxy { name, v4, v6, flags } = *proxy;
        let is = |flag: u32| flags & flag != 0;
        let listens = Listens { v4, v6, tcp: is(Proxy::TCP), udp: is(Proxy::UDP) };
        Self { name, listens: is(Proxy::ALIVE).then_some(listens) }
    }
}

/// The slots given out so far. A name keeps its slot while the node is up, whoever comes and goes.
#[derive(Debug, Clone, Default)]
pub struct Slots(BTreeMap<u16, ProxyEntry>);

impl Slots {
    /// Goes on with what the kernel holds. A proxy that was there is there until it is known not to be: it may have
    /// outlived the agent.
    pub(super) fn recover(held: &BTreeMap<u16, ProxyEntry>) -> Self {
        Self(held.clone())
    }

    /// The slot of a name, from now on. [`NO_SLOT`], where nothing ever listens, if there are too many.
    pub(super) fn slot(&mut self, name: &str) -> u16 {
        let hash = name_hash(name);
        let known = || self.0.iter().find(|(_, entry)| entry.name == hash).map(|(slot, _)| *slot);
        let slot = match name {
            DNS_NAME => DNS_SLOT,
            _ => known().or_else(|| self.free()).unwrap_or(NO_SLOT),
        };
        if slot != NO_SLOT {
            self.0.entry(slot).or_insert(ProxyEntry { name: hash, listens: None });
        }
        slot
    }

    fn free(&self) -> Option<u16> {
        let end = u16::try_from(limits::PROXIES).unwrap_or(u16::MAX);
        (DNS_SLOT + 1..end).find(|slot| !self.0.contains_key(slot))
    }

    /// Says where the proxy of a name listens. Its slot.
    pub(super) fn set(&mut self, name: &str, listens: Option<Listens>) -> u16 {
        let slot = self.slot(name);
        if let Some(entry) = self.0.get_mut(&slot) {
            entry.listens = listens;
        }
        slot
    }

    /// All of them.
    pub(super) fn entries(&self) -> &BTreeMap<u16, ProxyEntry> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTENS: Listens = Listens { v4: 4000, v6: 6000, tcp: true, udp: false };

    #[test]
    fn a_name_has_the_same_slot_after_a_restart() {
        let mut before = Slots::default();
        let (one, two) = (before.slot("one"), before.set("two", Some(LISTENS)));
        assert_ne!(one, two);
        assert!(one > DNS_SLOT && two > DNS_SLOT);
        let mut after = Slots::recover(before.entries());
        assert_eq!((after.slot("two"), after.slot("one")), (two, one));
        assert_eq!(after.entries()[&two].listens, Some(LISTENS), "it may have outlived the agent");
        assert_eq!(after.set("two", None), two);
        assert_eq!(after.entries()[&two].listens, None);
        assert_eq!(after.slot(DNS_NAME), DNS_SLOT);
    }

    #[test]
    fn names_beyond_the_last_slot_lead_nowhere() {
        let mut slots = Slots::default();
        let all: std::collections::BTreeSet<u16> =
            (0..limits::PROXIES).map(|n| slots.slot(&n.to_string())).collect();
        assert_eq!(all.len() as u32, limits::PROXIES - 2 + 1);
        assert!(all.contains(&NO_SLOT) && !all.contains(&DNS_SLOT));
        assert!(!slots.entries().contains_key(&NO_SLOT));
    }

    #[test]
    fn the_kernel_s_value_says_the_same() {
        for listens in [None, Some(LISTENS), Some(Listens { udp: true, v6: 0, ..LISTENS })] {
            let entry = ProxyEntry { name: 7, listens };
            assert_eq!(ProxyEntry::from(&Proxy::from(&entry)), entry);
        }
    }
}
