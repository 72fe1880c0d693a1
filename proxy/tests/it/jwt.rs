//! Tokens: which are taken, what becomes of them, and where their keys come from.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    encoding::AsDer,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    },
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use proxy::config;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use xds_proto::{
    envoy::{
        config::{
            core::v3::{
                DataSource, HttpUri, RuntimeFractionalPercent, data_source::Specifier,
                http_uri::HttpUpstreamType,
            },
            rbac::v3::{
                Permission, Policy, Principal, Rbac, permission::Rule, principal::Identifier, rbac::Action,
            },
        },
        extensions::filters::http::{
            jwt_authn::v3::{
                JwtAuthentication, JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement,
                JwtRequirementAndList, JwtRequirementOrList, PerRouteConfig, ProviderWithAudiences,
                RemoteJwks, RequirementRule, jwt_provider::JwksSourceSpecifier,
                jwt_requirement::RequiresType, per_route_config::RequirementSpecifier,
                requirement_rule::RequirementType,
            },
            rbac::v3::Rbac as HttpRbac,
        },
        r#type::matcher::v3::{
            ListMatcher, MetadataMatcher, StringMatcher, ValueMatcher, list_matcher,
            metadata_matcher::{PathSegment, path_segment},
            string_matcher, value_matcher,
        },
        r#type::v3::FractionalPercent,
    },
    google::protobuf::{Duration, Empty},
    to_any,
};

use crate::{
    client::{get, get1, send},
    control::{Control, named},
    envoy::Pair,
    filters::{filtered, http, listening, proxy},
    resources::*,
};

/// A key that signs tokens.
struct Signer {
    kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    fn new(kid: &'static str, algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        let key = match algorithm {
            Algorithm::EdDSA => {
                EncodingKey::from_ed_der(Ed25519KeyPair::generate_pkcs8v1(&random).unwrap().as_ref())
            }
            Algorithm::ES256 => EncodingKey::from_ec_der(
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap().as_ref(),
            ),
            Algorithm::ES384 => EncodingKey::from_ec_der(
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap().as_ref(),
            ),
            _ => {
                let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
                let pkcs8 = pair.as_der().unwrap();
                // The key itself begins behind the head that PKCS #8 gives an RSA key of this size.
                EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..])
            }
        };
        Self { kid, algorithm, key }
    }

    fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

fn set(signers: &[&Signer]) -> String {
    json!({"keys": signers.iter().map(|s| s.jwk()).collect::<Vec<_>>()}).to_string()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(more: Value) -> Value {
    let mut claims = json!({"iss": "west", "sub": "web", "aud": ["pay", "x"], "exp": now() + 600});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims
}

fn local(keys: &str) -> Option<JwksSourceSpecifier> {
    let specifier = Some(Specifier::InlineString(keys.to_owned()));
    Some(JwksSourceSpecifier::LocalJwks(DataSource { specifier, ..DataSource::default() }))
}

fn provider(issuer: &str, keys: &str) -> JwtProvider {
    JwtProvider { issuer: issuer.to_owned(), jwks_source_specifier: local(keys), ..JwtProvider::default() }
}

fn needs(requires_type: RequiresType) -> JwtRequirement {
    JwtRequirement { requires_type: Some(requires_type) }
}

fn of(name: &str) -> JwtRequirement {
    needs(RequiresType::ProviderName(name.to_owned()))
}

fn any(requirements: Vec<JwtRequirement>) -> JwtRequirement {
    needs(RequiresType::RequiresAny(JwtRequirementOrList { requirements }))
}

fn missing() -> JwtRequirement {
    needs(RequiresType::AllowMissing(Empty {}))
}

fn on(path: &str, requires: JwtRequirement) -> RequirementRule {
    RequirementRule {
        r#match: Some(prefix(path)),
        requirement_type: Some(RequirementType::Requires(requires)),
    }
}

fn authn(providers: Vec<(&str, JwtProvider)>, rules: Vec<RequirementRule>) -> JwtAuthentication {
    JwtAuthentication {
        providers: providers.into_iter().map(|(name, p)| (name.to_owned(), p)).collect(),
        rules,
        ..JwtAuthentication::default()
    }
}

fn bearing(path: &str, token: &str) -> Request<Full<Bytes>> {
    let mut request = get(path);
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

#[tokio::test]
async fn a_token_is_taken_or_refused_as_envoy_does_it() {
    let algorithms = [
        ("rs", Algorithm::RS256),
        ("rs512", Algorithm::RS512),
        ("ps", Algorithm::PS384),
        ("es", Algorithm::ES256),
        ("es384", Algorithm::ES384),
        ("ed", Algorithm::EdDSA),
    ];
    let signers = algorithms.map(|(kid, algorithm)| Signer::new(kid, algorithm));
    let keys = set(&signers.each_ref());
    let west = JwtProvider { audiences: vec!["https://pay/".into(), "y".into()], ..provider("west", &keys) };
    let east = JwtProvider {
        from_headers: vec![JwtHeader { name: "x-token".into(), value_prefix: "t:".into() }],
        from_params: vec!["tok".into()],
        from_cookies: vec!["jar".into()],
        ..provider("east", &keys)
    };
    let both = JwtRequirementAndList { requirements: vec![of("west"), of("east")] };
    let with = ProviderWithAudiences { provider_name: "west".into(), audiences: vec!["x".into()] };
    let strict = JwtProvider { require_expiration: true, ..provider("west", &keys) };
    let config = authn(
        vec![("west", west), ("east", east), ("strict", strict)],
        vec![
            on("/west", of("west")),
            on("/east", of("east")),
            on("/both", needs(RequiresType::RequiresAll(both))),
            on("/either", any(vec![of("west"), of("east")])),
            on("/optional", any(vec![of("west"), missing()])),
            on("/lax", any(vec![of("west"), needs(RequiresType::AllowMissingOrFailed(Empty {}))])),
            on("/other-audience", needs(RequiresType::ProviderAndAudiences(with))),
            on("/strict", of("strict")),
            on("/nothing", JwtRequirement::default()),
            on("/missing", missing()),
        ],
    );
    let pair = Pair::start(&filtered(all_to("in", "app"), vec![http("jwt", &config)]), []).await;
    let refusal = ["www-authenticate", "content-type"];
    let check = async |request: &dyn Fn() -> Request<Full<Bytes>>, status: u16, text: &str| {
        let answer = pair.alike(&refusal, request).await;
        assert_eq!(answer.status, status, "{:?} {}", request(), answer.text());
        assert!(status == 200 || answer.text() == text, "{:?}: {}", request(), answer.text());
    };
    for signer in &signers {
        let token = signer.sign(&claims(json!({})));
        check(&|| bearing("/west", &token), 200, "").await;
        let (head, signature) = token.rsplit_once('.').unwrap();
        let other = signature.replace(&signature[..1], if signature.starts_with('A') { "B" } else { "A" });
        check(&|| bearing("/west", &format!("{head}.{other}")), 401, "Jwt verification fails").await;
    }
    let rs = &signers[0];
    let signed = |more: Value| rs.sign(&claims(more));
    let good = signed(json!({}));
    let east = signed(json!({"iss": "east"}));
    check(&|| get("/west?a=b"), 401, "Jwt is missing").await;
    check(&|| get("/elsewhere"), 200, "").await;
    check(&|| get("/nothing"), 200, "").await;
    for (path, token, status, text) in [
        ("/west", signed(json!({"exp": now() - 100})), 401, "Jwt is expired"),
        ("/west", signed(json!({"exp": now() - 30})), 200, ""),
        ("/west", signed(json!({"nbf": now() + 100})), 401, "Jwt not yet valid"),
        ("/west", signed(json!({"aud": "z"})), 403, "Audiences in Jwt are not allowed"),
        ("/west", signed(json!({"aud": "http://y"})), 200, ""),
        ("/west", east.clone(), 401, "Jwt issuer is not configured"),
        ("/west", signed(json!({"iss": 5})), 401, "Jwt payload [iss] field is not a string"),
        ("/other-audience", good.clone(), 200, ""),
        ("/other-audience", signed(json!({"aud": "pay"})), 403, "Audiences in Jwt are not allowed"),
        ("/strict", good.clone(), 200, ""),
        ("/optional", good.clone(), 200, ""),
        ("/optional", signed(json!({"exp": 5})), 401, "Jwt is expired"),
        ("/optional", signed(json!({"iss": "nobody"})), 401, "Jwt issuer is not configured"),
        ("/lax", signed(json!({"exp": 5})), 200, ""),
        ("/missing", good.clone(), 200, ""),
        ("/missing", signed(json!({"exp": 5})), 401, "Jwt is expired"),
        ("/either", good.clone(), 200, ""),
        ("/both", good.clone(), 401, "Jwt is missing"),
        (
            "/west",
            "a.b".to_owned(),
            401,
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
        ),
        (
            "/west",
            format!("e30.{}", good.split_once('.').unwrap().1),
            401,
            "Jwt header [alg] field is required and must be a string",
        ),
        (
            "/west",
            format!("eyJhbGciOiJub25lIn0.{}", good.split_once('.').unwrap().1),
            401,
            "Jwt header [alg] is not supported",
        ),
        ("/west", format!("x{good}"), 401, "Jwt header is an invalid JSON"),
    ] {
        check(&|| bearing(path, &token), status, text).await;
    }
    for path in ["/optional", "/lax", "/missing"] {
        check(&|| get(path), 200, "").await;
    }
    let mut other = Signer::new("nobody", Algorithm::RS256);
    let unknown = other.sign(&claims(json!({})));
    check(&|| bearing("/west", &unknown), 401, "Jwks doesn't have key to match kid or alg from Jwt").await;
    other.kid = "rs";
    let forged = other.sign(&claims(json!({})));
    check(&|| bearing("/west", &forged), 401, "Jwt verification fails").await;
    // A key is of one kind: its public half is no secret to sign with.
    let secret = EncodingKey::from_secret(rs.jwk()["n"].as_str().unwrap().as_bytes());
    let confused = Signer { kid: "rs", algorithm: Algorithm::HS256, key: secret }.sign(&claims(json!({})));
    let answer = send(pair.ours, http::Version::HTTP_11, bearing("/west", &confused)).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (401, "Jwt header [alg] is not supported"));
    // The other places.
    check(&|| get(&format!("/east?x=1&tok={east}")), 200, "").await;
    check(&|| get(&format!("/west?access_token={good}")), 200, "").await;
    check(&|| bearing("/east", &east), 401, "Jwt is missing").await;
    check(
        &|| bearing("/west", &format!("{good}, more")),
        401,
        "Jwt signature is an invalid Base64url encoded",
    )
    .await;
    for (name, value) in [("x-token", format!("a t:  {east}")), ("cookie", format!("a=b; jar={east}"))] {
        check(
            &|| {
                let mut request = get("/east");
                request.headers_mut().insert(name, value.parse().unwrap());
                request
            },
            200,
            "",
        )
        .await;
    }
    check(&|| bearing(&format!("/both?tok={east}"), &good), 200, "").await;
}

#[tokio::test]
async fn what_a_token_tells_reaches_the_application_and_the_filters_behind() {
    let signer = Signer::new("es", Algorithm::ES256);
    let claim = |header: &str, claim: &str| JwtClaimToHeader {
        header_name: header.into(),
        claim_name: claim.into(),
        ..JwtClaimToHeader::default()
    };
    let west = JwtProvider {
        forward_payload_header: "x-payload".into(),
        payload_in_metadata: "payload".into(),
        claim_to_headers: vec![
            claim("x-sub", "sub"),
            claim("x-deep", "deep.er"),
            claim("x-list", "groups"),
            claim("x-none", "nobody"),
            claim("x-flag", "flag"),
        ],
        ..provider("west", &set(&[&signer]))
    };
    let config = authn(vec![("west", west)], vec![on("/", any(vec![of("west"), missing()]))]);
    // As Istio writes `request.auth.claims[groups]: admin`.
    let text = StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::Exact("admin".into())),
        ..StringMatcher::default()
    };
    let one = ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::StringMatch(text)) };
    let list = ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(one))) };
    let key = |key: &str| PathSegment { segment: Some(path_segment::Segment::Key(key.into())) };
    let claim = MetadataMatcher {
        filter: "envoy.filters.http.jwt_authn".into(),
        path: vec![key("payload"), key("groups")],
        value: Some(ValueMatcher {
            match_pattern: Some(value_matcher::MatchPattern::ListMatch(Box::new(list))),
        }),
        invert: false,
    };
    #[allow(deprecated)]
    let admin = Principal { identifier: Some(Identifier::Metadata(claim)) };
    let policy = Policy {
        permissions: vec![Permission { rule: Some(Rule::Any(true)) }],
        principals: vec![admin],
        ..Policy::default()
    };
    let rules = Rbac {
        action: Action::Allow as i32,
        policies: [("admins".to_owned(), policy)].into(),
        ..Rbac::default()
    };
    let rbac = HttpRbac { rules: Some(rules), ..HttpRbac::default() };
    let filters = vec![http("jwt", &config), http("rbac", &rbac)];
    let pair = Pair::start(&filtered(all_to("in", "app"), filters), []).await;
    let token =
        signer.sign(&claims(json!({"groups": ["admin", "dev"], "deep": {"er": 5}, "flag": true, "n": 1})));
    let request = || {
        let mut request = bearing("/", &token);
        for name in ["x-payload", "x-sub", "x-none"] {
            request.headers_mut().insert(name, "mine".parse().unwrap());
        }
        request
    };
    let mut seen = pair.alike(&[], request).await.seen()["headers"].clone();
    let headers = seen.as_object_mut().unwrap();
    assert_eq!(headers.get("authorization"), None, "it is not forwarded");
    assert_eq!(headers.get("x-none"), None, "what a client says in such a header is taken away");
    assert_eq!(headers["x-payload"], token.split('.').nth(1).unwrap());
    assert_eq!(
        (&headers["x-sub"], &headers["x-deep"], &headers["x-flag"]),
        (&json!("web"), &json!("5"), &json!("true"))
    );
    if let Some(at) = pair.envoy {
        let theirs = send(at, http::Version::HTTP_11, request()).await.seen()["headers"].clone();
        for name in ["x-payload", "x-sub", "x-deep", "x-list", "x-flag", "x-none", "authorization"] {
            assert_eq!(headers.get(name), theirs.get(name), "{name}");
        }
    }
    let dev = signer.sign(&claims(json!({"groups": ["dev"]})));
    let answer = pair.alike(&[], || bearing("/", &dev)).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (403, "RBAC: access denied"));
    assert_eq!(pair.alike(&[], || get("/")).await.status, 403);
}

#[tokio::test]
async fn a_route_may_need_no_token_or_another() {
    let signer = Signer::new("ed", Algorithm::EdDSA);
    let mut config = authn(vec![("west", provider("west", &set(&[&signer])))], vec![on("/", of("west"))]);
    config.requirement_map = [("optional".to_owned(), any(vec![of("west"), missing()]))].into();
    config.bypass_cors_preflight = true;
    let mut table = all_to("in", "app");
    let route = |path: &str, specifier: RequirementSpecifier| {
        let mut route = to(prefix(path), cluster_action("app"));
        let config = PerRouteConfig { requirement_specifier: Some(specifier) };
        route.typed_per_filter_config = [("jwt".to_owned(), to_any(&config))].into();
        route
    };
    let named = |name: &str| RequirementSpecifier::RequirementName(name.to_owned());
    table.virtual_hosts[0].routes.splice(
        0..0,
        [
            route("/open", RequirementSpecifier::Disabled(true)),
            route("/optional", named("optional")),
            route("/wrong", named("nobody")),
        ],
    );
    let pair = Pair::start(&filtered(table, vec![http("jwt", &config)]), []).await;
    for (path, status) in [("/", 401), ("/open", 200), ("/optional", 200), ("/wrong", 403)] {
        assert_eq!(pair.alike(&[], || get(path)).await.status, status, "{path}");
    }
    let preflight = || {
        let mut request = get("/");
        *request.method_mut() = http::Method::OPTIONS;
        request.headers_mut().insert("origin", "http://a".parse().unwrap());
        request.headers_mut().insert("access-control-request-method", "GET".parse().unwrap());
        request
    };
    assert_eq!(pair.alike(&[], preflight).await.status, 200);
}

/// A server of keys: what it says, and how often it was asked.
struct Issuer {
    address: SocketAddr,
    state: Arc<Mutex<(u16, String, usize)>>,
}

impl Issuer {
    async fn start(keys: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new((200, keys, 0)));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let mut state = shared.lock().unwrap();
                    assert_eq!(request.headers()["host"], "issuer.example");
                    assert_eq!(request.uri().path(), "/keys");
                    state.2 += 1;
                    let mut response = Response::new(Full::new(Bytes::from(state.1.clone())));
                    *response.status_mut() = state.0.try_into().unwrap();
                    async move { Ok::<_, Infallible>(response) }
                });
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, state }
    }

    fn say(&self, status: u16, keys: String) {
        let mut state = self.state.lock().unwrap();
        (state.0, state.1) = (status, keys);
    }

    fn asked(&self) -> usize {
        self.state.lock().unwrap().2
    }
}

fn remote(pause: Option<Duration>) -> JwtProvider {
    let http_uri = HttpUri {
        uri: "http://issuer.example/keys".into(),
        timeout: Some(Duration { seconds: 5, nanos: 0 }),
        http_upstream_type: Some(HttpUpstreamType::Cluster("issuer".into())),
    };
    let async_fetch =
        pause.map(|pause| xds_proto::envoy::extensions::filters::http::jwt_authn::v3::JwksAsyncFetch {
            failed_refetch_duration: Some(pause),
            ..Default::default()
        });
    let remote = RemoteJwks { http_uri: Some(http_uri), async_fetch, ..RemoteJwks::default() };
    JwtProvider {
        issuer: "west".into(),
        jwks_source_specifier: Some(JwksSourceSpecifier::RemoteJwks(remote)),
        ..JwtProvider::default()
    }
}

#[tokio::test]
async fn keys_are_asked_for_once_and_again_when_a_token_names_a_new_one() {
    let (old, new) = (Signer::new("old", Algorithm::ES256), Signer::new("new", Algorithm::ES256));
    let issuer = Issuer::start(set(&[&old])).await;
    let control = Control::start().await;
    control.set([named(static_cluster("issuer", &[issuer.address]))]);
    let app = crate::backend::Backend::start("app").await;
    let config = authn(vec![("west", remote(None))], vec![on("/", of("west"))]);
    let (_proxy, at) =
        proxy(&control, &app, &filtered(all_to("in", "app"), vec![http("jwt", &config)])).await;
    assert_eq!((get1(at, "/").await.status.as_u16(), issuer.asked()), (401, 0), "nobody needed them yet");
    let status = async |token: String| send(at, http::Version::HTTP_11, bearing("/", &token)).await;
    let many = (0..10).map(|n| status(old.sign(&claims(json!({"n": n})))));
    for answer in futures::future::join_all(many).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(issuer.asked(), 1);
    // The issuer has a new key. Asking again has its limit: until then the token is not known.
    issuer.say(200, set(&[&old, &new]));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let answer = status(new.sign(&claims(json!({})))).await;
        if answer.status == 200 {
            break;
        }
        assert_eq!(answer.text(), "Jwks doesn't have key to match kid or alg from Jwt");
        assert!(std::time::Instant::now() < deadline, "the new key is never asked for");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(issuer.asked(), 2);
    assert_eq!(status(old.sign(&claims(json!({})))).await.status, 200);
}

#[tokio::test]
async fn an_issuer_that_cannot_be_asked_lets_nobody_in_and_is_asked_ahead_where_wanted() {
    let signer = Signer::new("k", Algorithm::EdDSA);
    let issuer = Issuer::start(set(&[&signer])).await;
    issuer.say(500, String::new());
    let pause = Duration { seconds: 0, nanos: 100_000_000 };
    let config = authn(vec![("west", remote(Some(pause)))], vec![on("/", of("west"))]);
    let manager = filtered(all_to("in", "app"), vec![http("jwt", &config)]);
    let control = Control::start().await;
    control.set([named(static_cluster("issuer", &[issuer.address]))]);
    let app = crate::backend::Backend::start("app").await;
    let (_proxy, at) = proxy(&control, &app, &manager).await;
    let token = signer.sign(&claims(json!({})));
    let answer = send(at, http::Version::HTTP_11, bearing("/", &token)).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (401, "Jwks remote fetch is failed"));
    for nonsense in ["{\"keys\": []}", "nonsense"] {
        issuer.say(200, nonsense.to_owned());
        let answer = send(at, http::Version::HTTP_11, bearing("/", &token)).await;
        assert_eq!(answer.status, 401);
    }
    issuer.say(200, set(&[&signer]));
    let asked = issuer.asked();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while issuer.asked() == asked {
        assert!(std::time::Instant::now() < deadline, "it is not asked again by itself");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    while send(at, http::Version::HTTP_11, bearing("/", &token)).await.status != 200 {
        assert!(std::time::Instant::now() < deadline);
    }
}

#[test]
fn what_is_not_supported_is_refused_by_its_path() {
    let signer = Signer::new("k", Algorithm::EdDSA);
    let keys = set(&[&signer]);
    let refused = |edit: &dyn Fn(&mut JwtAuthentication)| {
        let mut config = authn(vec![("west", provider("west", &keys))], vec![on("/", of("west"))]);
        edit(&mut config);
        let manager = filtered(all_to("in", "app"), vec![http("jwt", &config)]);
        let path = config::listener(listening(&manager)).unwrap_err().path;
        path.rsplit_once("http_filters[0].typed_config.").unwrap().1.to_owned()
    };
    let in_provider = |edit: &dyn Fn(&mut JwtProvider)| {
        refused(&|c| edit(c.providers.get_mut("west").unwrap()))
            .strip_prefix("providers[\"west\"].")
            .unwrap()
            .to_owned()
    };
    let requiring = |requirement: JwtRequirement| refused(&|c| c.rules[0] = on("/", requirement.clone()));
    for (found, expected) in [
        (in_provider(&|p| p.jwks_source_specifier = None), "jwks_source_specifier"),
        (in_provider(&|p| p.jwks_source_specifier = local("{}")), "local_jwks"),
        (
            in_provider(&|p| p.jwks_source_specifier = local("{\"keys\":[{\"kty\":\"oct\",\"k\":\"AA\"}]}")),
            "local_jwks",
        ),
        (
            in_provider(&|p| {
                let specifier = Some(Specifier::Filename("/etc/shadow".into()));
                p.jwks_source_specifier =
                    Some(JwksSourceSpecifier::LocalJwks(DataSource { specifier, ..DataSource::default() }));
            }),
            "local_jwks.filename",
        ),
        (
            in_provider(&|p| {
                p.jwks_source_specifier = Some(JwksSourceSpecifier::RemoteJwks(RemoteJwks::default()))
            }),
            "remote_jwks.http_uri",
        ),
        (in_provider(&|p| p.failed_status_in_metadata = "x".into()), "failed_status_in_metadata"),
        (in_provider(&|p| p.forward_payload_header = "a b".into()), "forward_payload_header"),
        (
            in_provider(&|p| p.claim_to_headers = vec![JwtClaimToHeader::default()]),
            "claim_to_headers[0].claim_name",
        ),
        (refused(&|c| c.filter_state_rules = Some(Default::default())), "filter_state_rules"),
        (refused(&|c| c.rules[0].r#match = None), "rules[0].match"),
        (
            refused(&|c| {
                let half = Some(FractionalPercent { numerator: 50, denominator: 0 });
                c.rules[0].r#match.as_mut().unwrap().runtime_fraction =
                    Some(RuntimeFractionalPercent { default_value: half, ..Default::default() });
            }),
            "rules[0].match.runtime_fraction",
        ),
        (requiring(of("nobody")), "rules[0].requires.provider_name"),
        (requiring(any(vec![missing()])), "rules[0].requires.requires_any.requirements"),
        (
            requiring(needs(RequiresType::ExtractOnlyWithoutValidation(Default::default()))),
            "rules[0].requires.extract_only_without_validation",
        ),
    ] {
        assert_eq!(found, expected);
    }
}
