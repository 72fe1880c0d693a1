//! Which update has which effects.

use proxy::{
    config::Source,
    store::{Effect, Kind, Store},
};
use xds_client::{Resource, Update};
use xds_proto::{
    Name,
    envoy::{
        config::{
            cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
            route::v3::RouteConfiguration,
        },
        extensions::{
            filters::http::ext_authz::v3::{ExtAuthz, ext_authz::Services},
            transport_sockets::tls::v3::Secret,
        },
    },
};

use crate::{
    control::{Named, named},
    resources::*,
};

fn update<M: Name>(added: impl IntoIterator<Item = M>, removed: &[&str]) -> Update
where
    Named: From<M>,
{
    let resource = |wire: M| {
        let (_, name, resource) = named(wire);
        Resource { name, version: "1".to_owned(), resource }
    };
    Update {
        type_url: M::type_url(),
        added: added.into_iter().map(resource).collect(),
        removed: removed.iter().map(|n| (*n).to_owned()).collect(),
        nonce: "1".to_owned(),
        system_version: String::new(),
    }
}

/// The effects in a form that a person can read.
fn tell(effects: Result<Vec<Effect>, String>) -> Vec<String> {
    let source = |source| if source == Source::Ads { "ads" } else { "sds" };
    let one = |effect| match effect {
        Effect::SetCluster(cluster) => format!("cluster {}", cluster.name),
        Effect::SetEndpoints(name, assignment) => format!("endpoints {name}: {}", assignment.endpoints.len()),
        Effect::SetSecret(secret, _) => format!("secret {}", secret.name),
        Effect::SetRoutes(table) => format!("routes {}", table.name),
        Effect::Serve(listener) => format!("serve {}", listener.name),
        Effect::Withdraw(name) => format!("withdraw {name}"),
        Effect::RemoveRoutes(name) => format!("forget routes {name}"),
        Effect::RemoveCluster(name) => format!("forget cluster {name}"),
        Effect::RemoveSecret(secret) => format!("forget secret {}", secret.name),
        Effect::Subscribe { source: s, kind, names } => format!("subscribe {} {kind:?} {names:?}", source(s)),
        Effect::Unsubscribe { source: s, kind, names } => {
            format!("unsubscribe {} {kind:?} {names:?}", source(s))
        }
    };
    effects.unwrap().into_iter().map(one).collect()
}

#[test]
fn a_listener_is_served_when_the_last_thing_that_it_needs_is_there() {
    let west = Ca::new("west.example");
    let mut store = Store::new();
    let mut ads = |update: Update| tell(store.apply(Source::Ads, &update));
    assert_eq!(
        ads(update([over_tls(eds_cluster("pay"), &upstream_tls("a", &[]))], &[])),
        [
            "cluster pay",
            "subscribe ads Endpoints [\"pay\"]",
            "subscribe sds Secret [\"ROOTCA\", \"default\"]"
        ]
    );
    assert_eq!(ads(update([plain_listener("out")], &[])), ["subscribe ads Routes [\"out\"]"]);
    assert_eq!(ads(update([all_to("out", "pay")], &[])), ["routes out"]);
    assert_eq!(ads(update([assignment("pay", &[])], &[])), ["endpoints pay: 0"]);
    let mut sds = |update: Update| tell(store.apply(Source::Sds, &update));
    assert_eq!(sds(update([roots(&[&west])], &[])), ["secret ROOTCA"]);
    assert_eq!(sds(update([west.identity("spiffe://west.example/a")], &[])), ["secret default", "serve out"]);
    assert!(store.complete());
}

#[test]
fn a_listener_waits_for_those_whom_its_filters_ask() {
    let mut store = Store::new();
    let mut ads = |update: Update| tell(store.apply(Source::Ads, &update));
    ads(update([eds_cluster("judge"), static_cluster("app", &[])], &[]));
    let filter = ExtAuthz {
        services: Some(Services::GrpcService(crate::services::grpc("judge", None))),
        ..ExtAuthz::default()
    };
    let manager = crate::filters::filtered(all_to("in", "app"), vec![crate::filters::http("authz", &filter)]);
    assert!(ads(update([crate::filters::listening(&manager)], &[])).is_empty());
    assert_eq!(ads(update([assignment("judge", &[])], &[])), ["endpoints judge: 0", "serve in"]);
}

#[test]
fn the_former_version_is_served_until_the_new_one_is_complete() {
    let mut store = Store::new();
    let mut ads = |update: Update| tell(store.apply(Source::Ads, &update));
    ads(update([static_cluster("app", &[])], &[]));
    ads(update([plain_listener("out")], &[]));
    assert_eq!(ads(update([all_to("out", "app")], &[])), ["routes out", "serve out"]);
    let changed = || listener("out", vec![chain(http_filter(&hcm(rds("new"))))]);
    assert_eq!(ads(update([changed()], &[])), ["subscribe ads Routes [\"new\"]"]);
    // The old routes are still in use, and still followed.
    assert_eq!(ads(update([all_to("out", "other")], &[])), ["routes out"]);
    assert_eq!(ads(update([all_to("new", "app")], &[])), ["routes new", "serve out"]);
    // From the next change on they are not.
    assert_eq!(ads(update([changed()], &[])), ["forget routes out", "unsubscribe ads Routes [\"out\"]"]);
    assert_eq!(
        ads(update::<Listener>([], &["out"])),
        ["withdraw out", "forget routes new", "unsubscribe ads Routes [\"new\"]"]
    );
}

#[test]
fn what_is_gone_is_forgotten_after_everything_else() {
    let mut store = Store::new();
    let mut ads = |update: Update| tell(store.apply(Source::Ads, &update));
    ads(update([eds_cluster("a"), eds_cluster("b")], &[]));
    ads(update([assignment("a", &[]), assignment("b", &[])], &[]));
    assert_eq!(
        ads(update([static_cluster("c", &[])], &["a"])),
        ["cluster c", "endpoints c: 0", "forget cluster a", "unsubscribe ads Endpoints [\"a\"]"]
    );
    assert_eq!(ads(update([eds_cluster("b")], &[])), Vec::<String>::new(), "nothing has changed");
    assert_eq!(ads(update::<ClusterLoadAssignment>([], &["b"])), ["endpoints b: 0"]);
    assert_eq!(ads(update::<RouteConfiguration>([], &["x"])), Vec::<String>::new());
}

#[test]
fn nothing_of_a_refused_update_is_kept() {
    let mut store = Store::new();
    let mut bad = static_cluster("bad", &[]);
    bad.lb_policy = 6;
    let error = store.apply(Source::Ads, &update([static_cluster("good", &[]), bad], &[])).unwrap_err();
    assert!(error.starts_with("resource \"bad\": lb_policy: "), "{error}");
    assert!(store.dump()["clusters"].as_array().unwrap().is_empty());
    let mut misnamed = update([static_cluster("a", &[])], &[]);
    misnamed.added[0].name = "b".to_owned();
    let error = store.apply(Source::Ads, &misnamed).unwrap_err();
    assert_eq!(error, "resource \"b\" is named \"a\" inside");
    let mut wrong = update::<Cluster>([], &[]);
    wrong.type_url = "type.googleapis.com/x".to_owned();
    assert!(store.apply(Source::Ads, &wrong).is_err());
}

#[test]
fn a_key_of_another_certificate_is_refused_and_no_key_is_ever_shown() {
    let west = Ca::new("west.example");
    let mut store = Store::new();
    let mut one = west.identity("spiffe://west.example/a");
    let two: Secret = west.identity("spiffe://west.example/b");
    let key = |secret: &Secret| match &secret.r#type {
        Some(xds_proto::envoy::extensions::transport_sockets::tls::v3::secret::Type::TlsCertificate(c)) => {
            c.private_key.clone()
        }
        _ => None,
    };
    let other = key(&two);
    if let Some(xds_proto::envoy::extensions::transport_sockets::tls::v3::secret::Type::TlsCertificate(c)) =
        &mut one.r#type
    {
        c.private_key = other;
    }
    let error = store.apply(Source::Sds, &update([one], &[])).unwrap_err();
    assert!(error.contains("tls_certificate") && !error.contains("BEGIN"), "{error}");
    store.apply(Source::Sds, &update([two], &[])).unwrap();
    let dump = store.dump().to_string();
    assert!(dump.contains("spiffe://west.example/b") && !dump.contains("PRIVATE"), "{dump}");
}

#[test]
fn every_type_url_is_known_both_ways() {
    for kind in Kind::ALL {
        assert_eq!(Kind::of(&kind.type_url()), Some(kind));
    }
}
