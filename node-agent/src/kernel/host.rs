//! The node itself as an endpoint: which addresses are its own, what of its traffic is never judged, and whether anything
//! is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use aya::maps::{Array, MapData};
use ebpf_shared::host::INTERFACE;
use ebpf_shared::{Addr, Endpoint, SockAddr};

use super::{HashTable, Kernel, KernelError};

/// What the programs for the node itself read besides what all read.
pub(super) struct HostTables {
    locals: HashTable<Addr, u32>,
    control: HashTable<SockAddr, u8>,
    guarded: Array<MapData, u32>,
}

impl HostTables {
    pub(super) fn new(
        locals: HashTable<Addr, u32>,
        control: HashTable<SockAddr, u8>,
        guarded: Array<MapData, u32>,
    ) -> Self {
        Self { locals, control, guarded }
    }

    fn set_guarded(&mut self, guarded: bool) -> Result<(), KernelError> {
        let error = |source| KernelError::Map { name: "GUARDED", source };
        self.guarded.set(0, u32::from(guarded), 0).map_err(error)
    }
}

impl Kernel {
    /// Says which addresses are the node's own: these and no others. One that stays keeps its number, and with it its
    /// connections. What finds no room is written once more when the rest is gone.
    ///
    /// # Errors
    /// The kernel refused: all that it did not refuse is written.
    pub fn set_locals(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<(), KernelError> {
        self.around.locals = Some(wanted.clone());
        let wanted: BTreeSet<Addr> = wanted.iter().map(|address| (*address).into()).collect();
        let held = self.host.locals.dump()?;
        let mut taken: BTreeSet<u32> = held.values().copied().collect();
        let mut new = Vec::new();
        for addr in wanted.iter().filter(|addr| !held.contains_key(addr)) {
            let free = (1..=u32::from(u16::MAX)).find(|number| !taken.contains(number));
            let number = free.ok_or(KernelError::Exhausted { what: "addresses of the node" })?;
            taken.insert(number);
            new.push((*addr, number));
        }
        new.retain(|(addr, number)| self.host.locals.upsert(*addr, *number).is_err());
        for addr in held.keys().filter(|addr| !wanted.contains(addr)) {
            self.host.locals.delete(addr)?;
        }
        new.into_iter().map(|(addr, number)| self.host.locals.upsert(addr, number)).fold(Ok(()), Result::and)
    }

    /// Says where the control plane listens: there and nowhere else. What finds no room is written once more when the rest
    /// is gone.
    ///
    /// # Errors
    /// The kernel refused: all that it did not refuse is written.
    pub fn set_control(&mut self, wanted: &BTreeSet<SocketAddr>) -> Result<(), KernelError> {
        self.around.control = Some(wanted.clone());
        let wanted: BTreeSet<SockAddr> =
            wanted.iter().map(|at| SockAddr::new(at.ip().to_canonical().into(), at.port())).collect();
        let held: BTreeMap<SockAddr, u8> = self.host.control.dump()?;
        let mut new: Vec<_> = wanted.iter().filter(|at| !held.contains_key(at)).collect();
        new.retain(|at| self.host.control.upsert(**at, 1).is_err());
        for at in held.keys().filter(|at| !wanted.contains(at)) {
            self.host.control.delete(at)?;
        }
        new.into_iter().map(|at| self.host.control.upsert(*at, 1)).fold(Ok(()), Result::and)
    }

    /// Opens or changes an endpoint. The node's own is looked at from then on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn put_endpoint(&mut self, ifindex: u32, endpoint: Endpoint) -> Result<(), KernelError> {
        self.endpoints.upsert(ifindex, endpoint)?;
        if ifindex == INTERFACE { self.host.set_guarded(true) } else { Ok(()) }
    }

    /// Closes an endpoint; the node's own is open then.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), KernelError> {
        if ifindex == INTERFACE {
            self.host.set_guarded(false)?;
        }
        self.endpoints.delete(&ifindex).map(drop)
    }

    /// What an agent that died between two writes has left undone.
    pub(super) fn guard_host(&mut self) -> Result<(), KernelError> {
        let guarded = self.endpoints.get(&INTERFACE)?.is_some();
        self.host.set_guarded(guarded)
    }
}
