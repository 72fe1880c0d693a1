//! The issuing CA of one replica.

use std::time::{Duration, SystemTime};

use mesh_model::identity::{SpiffeId, TrustDomain};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType};
use rustls_pki_types::{CertificateDer, DnsName};
use time::OffsetDateTime;

use super::{MAX_LEAF_TTL, key_from_pem, params, serial_of, trust_domain_of};
use crate::{
    Error,
    csr::{new_key, request, verified_key},
    inspect::parse,
};

/// An issuing key that has no certificate yet.
pub struct IssuerKey {
    key: KeyPair,
}

impl std::fmt::Debug for IssuerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuerKey").finish_non_exhaustive()
    }
}

impl IssuerKey {
    /// The request for [`super::Root::sign_issuer`], in DER.
    ///
    /// # Errors
    /// Signing failed.
    pub fn csr(&self, trust_domain: &TrustDomain) -> Result<Vec<u8>, Error> {
        request(&self.key, &format!("spiffe://{trust_domain}"))
    }

    /// The key in PEM, to be kept until the certificate has come.
    pub fn to_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Reads what [`IssuerKey::to_pem`] wrote.
    ///
    /// # Errors
    /// No private key in it.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        Ok(Self { key: key_from_pem(pem)? })
    }

    /// Key and certificate together can sign.
    ///
    /// # Errors
    /// The certificate is another key's, or no CA of a trust domain.
    pub fn certified(self, certificate: CertificateDer<'static>) -> Result<Issuer, Error> {
        check_pair(&certificate, &self.key)?;
        let constraints = parse(&certificate)?
            .basic_constraints()
            .map_err(|e| Error::Parse(e.to_string()))?
            .is_some_and(|c| c.value.ca);
        if !constraints {
            return Err(Error::Issue("the issuer's certificate is no CA".to_owned()));
        }
        Ok(Issuer { trust_domain: trust_domain_of(&certificate)?, certificate, key: self.key })
    }
}

/// Signs the certificates of one replica's nodes, workloads and of the replica itself.
pub struct Issuer {
    trust_domain: TrustDomain,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Issuer {
    /// A new issuing key; see [`IssuerKey::csr`] and [`IssuerKey::certified`].
    ///
    /// # Errors
    /// No randomness.
    pub fn generate() -> Result<IssuerKey, Error> {
        Ok(IssuerKey { key: new_key()? })
    }

    /// Signs a leaf for `id` and returns leaf and issuer. Of the request only the key is used. The leaf never
    /// outlives the issuer.
    ///
    /// # Errors
    /// Another trust domain's ID, the ID of a trust domain itself, a bad request, a time to live of zero or
    /// more than [`MAX_LEAF_TTL`], or an issuer that has expired.
    pub fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        self.sign_for(csr, id, 0, ttl, now)
    }

    /// As [`Issuer::sign`], for a node or on a node's behalf: the serial number tells the node's registration. Zero
    /// is none.
    ///
    /// # Errors
    /// As [`Issuer::sign`].
    pub fn sign_for(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        registration: u64,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        self.sign_named(csr, id, &[], registration, ttl, now)
    }

    /// As [`Issuer::sign_for`], with DNS names as well: for servers whose clients go by those. Peers of the mesh go by
    /// the SPIFFE ID alone (X.509-SVID section 2 allows both in one certificate).
    ///
    /// # Errors
    /// As [`Issuer::sign`], or a name that is none.
    pub fn sign_named(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        dns_names: &[String],
        registration: u64,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        if id.trust_domain() != &self.trust_domain {
            return Err(Error::Issue(format!("{id} is not of the trust domain {}", self.trust_domain)));
        }
        if id.path().is_empty() {
            return Err(Error::NoPath(id.trust_domain().clone()));
        }
        if ttl.is_zero() || ttl > MAX_LEAF_TTL {
            return Err(Error::Issue(format!(
                "a time to live of {} s is not within 1 s and {} s",
                ttl.as_secs(),
                MAX_LEAF_TTL.as_secs()
            )));
        }
        let key = verified_key(csr)?;
        let limit = not_after(&self.certificate, now)?;
        let mut params = params(id.path().trim_start_matches('/'), &id.to_string(), ttl, Some(limit), now)?;
        for name in dns_names {
            let bad = || Error::Issue(format!("{name:?} is no DNS name"));
            DnsName::try_from(name.as_str()).map_err(|_| bad())?;
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(|_| bad())?));
        }
        if registration != 0 {
            params.serial_number = Some(serial_of(registration)?);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signer = rcgen::Issuer::from_ca_cert_der(&self.certificate, &self.key)
            .map_err(|e| Error::Issue(e.to_string()))?;
        let leaf = params.signed_by(&key, &signer).map_err(|e| Error::Issue(e.to_string()))?;
        Ok(vec![leaf.der().clone(), self.certificate.clone()])
    }

    /// The issuing certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Whose identities it signs.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Certificate, then private key, in PEM. For a file that only its owner reads.
    pub fn to_pem(&self) -> String {
        format!("{}{}", crate::pem::certificate(&self.certificate), self.key.serialize_pem())
    }

    /// Reads what [`Issuer::to_pem`] wrote.
    ///
    /// # Errors
    /// The text lacks a part, or key and certificate differ.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        IssuerKey::from_pem(pem)?.certified(crate::pem::read_certificates(pem)?.swap_remove(0))
    }
}

/// When a signing certificate ends; an error if that has been.
pub(super) fn not_after(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<OffsetDateTime, Error> {
    let limit = parse(certificate)?.validity().not_after.to_datetime();
    if limit <= OffsetDateTime::from(now) {
        return Err(Error::Issue(format!("the signing certificate has expired on {limit}")));
    }
    Ok(limit)
}

pub(super) fn check_pair(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), Error> {
    if parse(certificate)?.public_key().raw == key.subject_public_key_info().as_slice() {
        Ok(())
    } else {
        Err(Error::Key("it is not the key of this certificate".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        certificate_info,
        csr::generate,
        fixtures::{Ca, NOW, now, td},
        issue::{ISSUER_TTL, LEAF_TTL},
    };

    fn pay() -> SpiffeId {
        SpiffeId::parse("spiffe://west.example/ns/shop/sa/pay").unwrap()
    }

    #[test]
    fn the_signer_decides_the_name_whatever_the_request_asks_for() {
        let west = Ca::new("west.example");
        let (csr, _) = generate(&SpiffeId::parse("spiffe://east.example/ns/kube/sa/admin").unwrap()).unwrap();
        let chain = west.issuer.sign(&csr, &pay(), LEAF_TTL, now()).unwrap();
        assert_eq!(crate::peer_spiffe_id(&chain).unwrap(), pay());
        assert_eq!(chain.len(), 2);
    }

    #[test]
    fn a_request_that_asks_to_be_a_ca_becomes_a_leaf() {
        let west = Ca::new("west.example");
        let key = KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let csr = params.serialize_request(&key).unwrap();
        let chain = west.issuer.sign(csr.der(), &pay(), LEAF_TTL, now()).unwrap();
        let leaf = parse(&chain[0]).unwrap();
        assert!(!leaf.basic_constraints().unwrap().is_some_and(|c| c.value.ca));
        assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    }

    #[test]
    fn ids_outside_the_trust_domain_are_never_signed() {
        let west = Ca::new("west.example");
        let (csr, _) = generate(&pay()).unwrap();
        for bad in ["spiffe://east.example/ns/shop/sa/pay", "spiffe://west.example"] {
            assert!(
                west.issuer.sign(&csr, &SpiffeId::parse(bad).unwrap(), LEAF_TTL, now()).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_leaf_never_outlives_its_issuer() {
        let west = Ca::new("west.example");
        let (csr, _) = generate(&pay()).unwrap();
        let late = now() + ISSUER_TTL - Duration::from_secs(60);
        let chain = west.issuer.sign(&csr, &pay(), LEAF_TTL, late).unwrap();
        let info = certificate_info(&chain[0]).unwrap();
        assert_eq!(info.not_after_unix, NOW + ISSUER_TTL.as_secs());
        let after = now() + ISSUER_TTL;
        let error = west.issuer.sign(&csr, &pay(), LEAF_TTL, after).unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
    }

    #[test]
    fn times_to_live_have_bounds() {
        let west = Ca::new("west.example");
        let (csr, _) = generate(&pay()).unwrap();
        for ttl in [Duration::ZERO, MAX_LEAF_TTL + Duration::from_secs(1)] {
            assert!(west.issuer.sign(&csr, &pay(), ttl, now()).is_err());
        }
    }

    #[test]
    fn dns_names_are_those_of_the_signer_and_the_identity_stays_the_one_uri() {
        let west = Ca::new("west.example");
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["victim.example".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://west.example/x".try_into().unwrap()));
        let csr = params.serialize_request(&key).unwrap();
        let names = ["n1.west.hubble-grpc.mesh.local".to_owned()];
        let chain = west.issuer.sign_named(csr.der(), &pay(), &names, 0, LEAF_TTL, now()).unwrap();
        assert_eq!(crate::dns_names(&chain[0]), names);
        assert_eq!(crate::peer_spiffe_id(&chain).unwrap(), pay());
        let plain = west.issuer.sign(csr.der(), &pay(), LEAF_TTL, now()).unwrap();
        assert!(crate::dns_names(&plain[0]).is_empty(), "the request asked for one");
        for bad in ["", "a b", "*", "10.0.0.1", "a..b"] {
            let bad = [bad.to_owned()];
            assert!(west.issuer.sign_named(csr.der(), &pay(), &bad, 0, LEAF_TTL, now()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_certificate_tells_the_registration_that_it_comes_of() {
        let west = Ca::new("west.example");
        let (csr, _) = generate(&pay()).unwrap();
        for number in [1, 7, 0x00ff_ffff_ffff_ffff] {
            let chain = west.issuer.sign_for(&csr, &pay(), number, LEAF_TTL, now()).unwrap();
            assert_eq!(crate::registration(&chain[0]), Some(number));
        }
        let chain = west.issuer.sign(&csr, &pay(), LEAF_TTL, now()).unwrap();
        assert_eq!(crate::registration(&chain[0]), None);
        assert_eq!(crate::registration(&CertificateDer::from(vec![1, 2])), None);
    }

    #[test]
    fn two_certificates_of_one_key_differ_in_serial_number() {
        let west = Ca::new("west.example");
        let (csr, _) = generate(&pay()).unwrap();
        let serial = || {
            let chain = west.issuer.sign(&csr, &pay(), LEAF_TTL, now()).unwrap();
            certificate_info(&chain[0]).unwrap().serial
        };
        assert_ne!(serial(), serial());
    }

    #[test]
    fn an_issuer_survives_its_pem_and_refuses_a_strange_key() {
        let west = Ca::new("west.example");
        let again = Issuer::from_pem(&west.issuer.to_pem()).unwrap();
        assert_eq!(again.certificate(), west.issuer.certificate());
        assert_eq!(again.trust_domain(), &td("west.example"));
        let strange = Issuer::generate().unwrap();
        assert!(matches!(strange.certified(west.issuer.certificate().clone()), Err(Error::Key(_))));
    }

    #[test]
    fn a_leaf_cannot_become_an_issuer() {
        let west = Ca::new("west.example");
        let strange = Issuer::generate().unwrap();
        let csr = strange.csr(&td("west.example")).unwrap();
        let leaf = west.issuer.sign(&csr, &pay(), LEAF_TTL, now()).unwrap().swap_remove(0);
        assert!(strange.certified(leaf).is_err());
    }
}
