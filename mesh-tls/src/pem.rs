//! PEM (RFC 7468): how Envoy takes certificates and keys inline, and how replicas keep theirs.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::Error;

/// A certificate.
pub fn certificate(der: &[u8]) -> String {
    block("CERTIFICATE", der)
}

/// Certificates one after the other.
pub fn certificates<'a>(list: impl IntoIterator<Item = &'a [u8]>) -> String {
    list.into_iter().map(certificate).collect()
}

/// A PKCS#8 key.
pub fn private_key(der: &[u8]) -> String {
    block("PRIVATE KEY", der)
}

/// The certificates of a text, in their order; one at least.
///
/// # Errors
/// [`Error::Pem`] if a block is damaged, or there is none.
pub fn read_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Pem(format!("cannot be read: {e}")))?;
    if certificates.is_empty() {
        return Err(Error::Pem("holds no CERTIFICATE".to_owned()));
    }
    Ok(certificates)
}

/// The first private key of a text.
///
/// # Errors
/// [`Error::Pem`] if there is none that can be read.
pub fn read_private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| Error::Pem(format!("holds no private key: {e}")))
}

fn block(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = String::with_capacity(encoded.len() + encoded.len() / 64 + 64);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    // 64 characters a line (section 2); base64 is ASCII.
    for line in encoded.as_bytes().chunks(64) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::PrivatePkcs8KeyDer;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_by_a_pem_parser() {
        let (one, two) = (vec![7u8; 100], vec![9u8; 48]);
        let text = certificates([one.as_slice(), two.as_slice()]);
        let read: Vec<_> = read_certificates(&text).unwrap().iter().map(|der| der.to_vec()).collect();
        assert_eq!(read, [one.clone(), two]);
        let key = PrivatePkcs8KeyDer::from_pem_slice(private_key(&one).as_bytes()).unwrap();
        assert_eq!(key.secret_pkcs8_der(), one);
        assert_eq!(read_private_key(&private_key(&one)).unwrap().secret_der(), one);
        assert!(read_certificates(&private_key(&one)).is_err() && read_private_key(&text).is_err());
    }
}
