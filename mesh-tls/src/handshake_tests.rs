//! Whole handshakes, and the verifier against every kind of wrong certificate.

use std::{sync::Arc, time::SystemTime};

use mesh_model::identity::SpiffeId;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use crate::{
    ALPN_H2, ClientAuth, Error, Identity, PeerPolicy, Usage, certified, client_config, client_config_pinned,
    fingerprint,
    fixtures::{Ca, NOW, bundles, td, unix},
    pinned::PinnedVerifier,
    server_config, shared_bundles, shared_identity, verify_peer,
};

const PAY: &str = "spiffe://west.example/ns/shop/sa/pay";
const WEB: &str = "spiffe://west.example/ns/shop/sa/web";

fn verify(cas: &[&Ca], policy: &PeerPolicy, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, Error> {
    verify_peer(&bundles(cas), policy, chain, Usage::Server, unix(NOW))
}

fn any() -> PeerPolicy {
    PeerPolicy::AnyMeshIdentity
}

/// A certificate with arbitrary names, signed by the issuer of a CA.
fn odd(ca: &Ca, names: &[&str], change: impl Fn(&mut CertificateParams)) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = time::OffsetDateTime::from_unix_timestamp(NOW as i64 - 300).unwrap();
    params.not_after = time::OffsetDateTime::from_unix_timestamp(NOW as i64 + 3600).unwrap();
    params.subject_alt_names = names.iter().map(|n| SanType::URI((*n).try_into().unwrap())).collect();
    change(&mut params);
    let signer_key = crate::issue::key_from_pem(&ca.issuer.to_pem()).unwrap();
    let signer = rcgen::Issuer::from_ca_cert_der(ca.issuer.certificate(), &signer_key).unwrap();
    let leaf = params.signed_by(&key, &signer).unwrap();
    Identity {
        chain: vec![leaf.der().clone(), ca.issuer.certificate().clone()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    }
}

#[test]
fn the_right_peer_is_accepted_for_either_usage() {
    let west = Ca::new("west.example");
    let chain = west.leaf(PAY).chain;
    assert_eq!(verify(&[&west], &any(), &chain).unwrap().to_string(), PAY);
    verify_peer(&bundles(&[&west]), &any(), &chain, Usage::Client, unix(NOW)).unwrap();
    // A root at the end of the chain does no harm.
    verify(&[&west], &any(), &west.leaf_with_root(PAY).chain).unwrap();
}

#[test]
fn a_trust_domain_that_has_not_joined_is_refused() {
    let (west, east) = (Ca::new("west.example"), Ca::new("east.example"));
    let error = verify(&[&east], &any(), &west.leaf(PAY).chain).unwrap_err();
    assert!(matches!(error, Error::UnknownTrustDomain(_)), "{error}");
}

#[test]
fn the_roots_of_one_trust_domain_never_vouch_for_another() {
    let (west, east) = (Ca::new("west.example"), Ca::new("east.example"));
    // East's issuer signs a certificate in west's name: both domains are trusted, and still.
    let forged = odd(&east, &[PAY], |_| {});
    let error = verify(&[&west, &east], &any(), &forged.chain).unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
}

#[test]
fn another_root_with_the_same_trust_domain_name_is_refused() {
    let (west, impostor) = (Ca::new("west.example"), Ca::new("west.example"));
    let error = verify(&[&west], &any(), &impostor.leaf_with_root(PAY).chain).unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
}

#[test]
fn certificates_are_refused_before_and_after_their_time() {
    let west = Ca::new("west.example");
    let chain = west.leaf(PAY).chain;
    let at = |t| verify_peer(&bundles(&[&west]), &any(), &chain, Usage::Server, unix(t));
    assert!(at(NOW - 299).is_ok());
    assert!(matches!(at(NOW - 301), Err(Error::Time { .. })));
    assert!(at(NOW + 24 * 3600 - 1).is_ok());
    let error = at(NOW + 24 * 3600 + 1).unwrap_err();
    assert!(matches!(error, Error::Time { .. }) && error.to_string().contains("expired 1 s ago"), "{error}");
}

#[test]
fn a_certificate_names_exactly_one_identity() {
    let west = Ca::new("west.example");
    let two = odd(&west, &[PAY, WEB], |_| {});
    assert!(matches!(verify(&[&west], &any(), &two.chain), Err(Error::UriNames(2))));
    let none = odd(&west, &[], |p| p.subject_alt_names = vec![SanType::DnsName("pay".try_into().unwrap())]);
    assert!(matches!(verify(&[&west], &any(), &none.chain), Err(Error::UriNames(0))));
    let other = odd(&west, &["https://west.example/ns/shop/sa/pay"], |_| {});
    assert!(matches!(verify(&[&west], &any(), &other.chain), Err(Error::SpiffeId(_))));
    let domain = odd(&west, &["spiffe://west.example"], |_| {});
    assert!(matches!(verify(&[&west], &any(), &domain.chain), Err(Error::NoPath(_))));
}

#[test]
fn a_leaf_signed_by_a_leaf_is_refused() {
    let west = Ca::new("west.example");
    let web = west.leaf(WEB);
    let PrivateKeyDer::Pkcs8(pkcs8) = &web.key else { panic!("keys are PKCS#8") };
    let web_key = KeyPair::from_pkcs8_der_and_sign_algo(pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let signer = rcgen::Issuer::from_ca_cert_der(&web.chain[0], &web_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(PAY.try_into().unwrap())];
    let forged = params.signed_by(&key, &signer).unwrap();
    let mut chain = vec![forged.der().clone()];
    chain.extend(web.chain);
    let error = verify(&[&west], &any(), &chain).unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
}

#[test]
fn an_issuer_cannot_make_another_issuer() {
    let west = Ca::new("west.example");
    let sub = odd(&west, &["spiffe://west.example"], |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    });
    let PrivateKeyDer::Pkcs8(pkcs8) = &sub.key else { panic!("keys are PKCS#8") };
    let sub_key = KeyPair::from_pkcs8_der_and_sign_algo(pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let signer = rcgen::Issuer::from_ca_cert_der(&sub.chain[0], &sub_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(PAY.try_into().unwrap())];
    let mut chain = vec![params.signed_by(&key, &signer).unwrap().der().clone()];
    chain.extend(sub.chain);
    let error = verify(&[&west], &any(), &chain).unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
}

#[test]
fn a_ca_is_no_peer_and_a_client_only_certificate_no_server() {
    let west = Ca::new("west.example");
    let ca = odd(&west, &[PAY], |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(matches!(verify(&[&west], &any(), &ca.chain), Err(Error::Untrusted { .. })));
    let client = odd(&west, &[PAY], |p| {
        p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    assert!(matches!(verify(&[&west], &any(), &client.chain), Err(Error::Untrusted { .. })));
    verify_peer(&bundles(&[&west]), &any(), &client.chain, Usage::Client, unix(NOW)).unwrap();
}

#[test]
fn a_genuine_peer_that_was_not_meant_is_refused() {
    let west = Ca::new("west.example");
    let wanted = PeerPolicy::OneOf(vec![SpiffeId::parse(WEB).unwrap()]);
    let error = verify(&[&west], &wanted, &west.leaf(PAY).chain).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    verify(&[&west], &wanted, &west.leaf(WEB).chain).unwrap();
}

#[test]
fn a_pin_accepts_only_a_replica_below_the_right_root() {
    let (west, impostor) = (Ca::new("west.example"), Ca::new("west.example"));
    let pin = PinnedVerifier { root_sha256: fingerprint(&west.root_der()) };
    let replica = "spiffe://west.example/isthmus/replica/1";
    pin.verify(&west.leaf_with_root(replica).chain, unix(NOW)).unwrap();
    let unsent = pin.verify(&west.leaf(replica).chain, unix(NOW)).unwrap_err();
    assert!(matches!(unsent, Error::PinNotFound(_)), "{unsent}");
    let wrong = pin.verify(&impostor.leaf_with_root(replica).chain, unix(NOW)).unwrap_err();
    assert!(matches!(wrong, Error::PinNotFound(_)), "{wrong}");
    // The right root beside a chain that does not lead to it.
    let mut glued = impostor.leaf(replica).chain;
    glued.push(west.root_der());
    assert!(matches!(pin.verify(&glued, unix(NOW)), Err(Error::Untrusted { .. })));
    let workload = pin.verify(&west.leaf_with_root(PAY).chain, unix(NOW)).unwrap_err();
    assert!(matches!(workload, Error::Refused { .. }), "{workload}");
}

/// Runs a handshake in memory, and what follows it, until nothing moves.
fn handshake(
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let mut client = ClientConnection::new(client, ServerName::try_from("any.name").unwrap())?;
    let mut server = ServerConnection::new(server)?;
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
        }
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
        }
        client.process_new_packets()?;
    }
    Ok((client, server))
}

/// A CA whose certificates are valid at the real time of the handshake.
fn live(name: &str) -> Ca {
    Ca::at(name, SystemTime::now())
}

#[test]
fn both_sides_know_each_other_after_a_handshake() {
    let west = live("west.example");
    let trusted = shared_bundles(bundles(&[&west]));
    let server_id = shared_identity(Some(certified(west.leaf(PAY)).unwrap()));
    let client_id = shared_identity(Some(certified(west.leaf(WEB)).unwrap()));
    let required = ClientAuth::Required(PeerPolicy::OneOf(vec![SpiffeId::parse(WEB).unwrap()]));
    let server = server_config(server_id, trusted.clone(), required, &[ALPN_H2]).unwrap();
    let wanted = PeerPolicy::OneOf(vec![SpiffeId::parse(PAY).unwrap()]);
    let client = client_config(Some(client_id), trusted.clone(), wanted.clone(), &[ALPN_H2]).unwrap();
    let (client_end, server_end) = handshake(client, server.clone()).unwrap();
    assert_eq!(crate::peer_spiffe_id(client_end.peer_certificates().unwrap()).unwrap().to_string(), PAY);
    assert_eq!(crate::peer_spiffe_id(server_end.peer_certificates().unwrap()).unwrap().to_string(), WEB);
    assert_eq!(client_end.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client_end.alpn_protocol(), Some(ALPN_H2));
    // Without a certificate, the same door stays shut.
    let stranger = client_config(None, trusted, wanted, &[ALPN_H2]).unwrap();
    assert!(handshake(stranger, server).is_err());
}

#[test]
fn an_optional_certificate_may_be_absent_but_not_bad() {
    let (west, impostor) = (live("west.example"), live("west.example"));
    let trusted = shared_bundles(bundles(&[&west]));
    let server_id = shared_identity(Some(certified(west.leaf(PAY)).unwrap()));
    let server = server_config(server_id, trusted.clone(), ClientAuth::Optional, &[]).unwrap();
    let without = client_config(None, trusted.clone(), any(), &[]).unwrap();
    let (_, end) = handshake(without, server.clone()).unwrap();
    assert!(end.peer_certificates().is_none());
    let bad = shared_identity(Some(certified(impostor.leaf(WEB)).unwrap()));
    let with_bad = client_config(Some(bad), trusted.clone(), any(), &[]).unwrap();
    assert!(handshake(with_bad, server.clone()).is_err());
    // A client that has no certificate yet is one without.
    let with_none_yet = client_config(Some(shared_identity(None)), trusted, any(), &[]).unwrap();
    assert!(handshake(with_none_yet, server).unwrap().1.peer_certificates().is_none());
}

#[test]
fn bundles_and_certificates_rotate_without_new_configurations() {
    let (old, new) = (live("west.example"), live("west.example"));
    let trusted = shared_bundles(bundles(&[&old]));
    let identity = shared_identity(None);
    let server = server_config(identity.clone(), trusted.clone(), ClientAuth::None, &[]).unwrap();
    let client = client_config(None, trusted.clone(), any(), &[]).unwrap();
    assert!(handshake(client.clone(), server.clone()).is_err(), "no certificate yet");
    identity.store(Some(certified(old.leaf(PAY)).unwrap()));
    handshake(client.clone(), server.clone()).unwrap();
    trusted.store(Arc::new(bundles(&[&new])));
    assert!(
        handshake(client.clone(), server.clone()).is_err(),
        "the old root has gone, and no session remains"
    );
    identity.store(Some(certified(new.leaf(PAY)).unwrap()));
    handshake(client, server).unwrap();
}

#[test]
fn bootstrap_by_pin_works_over_a_handshake() {
    let west = live("west.example");
    let replica = west.leaf_with_root("spiffe://west.example/isthmus/replica/1");
    let trusted = shared_bundles(bundles(&[&west]));
    let identity = shared_identity(Some(certified(replica).unwrap()));
    let server = server_config(identity, trusted, ClientAuth::Optional, &[ALPN_H2]).unwrap();
    let right = client_config_pinned(fingerprint(&west.root_der()), &[ALPN_H2]).unwrap();
    handshake(right, server.clone()).unwrap();
    let wrong = client_config_pinned([7; 32], &[ALPN_H2]).unwrap();
    let error = handshake(wrong, server).unwrap_err();
    assert!(error.to_string().contains("0707"), "{error}");
}

#[test]
fn no_session_is_resumed() {
    let west = live("west.example");
    let trusted = shared_bundles(bundles(&[&west]));
    let identity = shared_identity(Some(certified(west.leaf(PAY)).unwrap()));
    let server = server_config(identity, trusted.clone(), ClientAuth::None, &[]).unwrap();
    let client = client_config(None, trusted, PeerPolicy::TrustDomain(td("west.example")), &[]).unwrap();
    for _ in 0..2 {
        let (end, _) = handshake(client.clone(), server.clone()).unwrap();
        assert_eq!(end.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}
