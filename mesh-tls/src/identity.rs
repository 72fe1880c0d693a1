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

use crate::{Error, inspect::dns_names, provider};

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

/// Gives each handshake the first certificate that is for the name that is asked for, else the first of all.
#[derive(Debug)]
pub(crate) struct ByName(pub(crate) Vec<SharedIdentity>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let all = || self.0.iter().filter_map(|identity| identity.load_full());
        let name = hello.server_name().filter(|_| self.0.len() > 1);
        let is_for = |key: &Arc<CertifiedKey>, name| {
            key.cert.first().is_some_and(|leaf| are_for(&dns_names(leaf), name))
        };
        name.and_then(|name| all().find(|key| is_for(key, name))).or_else(|| all().next())
    }
}

/// RFC 9525 6.3: the name itself, or one with `*` in place of its first label.
fn are_for(names: &[String], wanted: &str) -> bool {
    let rest = wanted.split_once('.').map(|(_, rest)| rest);
    names.iter().any(|known| match known.strip_prefix("*.") {
        Some(suffix) => rest.is_some_and(|rest| rest.eq_ignore_ascii_case(suffix)),
        None => known.eq_ignore_ascii_case(wanted),
    })
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

    #[test]
    fn a_star_stands_for_one_label() {
        let names = ["shop.example", "*.Shop.example"].map(str::to_owned);
        for (wanted, expected) in [
            ("shop.example", true),
            ("SHOP.example", true),
            ("eu.shop.example", true),
            ("a.eu.shop.example", false),
            ("example", false),
            ("xshop.example", false),
        ] {
            assert_eq!(are_for(&names, wanted), expected, "{wanted}");
        }
        assert!(!are_for(&[], "shop.example"));
    }
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
