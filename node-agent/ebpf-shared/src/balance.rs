//! Where a connection to a service goes: the same lines at sockets, per packet, and in the agent's tests.
//!
//! The agent replaces what a service is with one write of its `SERVICES` entry: backends and table are there before, and
//! go after. A program that read the entry just before may find them gone, or the slots in use by another service: each
//! backend says whose it is, so that is seen, and the new entry is read instead. So while a service has a backend, nobody
//! is refused.

use crate::maglev;
use crate::packet::protocol;
use crate::redirect::{Led, NO_SLOT};
use crate::service::{AffinityKey, AffinityValue, SourceKey};
use crate::{Addr, Backend, ServiceKey, ServiceValue, SockAddr};

const SECOND: u64 = 1_000_000_000;

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Ask<Now, Sidecar> {
    pub key: ServiceKey,
    /// Its address; at sockets, which may have none yet, see [`Addr::of_cookie`]. (Source ranges are asked for only of
    /// those that come from outside.)
    pub client: Addr,
    /// Of the connection, or random.
    pub hash: u32,
    /// `CLOCK_MONOTONIC`, nanoseconds; asked for only where clients stay with their backend.
    pub now: Now,
    /// Whether the asker has a sidecar, which answers in place of the service; asked for only where one may.
    pub has_sidecar: Sidecar,
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Where it was sent to: that is no service.
    NotAService,
    /// Where it was sent to: there a proxy of the node has it, for which the program at the pod's door sees.
    ByProxy(Led),
    /// To the listener of the sidecar, on loopback.
    Proxy(u16),
    To(Target),
    /// There is no backend.
    NoBackend,
    /// The asker's address is not among those that may.
    SourceRange,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its number.
    pub number: u32,
    pub at: SockAddr,
    /// See [`Backend`].
    pub flags: u32,
    /// See [`ServiceValue`].
    pub service_flags: u32,
}

/// The maps that [`balance`] reads.
pub trait ServiceMaps {
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue>;
    /// The backend in a slot of `MAGLEV`; 0: none.
    fn slot(&self, at: u32) -> u32;
    fn backend(&self, number: u32) -> Option<Backend>;
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityValue>;
    fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue);
    /// Whether `SOURCES` has the address.
    fn admits(&self, source: &SourceKey) -> bool;
}

/// Chooses.
#[inline(always)]
pub fn balance<M: ServiceMaps>(maps: &mut M, ask: &Ask<impl Fn() -> u64, impl Fn() -> bool>) -> Choice {
    match look(maps, ask) {
        // Swapped meanwhile: see above.
        Choice::NoBackend => look(maps, ask),
        choice => choice,
    }
}

#[inline(always)]
fn look<M: ServiceMaps>(maps: &mut M, ask: &Ask<impl Fn() -> u64, impl Fn() -> bool>) -> Choice {
    let Some(service) = maps.service(&ask.key) else { return Choice::NotAService };
    if service.proxy_port != 0 && ask.key.protocol == protocol::TCP && (ask.has_sidecar)() {
        return Choice::Proxy(service.proxy_port);
    }
    if service.flags & ServiceValue::SOURCES != 0
        && !maps.admits(&SourceKey { service: service.id, addr: ask.client })
    {
        return Choice::SourceRange;
    }
    if service.size == 0 {
        return Choice::NoBackend;
    }
    let sticks = service.affinity_seconds != 0;
    let key = AffinityKey { service: service.id, client: ask.client };
    let now = if sticks { (ask.now)() } else { 0 };
    if sticks
        && let Some(last) = maps.affinity(&key)
        && now.saturating_sub(last.seen) < u64::from(service.affinity_seconds) * SECOND
        && let Some(backend) = maps.backend(last.backend)
        && backend.service == service.id
        && backend.flags & Backend::CHOSEN != 0
    {
        maps.set_affinity(&key, &AffinityValue { seen: now, ..last });
        return to(last.backend, &backend, &service);
    }
    let number = if service.size == 1 {
        service.only
    } else {
        maps.slot(service.table.wrapping_add(maglev::slot(ask.hash, service.size)))
    };
    let Some(backend) = maps.backend(number) else { return Choice::NoBackend };
    if backend.service != service.id {
        return Choice::NoBackend;
    }
    if sticks {
        maps.set_affinity(&key, &AffinityValue { seen: now, backend: number, padding: 0 });
    }
    to(number, &backend, &service)
}

#[inline(always)]
fn to(number: u32, backend: &Backend, service: &ServiceValue) -> Choice {
    if service.redirect != NO_SLOT {
        return Choice::ByProxy(Led { backend: backend.at, slot: service.redirect });
    }
    Choice::To(Target { number, at: backend.at, flags: backend.flags, service_flags: service.flags })
}
