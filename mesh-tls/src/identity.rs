//! The own certificate, replaced live.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Error, provider};

/// An own certificate: the chain, leaf first, and its key.
#[derive(Debug)]
pub struct Identity {
    /// Leaf, then issuer. A replica's chain ends in the root, for those that pin it by a token's fingerprint.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
}

/// The certificate that new handshakes use; `None` until the first has been obtained.
pub type SharedIdentity = Arc<ArcSwapOption<CertifiedKey>>;

/// Holds no certificate yet; `store(Some(certified(..)?))` sets and replaces it.
pub fn shared_identity(identity: Option<Arc<CertifiedKey>>) -> SharedIdentity {
    Arc::new(ArcSwapOption::new(identity))
}

/// Parses the key and checks that it belongs to the leaf.
///
/// # Errors
/// Empty chain, unusable key, or a key of another certificate.
pub fn certified(identity: Identity) -> Result<Arc<CertifiedKey>, Error> {
    if identity.chain.is_empty() {
        return Err(Error::NoCertificate);
    }
    CertifiedKey::from_der(identity.chain, identity.key, &provider())
        .map(Arc::new)
        .map_err(|e| Error::Key(e.to_string()))
}

/// Gives every handshake the certificate of that moment.
#[derive(Debug)]
pub(crate) struct LiveIdentity(pub(crate) SharedIdentity);

impl ResolvesServerCert for LiveIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl ResolvesClientCert for LiveIdentity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Ca;

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let west = Ca::new("west.example");
        let one = west.leaf("spiffe://west.example/a");
        let two = west.leaf("spiffe://west.example/b");
        assert!(certified(Identity { chain: one.chain.clone(), key: one.key.clone_key() }).is_ok());
        let mixed = Identity { chain: one.chain, key: two.key };
        assert!(matches!(certified(mixed), Err(Error::Key(_))));
    }
}
