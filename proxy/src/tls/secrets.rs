//! Secrets by name. Whoever uses a name holds a slot; SDS fills it, now or later, and again at every rotation.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use mesh_tls::{SharedBundles, SharedIdentity, TrustBundles};

use crate::{config::SecretRef, store::Material};

/// An own certificate.
#[derive(Debug, Clone)]
pub struct IdentitySlot {
    /// Read at every handshake.
    pub shared: SharedIdentity,
    /// How often it was filled.
    pub generation: Arc<AtomicU64>,
}

/// Roots.
#[derive(Debug, Clone)]
pub struct RootsSlot {
    /// Read at every handshake.
    pub shared: SharedBundles,
    /// How often they were filled.
    pub generation: Arc<AtomicU64>,
}

/// All secrets.
#[derive(Debug, Default)]
pub struct Secrets {
    identities: Mutex<HashMap<SecretRef, IdentitySlot>>,
    roots: Mutex<HashMap<SecretRef, RootsSlot>>,
}

impl Secrets {
    /// The slot of a certificate; empty if it has not arrived.
    pub fn identity(&self, secret: &SecretRef) -> IdentitySlot {
        let mut slots = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = || IdentitySlot { shared: mesh_tls::shared_identity(None), generation: Arc::default() };
        slots.entry(secret.clone()).or_insert_with(empty).clone()
    }

    /// The slot of roots; trusting nobody if they have not arrived.
    pub fn roots(&self, secret: &SecretRef) -> RootsSlot {
        let mut slots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = || RootsSlot {
            shared: mesh_tls::shared_bundles(TrustBundles::new()),
            generation: Arc::default(),
        };
        slots.entry(secret.clone()).or_insert_with(empty).clone()
    }

    /// Fills a slot. New handshakes use it at once; connections that stand are not touched.
    pub fn set(&self, secret: &SecretRef, material: Material) {
        match material {
            Material::Identity(key) => {
                let slot = self.identity(secret);
                slot.shared.store(Some(key));
                slot.generation.fetch_add(1, Ordering::AcqRel);
            }
            Material::Bundles(bundles) => {
                let slot = self.roots(secret);
                slot.shared.store(Arc::new(bundles));
                slot.generation.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Forgets a name. Those who hold its slot keep what they have.
    pub fn remove(&self, secret: &SecretRef) {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).remove(secret);
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).remove(secret);
    }
}
