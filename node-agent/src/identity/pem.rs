//! PEM (RFC 7468), which is how Envoy takes certificates and keys inline.

use base64::{Engine, engine::general_purpose::STANDARD};

/// Certificates one after the other.
pub(super) fn certificates<'a>(list: impl IntoIterator<Item = &'a [u8]>) -> String {
    list.into_iter().map(|der| block("CERTIFICATE", der)).collect()
}

/// A PKCS#8 key.
pub(super) fn private_key(der: &[u8]) -> String {
    block("PRIVATE KEY", der)
}

fn block(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        // Base64 is ASCII.
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    #[test]
    fn what_is_written_is_read_back_by_a_pem_parser() {
        let (one, two) = (vec![7u8; 100], vec![9u8; 48]);
        let text = certificates([one.as_slice(), two.as_slice()]);
        let read: Vec<_> =
            CertificateDer::pem_slice_iter(text.as_bytes()).map(|der| der.unwrap().to_vec()).collect();
        assert_eq!(read, [one, two]);
    }
}
