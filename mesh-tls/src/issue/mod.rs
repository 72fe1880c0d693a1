//! The certificate authority of a cluster, in two layers.
//!
//! The root key signs issuers only; every replica can open a sealed copy of it. Each replica makes its own
//! issuing key and signs the certificates of nodes, replicas and workloads with it. Whoever signs decides the
//! name, the usages and the time: a request contributes its public key and nothing else.

mod issuer;
mod root;

use std::time::{Duration, SystemTime};

use mesh_model::identity::TrustDomain;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use time::OffsetDateTime;

pub use issuer::{Issuer, IssuerKey};
pub use root::Root;

use crate::{Error, provider};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Validity of a root.
pub const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
/// Validity of an issuer. Replaced at half of it, so that a leaf of [`MAX_LEAF_TTL`] always fits into the rest.
pub const ISSUER_TTL: Duration = Duration::from_secs(90 * DAY.as_secs());
/// Validity of a leaf unless told otherwise.
pub const LEAF_TTL: Duration = DAY;
/// Longest validity that a leaf may be given.
pub const MAX_LEAF_TTL: Duration = Duration::from_secs(30 * DAY.as_secs());
/// Certificates begin to be valid this long before they are made, because clocks differ.
pub const BACKDATE: Duration = Duration::from_secs(300);

/// What all our certificates have in common.
fn params(
    common_name: &str,
    uri: &str,
    ttl: Duration,
    not_after_at_most: Option<OffsetDateTime>,
    now: SystemTime,
) -> Result<CertificateParams, Error> {
    let issue = |e: &dyn std::fmt::Display| Error::Issue(e.to_string());
    let now = OffsetDateTime::from(now);
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Isthmus");
    // X.520 bounds the common name at 64 characters.
    name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    params.distinguished_name = name;
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(|e: rcgen::Error| issue(&e))?)];
    params.not_before = now.checked_sub(seconds(BACKDATE)).ok_or_else(|| issue(&"the clock is wrong"))?;
    let wanted = now.checked_add(seconds(ttl)).ok_or_else(|| issue(&"the time to live is too long"))?;
    params.not_after = not_after_at_most.map_or(wanted, |limit| wanted.min(limit));
    params.serial_number = Some(serial()?);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn seconds(d: Duration) -> time::Duration {
    time::Duration::seconds(i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Random, so that a renewed certificate of the same key has another one (RFC 5280 section 4.1.2.2).
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0_u8; 16];
    provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| Error::Issue("the system has no randomness".to_owned()))?;
    // Positive, and with no leading zero byte.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// First byte of a serial number that tells a registration. Random ones begin with 0x40 to 0x7f.
const REGISTERED: u8 = 0x21;

/// A serial number that says which registration of a node the certificate comes of, so that all that ever came of it
/// can be refused by one number, with no record of each. Seven bytes of it, then eight at random.
fn serial_of(registration: u64) -> Result<SerialNumber, Error> {
    let mut bytes = serial()?.to_bytes();
    bytes[..8].copy_from_slice(&registration.to_be_bytes());
    bytes[0] = REGISTERED;
    Ok(SerialNumber::from_slice(&bytes))
}

/// The registration that a serial number tells; None if it tells none.
pub(crate) fn registration_in(serial: &[u8]) -> Option<u64> {
    let number: [u8; 8] = serial.get(..8)?.try_into().ok()?;
    (serial.len() == 16 && number[0] == REGISTERED)
        .then(|| {
            u64::from_be_bytes([
                0, number[1], number[2], number[3], number[4], number[5], number[6], number[7],
            ])
        })
        .filter(|number| *number != 0)
}

/// The trust domain that a signing certificate names (X.509-SVID section 4.2).
fn trust_domain_of(certificate: &CertificateDer<'_>) -> Result<TrustDomain, Error> {
    match crate::peer_spiffe_id(std::slice::from_ref(certificate)) {
        Err(Error::NoPath(domain)) => Ok(domain),
        Err(other) => Err(other),
        Ok(id) => Err(Error::Issue(format!("{id} is an identity, not a signing certificate"))),
    }
}

/// The first private key in a text that may hold certificates as well.
pub(crate) fn key_from_pem(pem: &str) -> Result<KeyPair, Error> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| Error::Pem(format!("holds no PKCS#8 private key: {e}")))?;
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
        .map_err(|e| Error::Pem(format!("holds no ECDSA P-256 key: {e}")))
}
