//! PEM (RFC 7468): how Envoy takes certificates and keys inline, and how replicas keep theirs.

use base64::{Engine, engine::general_purpose::STANDARD};

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
    use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};

    use super::*;

    #[test]
    fn what_is_written_is_read_back_by_a_pem_parser() {
        let (one, two) = (vec![7u8; 100], vec![9u8; 48]);
        let text = certificates([one.as_slice(), two.as_slice()]);
        let read: Vec<_> =
            CertificateDer::pem_slice_iter(text.as_bytes()).map(|der| der.unwrap().to_vec()).collect();
        assert_eq!(read, [one.clone(), two]);
        let key = PrivatePkcs8KeyDer::from_pem_slice(private_key(&one).as_bytes()).unwrap();
        assert_eq!(key.secret_pkcs8_der(), one);
    }
}
