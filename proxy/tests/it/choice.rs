//! What routes say about the choice of an endpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::atomic::Ordering,
};

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Full;
use proxy::Proxy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use xds_proto::{
    Name,
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, LoadBalancingPolicy,
                circuit_breakers::Thresholds,
                cluster::{LbSubsetConfig, lb_subset_config::LbSubsetSelector},
                load_balancing_policy::Policy,
            },
            core::v3::{Metadata, TypedExtensionConfig},
            endpoint::v3::{
                ClusterLoadAssignment,
                cluster_load_assignment::{self, policy::DropOverload},
            },
            route::v3::{
                RouteAction,
                route_action::{
                    HashPolicy,
                    hash_policy::{Cookie, Header, PolicySpecifier},
                },
            },
        },
        extensions::filters::network::http_connection_manager::v3::http_connection_manager::UpgradeConfig,
        extensions::load_balancing_policies::{
            maglev::v3::Maglev,
            override_host::v3::{OverrideHost, override_host::OverrideHostSource},
            round_robin::v3::RoundRobin,
        },
        r#type::v3::FractionalPercent,
    },
    google::protobuf::{Duration, Struct, UInt32Value, Value, value::Kind},
    to_any,
};

use crate::{
    backend::Backend,
    client::{Answer, get1, send},
    control::{Control, named},
    origin::{Does, Origin},
    resources::*,
};

async fn ask(at: SocketAddr, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get("/").header("host", "pay.shop");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(at, Version::HTTP_11, request.body(Full::<Bytes>::default()).unwrap()).await
}

fn action(edit: impl FnOnce(&mut RouteAction)) -> RouteAction {
    let mut action = cluster_action("app");
    edit(&mut action);
    action
}

async fn serving(control: &Control, action: RouteAction, cluster: Cluster) -> (Proxy, SocketAddr) {
    control.set([
        named(plain_listener("out")),
        named(routes("out", vec![(&["*"], vec![to(prefix("/"), action)])])),
        named(cluster),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    (proxy, at)
}

fn hashing(of: PolicySpecifier) -> HashPolicy {
    HashPolicy { terminal: false, policy_specifier: Some(of) }
}

fn of_header(name: &str) -> HashPolicy {
    hashing(PolicySpecifier::Header(Header { header_name: name.to_owned(), regex_rewrite: None }))
}

fn extension<M: Name>(policy: &M) -> LoadBalancingPolicy {
    let typed_config = Some(to_any(policy));
    let config = TypedExtensionConfig { name: "policy".to_owned(), typed_config };
    LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(config) }] }
}

#[tokio::test]
async fn equal_headers_go_to_one_endpoint_and_move_only_when_it_goes() {
    let backends = [
        Backend::start("a").await,
        Backend::start("b").await,
        Backend::start("c").await,
        Backend::start("d").await,
    ];
    let addresses = backends.each_ref().map(|backend| (backend.address, 0));
    for maglev in [false, true] {
        let control = Control::start().await;
        let mut cluster = eds_cluster("app");
        if maglev {
            cluster.load_balancing_policy = Some(extension(&Maglev::default()));
        } else {
            cluster.lb_policy = 2;
        }
        control.set([named(assignment("app", &addresses))]);
        let action = action(|a| a.hash_policy = vec![of_header("x-user")]);
        let (_proxy, at) = serving(&control, action, cluster).await;
        let mut homes = BTreeMap::new();
        for user in 0..60 {
            let user = user.to_string();
            let home = ask(at, &[("x-user", &user)]).await.backend().to_owned();
            assert_eq!(ask(at, &[("x-user", &user)]).await.backend(), home);
            homes.insert(user, home);
        }
        assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 4, "{homes:?}");
        control.set([named(assignment("app", &addresses[..3]))]);
        let orphan = homes.iter().find(|(_, home)| *home == "d").unwrap().0;
        while ask(at, &[("x-user", orphan)]).await.backend() == "d" {}
        let mut moved = 0;
        for (user, home) in homes.iter().filter(|(_, home)| *home != "d") {
            moved += usize::from(ask(at, &[("x-user", user)]).await.backend() != home);
        }
        assert!(moved <= 10, "{moved} users of endpoints that are still there have moved");
    }
}

#[tokio::test]
async fn a_client_stays_where_its_cookie_says_and_gets_one_if_it_has_none() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let cookie = Cookie {
        name: "home".to_owned(),
        ttl: Some(Duration { seconds: 60, nanos: 0 }),
        path: "/".to_owned(),
        ..Cookie::default()
    };
    let control = Control::start().await;
    let mut cluster = static_cluster("app", &[one.address, two.address]);
    cluster.lb_policy = 5;
    let action = action(|a| a.hash_policy = vec![hashing(PolicySpecifier::Cookie(cookie))]);
    let (_proxy, at) = serving(&control, action, cluster).await;
    let mut seen = BTreeSet::new();
    // Each connection makes its own cookie: sooner or later both endpoints are somebody's home.
    while seen.len() < 2 {
        let first = ask(at, &[]).await;
        let set = first.headers["set-cookie"].to_str().unwrap().to_owned();
        assert!(set.ends_with("; Max-Age=60; Path=/; HttpOnly"), "{set}");
        let pair = set.split(';').next().unwrap();
        for _ in 0..5 {
            let again = ask(at, &[("cookie", pair)]).await;
            assert_eq!(again.backend(), first.backend());
            assert!(!again.headers.contains_key("set-cookie"));
        }
        seen.insert(first.backend().to_owned());
    }
}

fn metadata(namespace: &str, pairs: &[(&str, &str)]) -> Option<Metadata> {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = pairs.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
    Some(Metadata {
        filter_metadata: [(namespace.to_owned(), Struct { fields })].into(),
        ..Metadata::default()
    })
}

#[tokio::test]
async fn a_route_goes_to_the_endpoints_whose_metadata_it_names() {
    let (blue, green) = (Backend::start("blue").await, Backend::start("green").await);
    let mut endpoints = assignment("app", &[(blue.address, 0), (green.address, 0)]);
    for (locality, version) in endpoints.endpoints.iter_mut().zip(["v1", "v2"]) {
        locality.lb_endpoints[0].metadata = metadata("envoy.lb", &[("version", version)]);
    }
    let control = Control::start().await;
    control.set([named(endpoints)]);
    let mut cluster = eds_cluster("app");
    cluster.lb_subset_config = Some(LbSubsetConfig {
        subset_selectors: vec![LbSubsetSelector {
            keys: vec!["version".to_owned()],
            ..LbSubsetSelector::default()
        }],
        ..LbSubsetConfig::default()
    });
    let to_version = |path: &str, version: &str| {
        to(prefix(path), action(|a| a.metadata_match = metadata("envoy.lb", &[("version", version)])))
    };
    control.set([
        named(plain_listener("out")),
        named(routes(
            "out",
            vec![(
                &["*"],
                vec![
                    to_version("/one", "v1"),
                    to_version("/two", "v2"),
                    to_version("/three", "v3"),
                    to(prefix("/"), cluster_action("app")),
                ],
            )],
        )),
        named(cluster),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    for _ in 0..10 {
        assert_eq!(get1(at, "/one").await.backend(), "blue");
        assert_eq!(get1(at, "/two").await.backend(), "green");
    }
    for path in ["/three", "/"] {
        let answer = get1(at, path).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (503, "no healthy upstream"), "{path}");
    }
}

#[tokio::test]
async fn a_route_of_high_priority_has_limits_of_its_own() {
    let app = Backend::start("app").await;
    let none = |priority| Thresholds {
        priority,
        max_requests: Some(UInt32Value { value: u32::from(priority == 1) }),
        ..Thresholds::default()
    };
    let mut cluster = static_cluster("app", &[app.address]);
    cluster.circuit_breakers =
        Some(CircuitBreakers { thresholds: vec![none(0), none(1)], ..CircuitBreakers::default() });
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(routes(
            "out",
            vec![(
                &["*"],
                vec![to(prefix("/high"), action(|a| a.priority = 1)), to(prefix("/"), cluster_action("app"))],
            )],
        )),
        named(cluster),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    assert_eq!(get1(at, "/high").await.status, 200);
    let refused = get1(at, "/").await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.headers["x-envoy-overloaded"], "true");
}

#[tokio::test]
async fn a_part_of_the_requests_is_turned_away_where_the_control_plane_wants_it() {
    let app = Backend::start("app").await;
    let dropping = |numerator| ClusterLoadAssignment {
        policy: Some(cluster_load_assignment::Policy {
            drop_overloads: vec![DropOverload {
                category: "throttle".to_owned(),
                drop_percentage: Some(FractionalPercent { numerator, denominator: 0 }),
            }],
            ..cluster_load_assignment::Policy::default()
        }),
        ..assignment("app", &[(app.address, 0)])
    };
    let control = Control::start().await;
    control.set([named(dropping(100))]);
    let (proxy, at) = serving(&control, cluster_action("app"), eds_cluster("app")).await;
    let answer = get1(at, "/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "drop overload"));
    assert_eq!(answer.headers["x-envoy-drop-overload"], "true");
    assert_eq!(app.requests(), 0);
    assert!(proxy.shared().cluster("app").unwrap().stats.dropped.load(Ordering::SeqCst) > 0);
    control.set([named(dropping(0))]);
    while get1(at, "/").await.status != 200 {}
}

#[tokio::test]
async fn a_header_names_the_endpoint_where_the_cluster_believes_it() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let mut cluster = static_cluster("app", &[one.address, two.address]);
    cluster.load_balancing_policy = Some(extension(&OverrideHost {
        override_host_sources: vec![OverrideHostSource {
            header: "x-endpoint".to_owned(),
            ..OverrideHostSource::default()
        }],
        fallback_policy: Some(extension(&RoundRobin::default())),
        ..OverrideHost::default()
    }));
    let control = Control::start().await;
    let (_proxy, at) = serving(&control, cluster_action("app"), cluster).await;
    let wanted = two.address.to_string();
    for _ in 0..6 {
        assert_eq!(ask(at, &[("x-endpoint", &wanted)]).await.backend(), "two");
    }
    let strangers = ["127.0.0.1:1", "nonsense"];
    let mut seen = BTreeSet::new();
    for stranger in strangers.iter().cycle().take(8) {
        seen.insert(ask(at, &[("x-endpoint", stranger)]).await.backend().to_owned());
    }
    assert_eq!(seen.len(), 2, "an address that is none of its endpoints is not asked");
}

#[tokio::test]
async fn an_upgrade_goes_by_its_route_as_any_request_does() {
    let app = Origin::start(|_| {
        Does::Switches("HTTP/1.1 101 S\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
    })
    .await;
    let closed = |priority| Thresholds {
        priority,
        max_requests: Some(UInt32Value { value: u32::from(priority == 1) }),
        ..Thresholds::default()
    };
    let mut cluster = static_cluster("app", &[app.address]);
    cluster.circuit_breakers =
        Some(CircuitBreakers { thresholds: vec![closed(0), closed(1)], ..CircuitBreakers::default() });
    let mut manager = hcm(rds("out"));
    manager
        .upgrade_configs
        .push(UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() });
    let control = Control::start().await;
    control.set([
        named(listener("out", vec![chain(http_filter(&manager))])),
        named(routes(
            "out",
            vec![(
                &["*"],
                vec![to(prefix("/high"), action(|a| a.priority = 1)), to(prefix("/"), cluster_action("app"))],
            )],
        )),
        named(cluster),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    for (path, expected) in [("/high", "HTTP/1.1 101 "), ("/low", "HTTP/1.1 503 ")] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let asking =
            format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
        stream.write_all(asking.as_bytes()).await.unwrap();
        let mut status = vec![0; expected.len()];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&status), expected, "{path}");
    }
}
