//! Tokens that somebody has from somewhere, and wants to know whose they are.

use mesh_tls::jwt::{JwtPublicKey, JwtSvid, MAX_TOKEN, verify};

/// The key of the seeds, whose private half is gone.
const POINT: &str = "0484b641234f9d453d37ad584d4cfd74c68f719d1618cf4cbe9ec578ef2e18b60148aa8aac98f9636ea555a4e29a4b34ccdd707b9a022b3616eaf327be67f8a306";
/// While they are valid.
const NOW: u64 = 1_790_000_100;

pub(crate) fn verified(bytes: &[u8]) -> Option<JwtSvid> {
    let key = key()?;
    let keys = |domain: &_| of_west(domain).then(|| vec![key]);
    verify(&String::from_utf8_lossy(bytes), "bank", NOW, keys).ok()
}

fn of_west(domain: &mesh_model::identity::TrustDomain) -> bool {
    domain.as_str() == "west.example"
}

pub(crate) fn jwt(bytes: &[u8]) {
    let Some(svid) = verified(bytes) else { return };
    assert!(bytes.len() <= MAX_TOKEN);
    assert!(of_west(svid.id.trust_domain()), "the key's own");
    assert_eq!(svid.claims["sub"], svid.id.to_string());
    assert!(svid.claims["exp"].as_f64().is_some_and(|end| end > NOW as f64), "{:?}", svid.claims);
    assert!(svid.claims["aud"].to_string().contains("\"bank\""), "{:?}", svid.claims);
}

fn key() -> Option<JwtPublicKey> {
    let digits = POINT.as_bytes().chunks(2);
    let point: Option<Vec<u8>> =
        digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect();
    JwtPublicKey::from_point(&point?).ok()
}
