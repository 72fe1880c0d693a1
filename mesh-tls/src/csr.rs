//! Certificate signing requests: made beside the key, and reduced to the key by whoever signs.

use mesh_model::identity::SpiffeId;
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use crate::Error;

/// Largest request that is looked at, in bytes. Ours have about 300.
pub const MAX_CSR: usize = 16 * 1024;

/// A new ECDSA P-256 key and a request for it, in DER. The ID in the request is a courtesy to logs: the
/// signer decides the name.
///
/// # Errors
/// The key could not be made.
pub fn generate(id: &SpiffeId) -> Result<(Vec<u8>, PrivateKeyDer<'static>), Error> {
    let key = new_key()?;
    let csr = request(&key, &id.to_string())?;
    Ok((csr, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))))
}

pub(crate) fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| Error::Key(e.to_string()))
}

pub(crate) fn request(key: &KeyPair, uri: &str) -> Result<Vec<u8>, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let uri = uri.try_into().map_err(|e: rcgen::Error| Error::Csr(e.to_string()))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    let csr = params.serialize_request(key).map_err(|e| Error::Csr(e.to_string()))?;
    Ok(csr.der().to_vec())
}

/// Whether a request could be signed: what reads it is open to strangers.
///
/// # Errors
/// What is wrong with it.
pub fn check(csr: &[u8]) -> Result<(), Error> {
    verified_key(csr).map(drop)
}

/// The public key of a request whose self signature is right, and nothing else of it: every name, usage and
/// constraint that it asks for is ignored.
pub(crate) fn verified_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, Error> {
    if csr.len() > MAX_CSR {
        return Err(Error::Csr(format!("it has {} bytes, {MAX_CSR} are allowed", csr.len())));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(csr).map_err(|e| Error::Csr(format!("no PKCS#10: {e}")))?;
    if !rest.is_empty() {
        return Err(Error::Csr(format!("{} bytes follow it", rest.len())));
    }
    request
        .verify_signature()
        .map_err(|_| Error::Csr("its signature does not match its public key".to_owned()))?;
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .map_err(|e| Error::Csr(format!("its public key is unusable: {e}")))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(Error::Csr("its key is not ECDSA P-256".to_owned()));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::identity::TrustDomain;

    fn id() -> SpiffeId {
        SpiffeId::workload(&TrustDomain::parse("west.example").unwrap(), "shop", "pay")
    }

    #[test]
    fn a_request_is_reduced_to_its_key() {
        let (csr, _) = generate(&id()).unwrap();
        assert_eq!(verified_key(&csr).unwrap().der_bytes().len(), 65);
    }

    #[test]
    fn a_request_whose_signature_is_wrong_is_refused() {
        let (mut csr, _) = generate(&id()).unwrap();
        let last = csr.len() - 1;
        csr[last] ^= 1;
        let error = verified_key(&csr).unwrap_err();
        assert!(error.to_string().contains("signature"), "{error}");
    }

    #[test]
    fn keys_of_another_kind_are_refused() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let csr = request(&key, "spiffe://west.example/x").unwrap();
        assert!(verified_key(&csr).is_err());
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let csr = request(&key, "spiffe://west.example/x").unwrap();
        let error = verified_key(&csr).unwrap_err();
        assert!(error.to_string().contains("P-256"), "{error}");
    }

    #[test]
    fn garbage_and_giants_are_refused() {
        assert!(verified_key(&[]).is_err());
        assert!(verified_key(&[0x30, 0x80, 1]).is_err());
        assert!(verified_key(&vec![0; MAX_CSR + 1]).unwrap_err().to_string().contains("allowed"));
        let (mut csr, _) = generate(&id()).unwrap();
        csr.push(0);
        assert!(verified_key(&csr).is_err());
    }
}
