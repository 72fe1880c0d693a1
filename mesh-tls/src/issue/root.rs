//! The root of a trust domain.

use std::time::SystemTime;

use mesh_model::identity::TrustDomain;
use rcgen::{BasicConstraints, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::{ISSUER_TTL, ROOT_TTL, key_from_pem, params, serial, trust_domain_of};
use crate::{
    Error, certificate_info,
    csr::{new_key, verified_key},
    fingerprint,
    inspect::parse_root,
    seal::{Sealed, SealingKey, seal},
};

/// The root certificate and its key. Signs issuers and nothing else.
pub struct Root {
    trust_domain: TrustDomain,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Root {
    /// A new key and its self-signed certificate, valid for [`ROOT_TTL`].
    ///
    /// # Errors
    /// No randomness.
    pub fn generate(trust_domain: TrustDomain, now: SystemTime) -> Result<Self, Error> {
        let key = new_key()?;
        let uri = format!("spiffe://{trust_domain}");
        let mut params = params(&format!("{trust_domain} root"), &uri, ROOT_TTL, None, now)?;
        // One layer of issuers below, none below those.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(|e| Error::Issue(e.to_string()))?;
        Ok(Self { trust_domain, certificate: certificate.der().clone(), key })
    }

    /// Signs the issuing certificate of a replica: only the key of the request is used. The result is a CA
    /// of this trust domain that can sign leaves and no further CA, valid for [`ISSUER_TTL`].
    ///
    /// # Errors
    /// The request is malformed or not signed by its key, or the root has expired.
    pub fn sign_issuer(&self, csr: &[u8], now: SystemTime) -> Result<CertificateDer<'static>, Error> {
        let key = verified_key(csr)?;
        let limit = super::issuer::not_after(&self.certificate, now)?;
        let uri = format!("spiffe://{}", self.trust_domain);
        // Issuers differ in name, so that a verifier finds the right one without trying signatures.
        let tag: String = serial()?.to_bytes().iter().skip(1).take(4).map(|b| format!("{b:02x}")).collect();
        let name = format!("{} issuer {tag}", self.trust_domain);
        let mut params = params(&name, &uri, ISSUER_TTL, Some(limit), now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let signer = rcgen::Issuer::from_ca_cert_der(&self.certificate, &self.key)
            .map_err(|e| Error::Issue(e.to_string()))?;
        let certificate = params.signed_by(&key, &signer).map_err(|e| Error::Issue(e.to_string()))?;
        Ok(certificate.der().clone())
    }

    /// Seals the key to a replica's public key; see [`Root::open`].
    ///
    /// # Errors
    /// The public key is unusable.
    pub fn seal_to(&self, replica: u64, public: &[u8]) -> Result<Sealed, Error> {
        seal(public, &purpose(&self.certificate, replica), &self.key.serialize_der())
    }

    /// The root whose key was sealed to this replica's key.
    ///
    /// # Errors
    /// It was sealed to another, or is another root's.
    pub fn open(
        certificate: CertificateDer<'static>,
        sealed: &Sealed,
        replica: u64,
        key: &SealingKey,
    ) -> Result<Self, Error> {
        let der = PrivatePkcs8KeyDer::from(key.open(sealed, &purpose(&certificate, replica))?);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(|e| Error::Key(e.to_string()))?;
        Self::from_parts(certificate, key)
    }

    /// The certificate, which goes into the trust bundle.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Whose root this is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Certificate, then private key, in PEM. For a file that only its owner reads.
    pub fn to_pem(&self) -> String {
        format!("{}{}", crate::pem::certificate(&self.certificate), self.key.serialize_pem())
    }

    /// Reads what [`Root::to_pem`] wrote.
    ///
    /// # Errors
    /// The text lacks a part, or key and certificate differ.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        Self::from_parts(crate::pem::read_certificates(pem)?.swap_remove(0), key_from_pem(pem)?)
    }

    fn from_parts(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, Error> {
        let trust_domain = trust_domain_of(&certificate)?;
        parse_root(&certificate, &trust_domain)?;
        super::issuer::check_pair(&certificate, &key)?;
        certificate_info(&certificate)?;
        Ok(Self { trust_domain, certificate, key })
    }
}

/// What a sealed key is for: this root, in the hands of this replica.
fn purpose(certificate: &CertificateDer<'_>, replica: u64) -> Vec<u8> {
    [&b"root key"[..], &fingerprint(certificate), &replica.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{now, td};

    #[test]
    fn a_root_survives_its_pem() {
        let root = Root::generate(td("west.example"), now()).unwrap();
        let again = Root::from_pem(&root.to_pem()).unwrap();
        assert_eq!(again.certificate(), root.certificate());
        assert_eq!(again.trust_domain(), root.trust_domain());
    }

    #[test]
    fn a_root_with_the_key_of_another_is_refused() {
        let one = Root::generate(td("west.example"), now()).unwrap();
        let two = Root::generate(td("west.example"), now()).unwrap();
        let mixed = format!("{}{}", crate::pem::certificate(one.certificate()), two.key.serialize_pem());
        assert!(matches!(Root::from_pem(&mixed), Err(Error::Key(_))));
        assert!(matches!(Root::from_pem("nonsense"), Err(Error::Pem(_))));
        assert!(matches!(Root::from_pem(&two.key.serialize_pem()), Err(Error::Pem(_))));
    }

    #[test]
    fn a_sealed_root_is_opened_by_its_replica_alone() {
        let root = Root::generate(td("west.example"), now()).unwrap();
        let key = SealingKey::generate().unwrap();
        let sealed = root.seal_to(2, key.public()).unwrap();
        let certificate = root.certificate().clone();
        let again = Root::open(certificate.clone(), &sealed, 2, &key).unwrap();
        assert_eq!(again.to_pem(), root.to_pem());
        assert!(Root::open(certificate.clone(), &sealed, 3, &key).is_err());
        assert!(Root::open(certificate, &sealed, 2, &SealingKey::generate().unwrap()).is_err());
        let other = Root::generate(td("west.example"), now()).unwrap();
        assert!(Root::open(other.certificate().clone(), &sealed, 2, &key).is_err());
    }

    #[test]
    fn debug_output_has_no_key() {
        let root = Root::generate(td("west.example"), now()).unwrap();
        assert_eq!(format!("{root:?}"), "Root { trust_domain: TrustDomain(\"west.example\"), .. }");
    }
}
