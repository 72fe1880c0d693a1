//! Services in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ebpf_shared::{Backend, BackendKey, ServiceKey, ServiceValue, SockAddr, limits};

use super::{HashTable, Kernel, KernelError};

/// What the kernel knows of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Loopback port of the sidecar's listener for it, 0: none.
    pub proxy_port: u16,
    /// One slot per share of new connections; none: connections are refused.
    pub slots: Vec<SockAddr>,
}

impl Kernel {
    /// Makes a service what it is to be, in one write: the backends are written beside the old ones first.
    /// Connections that exist keep their backend.
    pub fn put_service(&mut self, key: ServiceKey, service: &Service) -> Result<(), KernelError> {
        let most = limits::BACKENDS_PER_SERVICE;
        let backend_count = match u32::try_from(service.slots.len()) {
            Ok(count) if count <= most => count,
            _ => {
                let key = SocketAddr::new(key.addr.into(), key.port).to_string();
                return Err(KernelError::TooManyBackends { key, found: service.slots.len(), most });
            }
        };
        let present = self.services.get(&key)?;
        let id = self.free_service()?;
        for (slot, addr) in (0..backend_count).zip(&service.slots) {
            self.backends.upsert(BackendKey { service: id, slot }, *addr)?;
        }
        let value = ServiceValue { id, backend_count, proxy_port: service.proxy_port, flags: 0 };
        self.services.upsert(key, value)?;
        self.service_ids.insert(id);
        present.map_or(Ok(()), |present| self.forget_backends(&present))
    }

    /// Removes a service: its address is then an address like any other. Returns whether it was there.
    pub fn remove_service(&mut self, key: &ServiceKey) -> Result<bool, KernelError> {
        let Some(present) = self.services.get(key)? else { return Ok(false) };
        self.services.delete(key)?;
        self.forget_backends(&present)?;
        Ok(true)
    }

    /// All services, as they are in the kernel.
    pub fn services(&self) -> Result<BTreeMap<ServiceKey, Service>, KernelError> {
        let mut services = BTreeMap::new();
        for (key, value) in self.services.dump()? {
            let mut slots = Vec::new();
            for slot in 0..value.backend_count {
                slots.extend(self.backends.get(&BackendKey { service: value.id, slot })?);
            }
            services.insert(key, Service { proxy_port: value.proxy_port, slots });
        }
        Ok(services)
    }

    fn forget_backends(&mut self, service: &ServiceValue) -> Result<(), KernelError> {
        for slot in 0..service.backend_count {
            self.backends.delete(&BackendKey { service: service.id, slot })?;
        }
        self.service_ids.remove(&service.id);
        Ok(())
    }

    /// A number that no service has. Numbers come round after four billion changes.
    fn free_service(&mut self) -> Result<u32, KernelError> {
        for _ in 0..=self.service_ids.len() {
            let id = self.next_service;
            self.next_service = self.next_service.wrapping_add(1);
            if !self.service_ids.contains(&id) {
                return Ok(id);
            }
        }
        Err(KernelError::Exhausted { what: "services" })
    }
}

/// Backends that belong to no service: an agent died between writing them and the service.
pub(super) fn sweep(
    services: &BTreeSet<u32>,
    backends: &mut HashTable<BackendKey, Backend>,
) -> Result<(), KernelError> {
    for (key, _) in backends.dump()? {
        if !services.contains(&key.service) {
            backends.delete(&key)?;
        }
    }
    Ok(())
}
