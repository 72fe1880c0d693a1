use super::*;

const NOW: u64 = 1_790_000_000;

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn pay() -> SpiffeId {
    id("spiffe://west.example/ns/shop/sa/pay")
}

/// Of `west.example` only.
fn known(keys: &[&JwtKey]) -> impl FnOnce(&TrustDomain) -> Option<Vec<JwtPublicKey>> {
    let keys: Vec<_> = keys.iter().map(|key| key.public().clone()).collect();
    |domain| (domain.as_str() == "west.example").then_some(keys)
}

/// A token with this header and these claims, signed by a key.
fn token(key: &JwtKey, header: &Header, claims: &Value) -> String {
    jsonwebtoken::encode(header, claims, &key.key).unwrap()
}

fn header(key: &JwtKey) -> Header {
    Header { kid: Some(key.public().id()), ..Header::new(Algorithm::ES256) }
}

#[test]
fn a_token_says_who_bears_it_to_those_for_whom_it_is_meant() {
    let key = JwtKey::generate().unwrap();
    let (token, end) = key.sign(&pay(), &["bank", "shop"], 0, NOW).unwrap();
    assert_eq!(end, NOW + 300);
    for audience in ["bank", "shop"] {
        let svid = verify(&token, audience, NOW + 299, known(&[&key])).unwrap();
        assert_eq!((svid.id, svid.claims["exp"].as_u64()), (pay(), Some(end)));
        assert_eq!(svid.claims["aud"], json!(["bank", "shop"]));
    }
    let wrong = verify(&token, "ban", NOW, known(&[&key])).unwrap_err();
    assert_eq!(wrong, JwtError::NotForAudience("ban".into()));
    let late = verify(&token, "bank", end, known(&[&key])).unwrap_err();
    assert_eq!(late, JwtError::Expired(0));
}

#[test]
fn only_a_key_of_the_bearers_own_trust_domain_counts() {
    let (ours, other) = (JwtKey::generate().unwrap(), JwtKey::generate().unwrap());
    let (by_other, _) = other.sign(&pay(), &["bank"], 60, NOW).unwrap();
    let refused = verify(&by_other, "bank", NOW, known(&[&ours])).unwrap_err();
    assert!(matches!(refused, JwtError::UnknownKey { .. }), "{refused}");
    // Under the name of a key that is known.
    let claims = json!({ "sub": pay().to_string(), "aud": "bank", "exp": NOW + 60 });
    let forged = token(&other, &header(&ours), &claims);
    assert_eq!(verify(&forged, "bank", NOW, known(&[&ours])).unwrap_err(), JwtError::Signature);
    assert!(verify(&token(&ours, &header(&ours), &claims), "bank", NOW, known(&[&ours])).is_ok());
    // While keys change over, both count.
    assert!(verify(&by_other, "bank", NOW, known(&[&ours, &other])).is_ok());
    let (foreign, _) = ours.sign(&id("spiffe://east.example/ns/shop/sa/pay"), &["bank"], 60, NOW).unwrap();
    let refused = verify(&foreign, "bank", NOW, known(&[&ours])).unwrap_err();
    assert!(matches!(refused, JwtError::UnknownTrustDomain(_)), "{refused}");
}

#[test]
fn a_changed_token_is_refused_whichever_part_was_changed() {
    let key = JwtKey::generate().unwrap();
    let (token, _) = key.sign(&pay(), &["bank"], 60, NOW).unwrap();
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        // The last character has bits that mean nothing; base64 without rest bits refuses them, or the value is another.
        let verified = verify(&changed, "bank", NOW, known(&[&key]));
        assert!(verified.is_err(), "at {at}: {changed}");
    }
    for part in ["", ".", "..", "a.b", "a.b.c", &token[..token.len() - 10], &format!("{token}.x")] {
        assert!(verify(part, "bank", NOW, known(&[&key])).is_err(), "{part}");
    }
}

#[test]
fn nothing_but_es256_with_its_claims_is_a_jwt_svid() {
    let key = JwtKey::generate().unwrap();
    let whole = json!({ "sub": pay().to_string(), "aud": ["bank"], "exp": NOW + 60 });
    let refused = |text: &str| verify(text, "bank", NOW, known(&[&key])).unwrap_err();
    // A public key taken for a shared secret, and no signature at all.
    let secret = EncodingKey::from_secret(key.public().point());
    let hmac = Header { kid: Some(key.public().id()), ..Header::new(Algorithm::HS256) };
    let confused = jsonwebtoken::encode(&hmac, &whole, &secret).unwrap();
    assert!(matches!(refused(&confused), JwtError::Header { field: "alg", .. }));
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let bare = format!("{none}.{}.", URL_SAFE_NO_PAD.encode(whole.to_string()));
    assert!(matches!(refused(&bare), JwtError::Malformed(_)));
    let typed = Header { typ: Some("at+jwt".into()), ..header(&key) };
    assert!(matches!(refused(&token(&key, &typed, &whole)), JwtError::Header { field: "typ", .. }));
    let critical = Header { crit: Some(vec!["b64".into()]), ..header(&key) };
    assert!(matches!(refused(&token(&key, &critical, &whole)), JwtError::Header { field: "crit", .. }));
    let nameless = Header { kid: None, ..header(&key) };
    assert!(matches!(refused(&token(&key, &nameless, &whole)), JwtError::UnknownKey { .. }));
    for (claim, value, expected) in [
        ("sub", Value::Null, JwtError::Claim("sub")),
        ("exp", json!("soon"), JwtError::Claim("exp")),
        ("exp", Value::Null, JwtError::Claim("exp")),
        ("aud", json!(7), JwtError::Claim("aud")),
        ("sub", json!("spiffe://west.example"), JwtError::NoPath(id("spiffe://west.example"))),
    ] {
        let mut claims = whole.clone();
        claims[claim] = value;
        assert_eq!(refused(&token(&key, &header(&key), &claims)), expected, "{claim}");
    }
    let long =
        json!({ "sub": pay().to_string(), "aud": "bank", "exp": NOW + 60, "x": "x".repeat(MAX_TOKEN) });
    assert!(matches!(refused(&token(&key, &header(&key), &long)), JwtError::TooLong(_)));
}

#[test]
fn what_a_token_is_asked_for_has_limits() {
    let key = JwtKey::generate().unwrap();
    let sign =
        |audiences: &[&str], seconds| key.sign(&pay(), audiences, seconds, NOW).map(|(token, _)| token);
    assert_eq!(sign(&[], 0).unwrap_err(), JwtError::NoAudience);
    let many: Vec<String> = (0..17).map(|i| i.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(sign(&many, 0).unwrap_err(), JwtError::Audiences(17));
    for bad in ["", "a b", "ü", &"a".repeat(257)] {
        assert!(matches!(sign(&[bad], 0).unwrap_err(), JwtError::Audience(_)), "{bad}");
    }
    assert_eq!(sign(&["a"], 3_601).unwrap_err(), JwtError::Ttl(3_601));
    let longest = "a".repeat(256);
    let most = sign(&[longest.as_str(); 16], 3_600).unwrap();
    assert!(
        most.len() <= MAX_TOKEN && verify(&most, &longest, NOW, known(&[&key])).is_ok(),
        "{}",
        most.len()
    );
}

#[test]
fn keys_are_told_as_a_jwk_set_and_never_shown() {
    let key = JwtKey::generate().unwrap();
    let set: Value = serde_json::from_str(&jwk_set([key.public()])).unwrap();
    let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(set["keys"][0].clone()).unwrap();
    assert_eq!(jwk.common.key_id.as_deref(), Some(key.public().id().as_str()));
    assert_eq!(set["keys"][0]["use"], "jwt-svid");
    let (token, _) = key.sign(&pay(), &["bank"], 60, NOW).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&["bank"]);
    validation.validate_exp = false;
    let by_jwk = DecodingKey::from_jwk(&jwk).unwrap();
    assert!(jsonwebtoken::decode::<Value>(&token, &by_jwk, &validation).is_ok());
    assert!(!format!("{key:?}").contains("EncodingKey") && set["keys"][0].get("d").is_none());
    assert!(JwtPublicKey::from_point(&[4; 64]).is_err() && JwtPublicKey::from_point(&[3; 65]).is_err());
}
