//! Who an address is, in the kernel: single addresses in a hash, ranges in a trie.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use ebpf_shared::{Addr, identity};
use ipnet::{IpNet, Ipv4Net};

use super::epochs::Epochs;
use super::table::Prefix;
use super::{HashTable, KernelError, TrieTable};

/// The identities of addresses and CIDRs of both families. What it does not hold is [`identity::WORLD`].
pub struct Identities {
    hosts: HashTable<Addr, u32>,
    lingering: HashTable<Addr, u32>,
    cidrs: TrieTable<Cidr, u32>,
    epochs: Arc<Epochs>,
}

impl Identities {
    pub(super) fn new(
        hosts: HashTable<Addr, u32>,
        lingering: HashTable<Addr, u32>,
        mut cidrs: TrieTable<Cidr, u32>,
        epochs: Arc<Epochs>,
    ) -> Result<Self, KernelError> {
        // IPv4 lies within IPv6 here (see `Addr`), and no IPv6 range may hold for it.
        if cidrs.exact(&Cidr::ALL_IPV4)?.is_none() {
            cidrs.upsert(&Cidr::ALL_IPV4, identity::ANY)?;
        }
        Ok(Self { hosts, lingering, cidrs, epochs })
    }

    /// Says who an address, or what has no narrower entry within a CIDR, is. Flows with them are judged again.
    pub fn upsert(&mut self, net: &IpNet, identity: u32) -> Result<(), KernelError> {
        match host(net) {
            Some(addr) => {
                self.hosts.upsert(addr, identity)?;
                self.epochs.raise_peer(&addr);
            }
            None => {
                self.cidrs.upsert(&Cidr::from(*net), identity)?;
                self.epochs.raise_all();
            }
        }
        Ok(())
    }

    /// What is around it holds from now on; returns whether it was there.
    pub fn delete(&mut self, net: &IpNet) -> Result<bool, KernelError> {
        let cidr = match host(net) {
            Some(addr) => {
                let was_there = self.hosts.delete(&addr)?;
                self.epochs.raise_peer(&addr);
                return Ok(was_there);
            }
            None => Cidr::from(*net),
        };
        let was_there = if cidr == Cidr::ALL_IPV4 {
            // Always there, so the lookup finds it and nothing around it.
            let was_there = self.cidrs.lookup(&cidr)?.is_some_and(|known| known != identity::ANY);
            self.cidrs.upsert(&cidr, identity::ANY)?;
            was_there
        } else {
            self.cidrs.delete(&cidr)?
        };
        self.epochs.raise_all();
        Ok(was_there)
    }

    /// Says who an address is for connections that are there already; `None`: the same as for new ones.
    pub fn linger(&mut self, address: IpAddr, identity: Option<u32>) -> Result<(), KernelError> {
        let addr = Addr::from(address);
        match identity {
            Some(identity) => self.lingering.upsert(addr, identity)?,
            None => drop(self.lingering.delete(&addr)?),
        }
        self.epochs.raise_peer(&addr);
        Ok(())
    }

    /// All that linger.
    pub fn dump_lingering(&self) -> Result<BTreeMap<IpAddr, u32>, KernelError> {
        Ok(lingering_of(self.lingering.dump()?))
    }

    /// Everything.
    pub fn dump(&self) -> Result<BTreeMap<IpNet, u32>, KernelError> {
        Ok(identities_of(self.hosts.dump()?, self.cidrs.dump()?))
    }
}

pub(super) fn lingering_of(lingering: BTreeMap<Addr, u32>) -> BTreeMap<IpAddr, u32> {
    lingering.into_iter().map(|(addr, known)| (addr.into(), known)).collect()
}

pub(super) fn identities_of(hosts: BTreeMap<Addr, u32>, cidrs: BTreeMap<Cidr, u32>) -> BTreeMap<IpNet, u32> {
    let hosts = hosts.into_iter().map(|(addr, known)| (IpAddr::from(addr).into(), known));
    let cidrs = cidrs.into_iter().filter(|(_, known)| *known != identity::ANY);
    hosts.chain(cidrs.map(|(cidr, known)| (cidr.into(), known))).collect()
}

/// The address, if the net is a single one.
fn host(net: &IpNet) -> Option<Addr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr().into())
}

/// A key of the trie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    addr: Addr,
    /// Of 128, also for IPv4.
    bits: u8,
}

impl Cidr {
    /// `0.0.0.0/0`.
    const ALL_IPV4: Self = Self { addr: Addr::v4(ebpf_shared::Ip4::UNSPECIFIED), bits: Addr::V4_BITS as u8 };
}

impl From<IpNet> for Cidr {
    fn from(net: IpNet) -> Self {
        let before = match net {
            IpNet::V4(_) => Addr::V4_BITS as u8,
            IpNet::V6(_) => 0,
        };
        Self { addr: net.network().into(), bits: before + net.prefix_len() }
    }
}

impl From<Cidr> for IpNet {
    fn from(cidr: Cidr) -> Self {
        let v4_bits = cidr.bits.checked_sub(Addr::V4_BITS as u8).filter(|_| cidr.addr.is_v4());
        match v4_bits.and_then(|bits| Ipv4Net::new(cidr.addr.low().into(), bits).ok()) {
            Some(net) => net.into(),
            None => ipnet::Ipv6Net::new(cidr.addr.into(), cidr.bits.min(128)).unwrap_or_default().into(),
        }
    }
}

impl Prefix for Cidr {
    type Data = Addr;

    fn to_key(&self) -> Key<Self::Data> {
        Key::new(u32::from(self.bits), self.addr)
    }

    fn from_key(key: &Key<Self::Data>) -> Option<Self> {
        let bits = u8::try_from(key.prefix_len()).ok().filter(|bits| u32::from(*bits) <= Addr::BITS)?;
        Some(Self { addr: key.data(), bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs_of_both_families_come_back_as_they_went_in() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.4/31", "::/0", "2001:db8::/32", "fd00::/127"] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(IpNet::from(Cidr::from(net)), net);
        }
        assert_eq!(Cidr::from("0.0.0.0/0".parse::<IpNet>().unwrap()), Cidr::ALL_IPV4);
    }

    #[test]
    fn a_single_address_is_none_of_the_tries() {
        assert!(host(&"192.0.2.4/32".parse().unwrap()).is_some());
        assert!(host(&"2001:db8::1/128".parse().unwrap()).is_some());
        assert!(host(&"192.0.2.4/31".parse().unwrap()).is_none());
        assert!(host(&"2001:db8::/32".parse().unwrap()).is_none(), "32 bits are not all of IPv6");
    }
}
