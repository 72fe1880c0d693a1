//! Trust bundles: which roots vouch for which trust domain.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use mesh_model::identity::TrustDomain;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::{Error, inspect::parse_root};

/// Most roots that one trust domain may have: enough for a rotation with several CAs.
pub const MAX_ROOTS: usize = 16;

/// Trust domain to root certificates. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TrustBundles {
    domains: Arc<BTreeMap<TrustDomain, Arc<Domain>>>,
}

#[derive(Debug)]
struct Domain {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// Bundles that every configuration made from them reads live at each handshake.
pub type SharedBundles = Arc<ArcSwap<TrustBundles>>;

/// Bundles to start with; `store` replaces them.
pub fn shared_bundles(bundles: TrustBundles) -> SharedBundles {
    Arc::new(ArcSwap::from_pointee(bundles))
}

impl TrustBundles {
    /// Trusts nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the roots of a trust domain, replacing those it had.
    ///
    /// # Errors
    /// No or too many roots, or one that is no CA certificate or is the CA of another trust domain. Then
    /// nothing is changed.
    pub fn insert(
        &mut self,
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<(), Error> {
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(Error::RootCount { trust_domain, count: roots.len(), max: MAX_ROOTS });
        }
        let mut anchors = Vec::with_capacity(roots.len());
        for root in &roots {
            parse_root(root, &trust_domain)?;
            let anchor =
                webpki::anchor_from_trusted_cert(root).map_err(|e| Error::NotARoot(e.to_string()))?;
            anchors.push(anchor.to_owned());
        }
        Arc::make_mut(&mut self.domains).insert(trust_domain, Arc::new(Domain { roots, anchors }));
        Ok(())
    }

    /// Ends the trust in a domain. Connections that stand are not touched; new handshakes fail.
    pub fn remove(&mut self, trust_domain: &TrustDomain) -> bool {
        Arc::make_mut(&mut self.domains).remove(trust_domain).is_some()
    }

    /// The roots of a trust domain.
    pub fn roots(&self, trust_domain: &TrustDomain) -> Option<&[CertificateDer<'static>]> {
        self.domains.get(trust_domain).map(|d| d.roots.as_slice())
    }

    /// Every trust domain with its roots, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &[CertificateDer<'static>])> {
        self.domains.iter().map(|(name, domain)| (name, domain.roots.as_slice()))
    }

    pub(crate) fn anchors(&self, trust_domain: &TrustDomain) -> Option<&[TrustAnchor<'static>]> {
        self.domains.get(trust_domain).map(|d| d.anchors.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{Ca, td};

    #[test]
    fn a_bundle_without_roots_or_with_a_leaf_for_a_root_is_refused_and_changes_nothing() {
        let west = Ca::new("west.example");
        let mut bundles = TrustBundles::new();
        bundles.insert(td("west.example"), vec![west.root_der()]).unwrap();
        assert!(matches!(bundles.insert(td("west.example"), vec![]), Err(Error::RootCount { count: 0, .. })));
        let leaf = west.leaf("spiffe://west.example/ns/a/sa/b").chain[0].clone();
        assert!(matches!(bundles.insert(td("west.example"), vec![leaf]), Err(Error::NotARoot(_))));
        assert!(bundles.insert(td("west.example"), vec![CertificateDer::from(vec![1, 2, 3])]).is_err());
        assert_eq!(bundles.roots(&td("west.example")).unwrap(), [west.root_der()]);
    }

    #[test]
    fn a_root_that_names_another_trust_domain_is_refused() {
        let west = Ca::new("west.example");
        let error = TrustBundles::new().insert(td("east.example"), vec![west.root_der()]).unwrap_err();
        assert!(error.to_string().contains("west.example"), "{error}");
    }

    #[test]
    fn clones_do_not_see_later_changes() {
        let mut bundles = TrustBundles::new();
        let before = bundles.clone();
        bundles.insert(td("west.example"), vec![Ca::new("west.example").root_der()]).unwrap();
        assert_eq!(before.iter().count(), 0);
        assert_eq!(bundles.iter().count(), 1);
        assert!(bundles.remove(&td("west.example")));
        assert!(!bundles.remove(&td("west.example")));
    }
}
