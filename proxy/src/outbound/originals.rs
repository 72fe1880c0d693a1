//! The endpoints of an ORIGINAL_DST cluster: there for as long as somebody is connected to them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use super::Host;
use crate::{config::Cluster, limits};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Originals(Mutex<HashMap<SocketAddr, Arc<Host>>>);

impl Originals {
    /// The endpoint at an address. None: there are as many already as there may be.
    pub(super) fn at(&self, address: SocketAddr, socket: usize) -> Option<Arc<Host>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = known.get(&address) {
            return Some(host.clone());
        }
        if known.len() >= limits::ORIGINAL_ENDPOINTS {
            return None;
        }
        let host = Arc::new(Host::new(address, socket, Instant::now()));
        known.insert(address, host.clone());
        Some(host)
    }

    /// Closes connections that nobody has used for a while, and forgets whom nobody is connected to.
    pub(super) fn sweep(&self, now: Instant, config: &Cluster, generation: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, host| {
            host.sweep(now, config, generation);
            // One that a request has just got hold of has more than one owner.
            host.connections() > 0 || Arc::strong_count(host) > 1
        });
    }
}
