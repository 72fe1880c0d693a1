//! Reading certificates: names, validity, fingerprints.

use mesh_model::identity::{SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::Error;

/// Largest certificate that is looked at, in bytes. Ours have about 600.
pub(crate) const MAX_CERTIFICATE: usize = 64 * 1024;

/// What `status` and renewal want to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The SPIFFE ID of an identity; of anything else (CAs name their trust domain only) the distinguished name.
    pub subject: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before_unix: u64,
    /// Seconds since 1970.
    pub not_after_unix: u64,
}

/// SHA-256 over the whole certificate in DER: what join tokens pin.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

/// The identity that the leaf of a chain claims. This only *reads* it: a chain from a finished handshake of
/// this crate's configurations is verified already, any other must go through [`crate::verify_peer`].
///
/// # Errors
/// No certificate, none or several URI names, or no SPIFFE ID of an identity.
pub fn peer_spiffe_id(certs: &[CertificateDer<'_>]) -> Result<SpiffeId, Error> {
    let leaf = certs.first().ok_or(Error::NoCertificate)?;
    let certificate = parse(leaf)?;
    let uris = uri_names(&certificate)?;
    let [uri] = uris.as_slice() else { return Err(Error::UriNames(uris.len())) };
    let id = SpiffeId::parse(uri)?;
    if id.path().is_empty() {
        return Err(Error::NoPath(id.trust_domain().clone()));
    }
    Ok(id)
}

/// Names and validity of a certificate.
///
/// # Errors
/// The bytes are no certificate.
pub fn certificate_info(certificate: &CertificateDer<'_>) -> Result<CertificateInfo, Error> {
    let parsed = parse(certificate)?;
    let uris = uri_names(&parsed)?;
    let identity = uris
        .iter()
        .find(|uri| SpiffeId::parse(uri).is_ok_and(|id| !id.path().is_empty()))
        .map(|uri| (*uri).to_owned());
    let seconds = |t: i64| u64::try_from(t).unwrap_or(0);
    Ok(CertificateInfo {
        subject: identity.unwrap_or_else(|| parsed.subject().to_string()),
        issuer: parsed.issuer().to_string(),
        serial: parsed.serial.to_str_radix(16),
        not_before_unix: seconds(parsed.validity().not_before.timestamp()),
        not_after_unix: seconds(parsed.validity().not_after.timestamp()),
    })
}

/// Checks that a certificate can be a root of a trust domain: a CA that may sign certificates, self-issued,
/// and, where it names a SPIFFE ID (X.509-SVID section 4.2 says signing certificates should), naming exactly
/// this trust domain.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse_root(
    certificate: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
) -> Result<CertificateInfo, Error> {
    let parsed = parse(certificate).map_err(|e| Error::NotARoot(e.to_string()))?;
    let constraints = parsed.basic_constraints().map_err(|e| Error::NotARoot(e.to_string()))?;
    if !constraints.is_some_and(|c| c.value.ca) {
        return Err(Error::NotARoot("it is no CA (basicConstraints)".to_owned()));
    }
    let usage = parsed.key_usage().map_err(|e| Error::NotARoot(e.to_string()))?;
    if usage.is_some_and(|u| !u.value.key_cert_sign()) {
        return Err(Error::NotARoot("it may not sign certificates (keyUsage)".to_owned()));
    }
    if parsed.subject() != parsed.issuer() {
        return Err(Error::NotARoot(format!("it is issued by {}, not by itself", parsed.issuer())));
    }
    for uri in uri_names(&parsed)? {
        let id = SpiffeId::parse(uri)?;
        if id.trust_domain() != trust_domain || !id.path().is_empty() {
            return Err(Error::NotARoot(format!("it names {id}, not spiffe://{trust_domain}")));
        }
    }
    certificate_info(certificate)
}

/// The registration of the node that a certificate comes of; None if it tells none.
pub fn registration(certificate: &CertificateDer<'_>) -> Option<u64> {
    crate::issue::registration_in(parse(certificate).ok()?.raw_serial())
}

/// The DNS names of a certificate; none if it can't be read.
pub fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(parsed) = parse(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    dns.collect()
}

/// The root that a chain of leaf and issuer leads to, by signature alone: tells roots apart, and is no verification.
pub fn root_of<'a, 'r>(
    chain: &[CertificateDer<'_>],
    roots: impl IntoIterator<Item = &'a CertificateDer<'r>>,
) -> Option<&'a CertificateDer<'r>>
where
    'r: 'a,
{
    let issuer = chain.get(1)?;
    roots.into_iter().find(|root| is_signed_by(issuer, root))
}

/// Whether the signature of a certificate is of this signer's key. Names, times and usages play no part: this tells
/// roots apart, and is no verification.
pub fn is_signed_by(certificate: &CertificateDer<'_>, signer: &CertificateDer<'_>) -> bool {
    let (Ok(certificate), Ok(signer)) = (parse(certificate), parse(signer)) else { return false };
    certificate.verify_signature(Some(signer.public_key())).is_ok()
}

pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    if certificate.len() > MAX_CERTIFICATE {
        return Err(Error::Parse(format!(
            "it has {} bytes, {MAX_CERTIFICATE} are allowed",
            certificate.len()
        )));
    }
    let (rest, parsed) =
        X509Certificate::from_der(certificate.as_ref()).map_err(|e| Error::Parse(e.to_string()))?;
    if !rest.is_empty() {
        return Err(Error::Parse(format!("{} bytes follow it", rest.len())));
    }
    Ok(parsed)
}

fn uri_names<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, Error> {
    let names = certificate.subject_alternative_name().map_err(|e| Error::Parse(e.to_string()))?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|n| &n.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // A name that this parser can't read may be a URI to another one.
            GeneralName::Invalid(tag, _) => {
                return Err(Error::Parse(format!("subjectAltName {tag} is malformed")));
            }
            _ => {}
        }
    }
    Ok(uris)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{Ca, NOW, td};

    #[test]
    fn info_names_the_spiffe_id_and_the_validity() {
        let west = Ca::new("west.example");
        let leaf = west.leaf("spiffe://west.example/ns/shop/sa/pay");
        let info = certificate_info(&leaf.chain[0]).unwrap();
        assert_eq!(info.subject, "spiffe://west.example/ns/shop/sa/pay");
        assert_eq!(info.not_before_unix, NOW - 300);
        assert_eq!(info.not_after_unix, NOW + 24 * 3600);
        assert!(info.issuer.contains("west.example"), "{}", info.issuer);
        assert_eq!(peer_spiffe_id(&leaf.chain).unwrap().to_string(), info.subject);
        let root = certificate_info(&west.root_der()).unwrap();
        assert!(root.subject.contains("CN=west.example root"), "{}", root.subject);
    }

    #[test]
    fn a_chain_that_starts_with_a_ca_names_no_identity() {
        let west = Ca::new("west.example");
        assert!(matches!(peer_spiffe_id(&[west.root_der()]), Err(Error::NoPath(_))));
        assert!(matches!(peer_spiffe_id(&[]), Err(Error::NoCertificate)));
        assert!(matches!(peer_spiffe_id(&[CertificateDer::from(vec![0x30, 0])]), Err(Error::Parse(_))));
        let mut long = west.root_der().to_vec();
        long.push(0);
        assert!(matches!(peer_spiffe_id(&[CertificateDer::from(long)]), Err(Error::Parse(_))));
    }

    #[test]
    fn a_root_is_described_and_an_issuer_is_no_root() {
        let west = Ca::new("west.example");
        assert!(parse_root(&west.root_der(), &td("west.example")).is_ok());
        let issuer = west.leaf("spiffe://west.example/x").chain[1].clone();
        let error = parse_root(&issuer, &td("west.example")).unwrap_err();
        assert!(error.to_string().contains("not by itself"), "{error}");
    }
}
