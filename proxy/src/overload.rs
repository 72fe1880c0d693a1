//! What happens when there is too much: load is shed step by step, and the process goes on.
//!
//! Source: Envoy's overload manager, with fixed actions. Memory is the resident set of the process; connections are those of
//! clients, of all listeners together.
//!
//! | of a ceiling | what is done |
//! | --- | --- |
//! | 90 % | connections are closed after the request at hand (`Connection: close`, GOAWAY) |
//! | 95 % of memory | requests are answered with 503 and `x-envoy-local-overloaded` |
//! | 98 % of memory, 100 % of connections | new connections are closed at once |

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use crate::{
    outbound::{Limit, Permit},
    telemetry::Stats,
};

/// How often memory is looked at.
pub const LOOK: Duration = Duration::from_millis(250);

/// `None`: no ceiling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// Resident memory, in bytes.
    pub memory: Option<u64>,
    /// Connections of clients.
    pub connections: Option<u32>,
}

/// What is done about it; each includes those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Nothing.
    Nothing = 0,
    /// Connections are not kept.
    CloseAfterRequest = 1,
    /// Requests are turned away.
    ShedRequests = 2,
    /// Connections are turned away.
    ShedConnections = 3,
}

/// What so much of a ceiling on memory asks for.
pub fn of_memory(used: u64, ceiling: u64) -> Action {
    match u128::from(used) * 100 / u128::from(ceiling.max(1)) {
        0..90 => Action::Nothing,
        90..95 => Action::CloseAfterRequest,
        95..98 => Action::ShedRequests,
        _ => Action::ShedConnections,
    }
}

/// The state of the process.
#[derive(Debug)]
pub struct Overload {
    ceilings: Ceilings,
    memory: AtomicU8,
    connections: Arc<Limit>,
    stats: Arc<Stats>,
}

impl Default for Overload {
    fn default() -> Self {
        Self::new(Ceilings::default(), Arc::default())
    }
}

impl Overload {
    /// Nothing is used.
    pub fn new(ceilings: Ceilings, stats: Arc<Stats>) -> Self {
        Self {
            ceilings,
            memory: AtomicU8::new(0),
            connections: Limit::new(ceilings.connections.unwrap_or(u32::MAX)),
            stats,
        }
    }

    /// A connection of a client, if it may be served.
    pub fn admit(&self) -> Option<Permit> {
        let full = self.memory() >= Action::ShedConnections;
        let permit = if full { None } else { self.connections.try_take() };
        if permit.is_none() {
            self.stats.shed_connections.fetch_add(1, Ordering::Relaxed);
        }
        permit
    }

    /// Whether a request is turned away.
    pub fn sheds(&self) -> bool {
        let sheds = self.memory() >= Action::ShedRequests;
        if sheds {
            self.stats.shed_requests.fetch_add(1, Ordering::Relaxed);
        }
        sheds
    }

    /// Whether a connection is closed after the request at hand.
    pub fn closes(&self) -> bool {
        let crowded = self
            .ceilings
            .connections
            .is_some_and(|max| u64::from(self.connections.used()) * 100 >= u64::from(max) * 90);
        crowded || self.memory() >= Action::CloseAfterRequest
    }

    fn memory(&self) -> Action {
        match self.memory.load(Ordering::Relaxed) {
            0 => Action::Nothing,
            1 => Action::CloseAfterRequest,
            2 => Action::ShedRequests,
            _ => Action::ShedConnections,
        }
    }

    /// So much memory is resident.
    pub fn set_memory(&self, used: u64) {
        let Some(ceiling) = self.ceilings.memory else { return };
        let action = of_memory(used, ceiling);
        let former = self.memory.swap(action as u8, Ordering::Relaxed);
        if former != action as u8 {
            tracing::warn!(used, ceiling, ?action, "memory");
        }
    }

    /// Looks at memory for ever, if there is a ceiling on it.
    pub async fn watch(&self) {
        if self.ceilings.memory.is_none() {
            return;
        }
        loop {
            match tokio::fs::read_to_string("/proc/self/status").await.ok().as_deref().and_then(resident) {
                Some(used) => self.set_memory(used),
                None => tracing::warn!("cannot tell how much memory is used"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// `VmRSS` of `/proc/self/status`, in bytes.
fn resident(status: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closer_to_the_ceiling_the_more_is_shed() {
        for (used, action) in [
            (0, Action::Nothing),
            (899, Action::Nothing),
            (900, Action::CloseAfterRequest),
            (950, Action::ShedRequests),
            (980, Action::ShedConnections),
            (u64::MAX, Action::ShedConnections),
        ] {
            assert_eq!(of_memory(used, 1000), action, "{used}");
        }
    }

    #[test]
    fn connections_are_counted_and_given_back() {
        let overload = Overload::new(Ceilings { connections: Some(2), memory: None }, Arc::default());
        let one = overload.admit().unwrap();
        assert!(!overload.closes());
        let _two = overload.admit().unwrap();
        assert!(overload.closes() && overload.admit().is_none() && !overload.sheds());
        drop(one);
        assert!(overload.admit().is_some());
        assert_eq!(overload.stats.shed_connections.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn memory_sheds_and_recovers() {
        let overload = Overload::new(Ceilings { connections: None, memory: Some(100) }, Arc::default());
        overload.set_memory(96);
        assert!(overload.sheds() && overload.closes() && overload.admit().is_some());
        overload.set_memory(99);
        assert!(overload.admit().is_none());
        overload.set_memory(10);
        assert!(!overload.sheds() && !overload.closes() && overload.admit().is_some());
        let without = Overload::default();
        without.set_memory(u64::MAX);
        assert!(!without.sheds());
    }

    #[test]
    fn the_resident_set_is_in_bytes() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t   12 kB\nThreads:\t1"), Some(12 * 1024));
        assert_eq!(resident("VmRSS: many"), None);
        assert_eq!(resident(""), None);
    }
}
