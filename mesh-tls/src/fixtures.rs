//! A small certificate authority with a fixed clock, for tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_model::identity::{SpiffeId, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::{
    Identity, TrustBundles, csr,
    issue::{Issuer, LEAF_TTL, Root},
};

/// A second in 2026.
pub(crate) const NOW: u64 = 1_790_000_000;

pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

pub(crate) fn unix(at: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(at))
}

pub(crate) fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

pub(crate) struct Ca {
    pub(crate) root: Root,
    pub(crate) issuer: Issuer,
    made: SystemTime,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        Self::at(name, now())
    }

    pub(crate) fn at(name: &str, made: SystemTime) -> Self {
        let root = Root::generate(td(name), made).unwrap();
        let key = Issuer::generate().unwrap();
        let certificate = root.sign_issuer(&key.csr(&td(name)).unwrap(), made).unwrap();
        Self { root, issuer: key.certified(certificate).unwrap(), made }
    }

    pub(crate) fn root_der(&self) -> CertificateDer<'static> {
        self.root.certificate().clone()
    }

    pub(crate) fn leaf(&self, id: &str) -> Identity {
        let id = SpiffeId::parse(id).unwrap();
        let (csr, key) = csr::generate(&id).unwrap();
        Identity { chain: self.issuer.sign(&csr, &id, LEAF_TTL, self.made).unwrap(), key }
    }

    /// Leaf, issuer, root: what replicas send.
    pub(crate) fn leaf_with_root(&self, id: &str) -> Identity {
        let mut identity = self.leaf(id);
        identity.chain.push(self.root_der());
        identity
    }
}

pub(crate) fn bundles(cas: &[&Ca]) -> TrustBundles {
    let mut bundles = TrustBundles::new();
    for ca in cas {
        bundles.insert(ca.root.trust_domain().clone(), vec![ca.root_der()]).unwrap();
    }
    bundles
}
