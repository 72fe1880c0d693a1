//! Bytes from strangers: nothing that reads them panics, whatever they are.

use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use crate::{
    Error, TrustBundles, certificate_info, csr,
    fixtures::{Ca, td},
    inspect::MAX_CERTIFICATE,
    parse_root, peer_spiffe_id, registration, revoked_in,
    seal::{Sealed, SealingKey},
};

fn read_all(bytes: &[u8]) {
    let certificate = CertificateDer::from(bytes);
    let _ = certificate_info(&certificate);
    let _ = peer_spiffe_id(std::slice::from_ref(&certificate));
    let _ = registration(&certificate);
    let _ = parse_root(&certificate, &td("west.example"));
    let _ = TrustBundles::new().insert(td("west.example"), vec![certificate.into_owned()]);
    let _ = csr::check(bytes);
    let _ = revoked_in(&String::from_utf8_lossy(bytes));
}

/// A genuine certificate or request with some bytes changed, cut or added.
fn mutated(genuine: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = genuine.len();
    let changes = prop::collection::vec((0..length, any::<u8>()), 0..8);
    (changes, 0..=length, prop::collection::vec(any::<u8>(), 0..16)).prop_map(move |(changes, keep, more)| {
        let mut bytes = genuine.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(keep);
        bytes.extend(more);
        bytes
    })
}

fn genuine() -> (Vec<u8>, Vec<u8>) {
    let west = Ca::new("west.example");
    let id = mesh_model::identity::SpiffeId::parse("spiffe://west.example/ns/a/sa/b").unwrap();
    (west.leaf("spiffe://west.example/ns/a/sa/b").chain[0].to_vec(), csr::generate(&id).unwrap().0)
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        read_all(&bytes);
    }

    #[test]
    fn damaged_certificates_and_requests_are_read_without_a_panic(
        (certificate, request) in Just(genuine()).prop_flat_map(|(c, r)| (mutated(c), mutated(r)))
    ) {
        read_all(&certificate);
        read_all(&request);
    }

    #[test]
    fn sealed_secrets_of_any_bytes_are_refused(
        encapsulated in prop::collection::vec(any::<u8>(), 0..64),
        ciphertext in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        let key = SealingKey::generate().unwrap();
        let opened = key.open(&Sealed { encapsulated, ciphertext }, b"p");
        prop_assert!(opened.is_err());
    }
}

#[test]
fn giants_are_refused_before_they_are_parsed() {
    let huge = CertificateDer::from(vec![0x30; MAX_CERTIFICATE + 1]);
    assert!(matches!(certificate_info(&huge), Err(Error::Parse(text)) if text.contains("bytes")));
    assert!(csr::check(&vec![0x30; csr::MAX_CSR + 1]).is_err());
}
