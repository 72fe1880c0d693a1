//! Trust bundles: which roots vouch for which trust domain.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

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
    revoked: BTreeSet<u64>,
}

/// What a line in front of the certificates of a bundle begins with, to say which registrations are revoked.
const REVOKED: &str = "# isthmus-revoked-registrations:";

/// Explanatory text (RFC 7468 section 5.2 lets it stand before a PEM block; every parser skips it) by which a bundle in
/// PEM tells which registrations are revoked. Empty if none are.
pub fn revoked_remark(revoked: &BTreeSet<u64>) -> String {
    if revoked.is_empty() {
        return String::new();
    }
    let numbers: Vec<String> = revoked.iter().map(u64::to_string).collect();
    format!("{REVOKED} {}\n", numbers.join(" "))
}

/// Reads what [`revoked_remark`] wrote; nothing from any other text. Numbers that are none are skipped.
pub fn revoked_in(pem: &str) -> BTreeSet<u64> {
    let lines = pem.lines().filter_map(|line| line.strip_prefix(REVOKED));
    lines.flat_map(str::split_whitespace).filter_map(|number| number.parse().ok()).collect()
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
        self.insert_but(trust_domain, roots, BTreeSet::new())
    }

    /// Like [`TrustBundles::insert`], but certificates that come of these registrations are refused.
    ///
    /// # Errors
    /// As [`TrustBundles::insert`].
    pub fn insert_but(
        &mut self,
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
        revoked: BTreeSet<u64>,
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
        Arc::make_mut(&mut self.domains).insert(trust_domain, Arc::new(Domain { roots, anchors, revoked }));
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

    /// Registrations of a trust domain whose certificates are refused.
    pub fn is_revoked(&self, trust_domain: &TrustDomain, registration: u64) -> bool {
        self.domains.get(trust_domain).is_some_and(|domain| domain.revoked.contains(&registration))
    }

    /// Whether the other says the same of every trust domain.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.domains.len() == other.domains.len()
            && self.domains.iter().zip(other.domains.iter()).all(|((one, mine), (two, theirs))| {
                one == two && mine.roots == theirs.roots && mine.revoked == theirs.revoked
            })
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
    fn a_certificate_of_a_revoked_registration_is_refused_and_its_neighbours_are_not() {
        use crate::{
            PeerPolicy, Usage, csr,
            fixtures::{NOW, now, unix},
            issue::LEAF_TTL,
            verify_peer,
        };
        let west = Ca::new("west.example");
        let id = mesh_model::identity::SpiffeId::parse("spiffe://west.example/ns/a/sa/b").unwrap();
        let (csr, _) = csr::generate(&id).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.insert_but(td("west.example"), vec![west.root_der()], BTreeSet::from([7])).unwrap();
        let verify = |registration| {
            let chain = west.issuer.sign_for(&csr, &id, registration, LEAF_TTL, now()).unwrap();
            verify_peer(&bundles, &PeerPolicy::AnyMeshIdentity, &chain, Usage::Client, unix(NOW))
        };
        assert!(matches!(verify(7), Err(Error::Revoked { registration: 7, .. })));
        assert!(verify(6).is_ok() && verify(0).is_ok());
    }

    #[test]
    fn the_remark_of_a_bundle_is_read_back_and_pem_parsers_skip_it() {
        use rustls_pki_types::pem::PemObject;
        let revoked = BTreeSet::from([3, 70]);
        let root = Ca::new("west.example").root_der();
        let text = revoked_remark(&revoked) + &crate::pem::certificate(&root);
        assert_eq!(revoked_in(&text), revoked);
        let read: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(read, [root]);
        assert!(revoked_remark(&BTreeSet::new()).is_empty() && revoked_in("# x: 3\n4").is_empty());
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
