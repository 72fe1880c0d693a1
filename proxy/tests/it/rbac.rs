//! Who may connect and who may ask: RBAC filters at work.

use std::net::SocketAddr;

use proxy::config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};
use xds_proto::{
    envoy::{
        config::{
            core::v3::CidrRange,
            listener::v3::{FilterChainMatch, Listener},
            rbac::v3::{
                Permission, Policy, Principal, Rbac,
                permission::Rule,
                principal::{Authenticated, Identifier, Set},
                rbac::Action,
            },
        },
        extensions::filters::{
            http::rbac::v3::Rbac as HttpRbac,
            network::{
                http_connection_manager::v3::{HttpFilter, http_filter},
                rbac::v3::Rbac as NetworkRbac,
            },
        },
        r#type::{
            matcher::v3::{PathMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern},
            v3::Int32Range,
        },
    },
    google::protobuf::{Duration, UInt32Value},
    to_any,
};

use crate::{
    backend::Backend,
    client::{get, get1, raw, send},
    control::{Control, named},
    envoy::Pair,
    filters::{filtered, http as http_of},
    mtls::{SNI, Side, WEB, outbound},
    resources::*,
};

const OTHER: &str = "spiffe://west.example/ns/shop/sa/other";

fn text(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

fn caller(id: &str) -> Principal {
    let principal_name = Some(text(MatchPattern::Exact(id.to_owned())));
    Principal { identifier: Some(Identifier::Authenticated(Authenticated { principal_name })) }
}

fn from(address_prefix: &str, bits: u32) -> Principal {
    let range = CidrRange {
        address_prefix: address_prefix.to_owned(),
        prefix_len: Some(UInt32Value { value: bits }),
    };
    Principal { identifier: Some(Identifier::DirectRemoteIp(range)) }
}

fn anything() -> Permission {
    Permission { rule: Some(Rule::Any(true)) }
}

fn rules(action: Action, name: &str, permission: Permission, principals: Vec<Principal>) -> Rbac {
    let policy = Policy { permissions: vec![permission], principals, ..Policy::default() };
    Rbac { action: action as i32, policies: [(name.to_owned(), policy)].into(), ..Rbac::default() }
}

fn allow(ids: &[&str]) -> Rbac {
    rules(Action::Allow, "callers", anything(), ids.iter().map(|id| caller(id)).collect())
}

fn guarded(mut listener: Listener, rules: Rbac) -> Listener {
    let rbac =
        NetworkRbac { stat_prefix: "default-deny".to_owned(), rules: Some(rules), ..NetworkRbac::default() };
    let filters = &mut listener.filter_chains[0].filters;
    filters.insert(0, filter("envoy.filters.network.rbac", &rbac));
    listener
}

fn mutual(filter: xds_proto::envoy::config::listener::v3::Filter, rules: Rbac) -> Listener {
    guarded(listener("in", vec![with_tls(chain(filter), &[SNI], &downstream_tls(&[]))]), rules)
}

async fn status(side: &Side, path: &str) -> u16 {
    get1(side.proxy.listener("out").await.unwrap(), path).await.status.as_u16()
}

async fn page(side: &Side) -> String {
    get1(side.proxy.admin_address().unwrap(), "/stats/prometheus").await.text().to_owned()
}

#[tokio::test]
async fn who_is_not_permitted_is_cut_off_and_counted_and_a_change_concerns_nobody_else() {
    let ca = Ca::new("west.example");
    let pay_id = "spiffe://west.example/ns/shop/sa/pay";
    let app = Backend::start("app").await;
    let http = || http_filter(&telling_the_peer(hcm(inline(all_to("in", "app")))));
    let control = Control::start().await;
    control.set([
        named(mutual(http(), allow(&[WEB, OTHER]))),
        named(static_cluster("app", &[app.address])),
        named(ca.identity(pay_id)),
        named(roots(&[&ca])),
    ]);
    let server = Side { proxy: control.proxy().await, control };
    let at = server.proxy.listener("in").await.unwrap();
    let web = outbound(at, &ca, WEB, &[&ca], &[pay_id]).await;
    let other = outbound(at, &ca, OTHER, &[&ca], &[pay_id]).await;
    assert_eq!((status(&web, "/").await, status(&other, "/").await), (200, 200));
    let accepted = |page: &str| {
        let line = page.lines().find(|l| l.contains("downstream_connections_total{listener=\"in\"")).unwrap();
        line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
    };
    assert_eq!(accepted(&page(&server).await), 2);

    // One caller less: its connection is closed, and a new one is refused.
    server.control.set([named(mutual(http(), allow(&[WEB])))]);
    while status(&other, "/").await == 200 {}
    assert_eq!(status(&other, "/").await, 503);
    let requests = app.requests();
    assert_eq!(status(&web, "/").await, 200);
    assert_eq!(app.requests(), requests + 1);
    let denied = page(&server).await;
    let line = "isthmus_proxy_rbac_denied_total{listener=\"in\",policy=\"default-deny\"}";
    assert!(denied.contains(line), "{denied}");
    let pool = "upstream_connections_total{cluster=\"pay\"} 1";
    let kept = page(&web).await;
    assert!(kept.contains(pool), "the connection of the other is still its first:\n{kept}");

    // And back again.
    server.control.set([named(mutual(http(), allow(&[OTHER])))]);
    while status(&web, "/").await == 200 {}
    while status(&other, "/").await != 200 {}
}

#[tokio::test]
async fn bytes_without_a_certificate_are_judged_by_their_address() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    let plain = |rules| guarded(listener("in", vec![chain(tcp_filter("app"))]), rules);
    let here = rules(Action::Allow, "here", anything(), vec![from("127.0.0.0", 8)]);
    control.set([named(plain(here)), named(static_cluster("app", &[app.address]))]);
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    assert_eq!(get1(at, "/").await.status, 200);
    let mut progress = proxy.engine().progress();
    let nobody = Rbac::default();
    for denying in [
        nobody,
        rules(Action::Deny, "here", anything(), vec![from("127.0.0.0", 8)]),
        rules(Action::Allow, "web", anything(), vec![caller(WEB)]),
    ] {
        let before = progress.borrow_and_update().updates;
        control.set([named(plain(denying))]);
        progress.wait_for(|p| p.updates > before).await.unwrap();
        assert_eq!(raw(at, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await, "");
    }
}

#[tokio::test]
async fn a_request_that_is_not_permitted_is_answered_with_403_in_envoys_words() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    let path = PathMatcher {
        rule: Some(path_matcher::Rule::Path(text(MatchPattern::Prefix("/public".to_owned())))),
    };
    let public = Permission { rule: Some(Rule::UrlPath(path)) };
    let anybody = Principal { identifier: Some(Identifier::Any(true)) };
    let rbac = HttpRbac {
        rules: Some(rules(Action::Allow, "public", public, vec![anybody])),
        rules_stat_prefix: "http".to_owned(),
        ..HttpRbac::default()
    };
    let mut manager = hcm(inline(all_to("in", "app")));
    manager.http_filters.insert(
        0,
        HttpFilter {
            name: "envoy.filters.http.rbac".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(to_any(&rbac))),
            ..HttpFilter::default()
        },
    );
    let listener = listener("in", vec![chain(http_filter(&manager))]);
    control.set([named(listener), named(static_cluster("app", &[app.address]))]);
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    assert_eq!(get1(at, "/public/a?b=/private").await.status, 200);
    let denied = get1(at, "/private?x=/public").await;
    assert_eq!((denied.status.as_u16(), denied.text()), (403, "RBAC: access denied"));
    let mut grpc = get("/private");
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let denied = send(at, http::Version::HTTP_2, grpc).await;
    assert_eq!((denied.status.as_u16(), denied.headers["grpc-status"].to_str().unwrap()), (200, "7"));
    assert_eq!(app.requests(), 1);
}

/// Says again what it is told.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// A tunnel through the proxy, from an address of this machine.
struct Tunnel(TcpStream);

impl Tunnel {
    async fn open(at: SocketAddr, from: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        let mut tunnel = Self(socket.connect(at).await.unwrap());
        assert!(tunnel.works().await, "{from}");
        tunnel
    }

    async fn works(&mut self) -> bool {
        self.0.write_all(b"a").await.is_ok() && self.0.read_u8().await.is_ok_and(|byte| byte == b'a')
    }

    /// Waits until the other end has closed it.
    async fn closed(mut self) {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "nothing more came");
    }
}

/// Only whoever connects from one of these addresses.
fn only(addresses: &[&str]) -> Rbac {
    let principals = addresses.iter().map(|address| from(address, 32));
    rules(Action::Allow, "here", anything(), principals.chain([caller(WEB)]).collect())
}

#[tokio::test]
async fn a_tunnel_is_closed_when_its_caller_is_not_permitted_any_more() {
    let address = echo().await;
    let plain = |from: &[&str]| guarded(listener("in", vec![chain(tcp_filter("app"))]), only(from));
    let control = Control::start().await;
    control.set([named(plain(&["127.0.0.1", "127.0.0.2"])), named(static_cluster("app", &[address]))]);
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    let (one, mut two) = (Tunnel::open(at, "127.0.0.1").await, Tunnel::open(at, "127.0.0.2").await);
    control.set([named(plain(&["127.0.0.2"]))]);
    one.closed().await;
    assert!(two.works().await, "the other did not notice");
}

#[tokio::test]
async fn rules_that_come_with_another_chain_count_for_connections_of_the_one_before() {
    let address = echo().await;
    // Another cluster makes it another chain: connections of the former one are to finish, in their own time.
    let plain =
        |cluster: &str, from: &[&str]| guarded(listener("in", vec![chain(tcp_filter(cluster))]), only(from));
    let control = Control::start().await;
    let clusters = ["a", "b", "c"].map(|name| named(static_cluster(name, &[address])));
    control.set(clusters);
    control.set([named(plain("a", &["127.0.0.1", "127.0.0.2", "127.0.0.3"]))]);
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    let one = Tunnel::open(at, "127.0.0.1").await;
    let two = Tunnel::open(at, "127.0.0.2").await;
    let mut three = Tunnel::open(at, "127.0.0.3").await;
    control.set([named(plain("b", &["127.0.0.2", "127.0.0.3"]))]);
    one.closed().await;
    assert!(three.works().await, "who is permitted still finishes in peace");
    // Two versions later as well, whether the newest chain is another one or only has other rules.
    control.set([named(plain("c", &["127.0.0.2", "127.0.0.3"]))]);
    control.set([named(plain("c", &["127.0.0.3"]))]);
    two.closed().await;
    assert!(three.works().await);
}

#[tokio::test]
async fn a_guarded_chain_that_is_gone_permits_nobody_and_one_without_rules_finishes() {
    let address = echo().await;
    let raw = |wire: Listener| {
        let mut wire = wire;
        let matches = FilterChainMatch { transport_protocol: "raw_buffer".to_owned(), ..Default::default() };
        wire.filter_chains[0].filter_chain_match = Some(matches);
        wire
    };
    let open = |name: &str| listener(name, vec![chain(tcp_filter("app"))]);
    let control = Control::start().await;
    control.set([
        named(guarded(open("in"), only(&["127.0.0.1"]))),
        named(open("free")),
        named(static_cluster("app", &[address])),
    ]);
    let proxy = control.proxy().await;
    let (at, free) = (proxy.listener("in").await.unwrap(), proxy.listener("free").await.unwrap());
    let standing = Tunnel::open(at, "127.0.0.1").await;
    let mut unguarded = Tunnel::open(free, "127.0.0.1").await;
    control.set([named(raw(open("free"))), named(raw(guarded(open("in"), only(&["127.0.0.1"]))))]);
    standing.closed().await;
    Tunnel::open(at, "127.0.0.1").await;
    assert!(unguarded.works().await);
}

#[tokio::test]
async fn a_default_chain_and_one_that_serves_alike_keep_rules_of_their_own() {
    let address = echo().await;
    let both = |from: &[&str]| {
        let mut wire = guarded(listener("in", vec![chain(tcp_filter("app"))]), only(from));
        // Whoever matches no chain: nobody does, and nobody may.
        let nobody = guarded(listener("in", vec![chain(tcp_filter("app"))]), only(&[]));
        wire.default_filter_chain = nobody.filter_chains.into_iter().next();
        wire
    };
    let control = Control::start().await;
    control.set([named(both(&["127.0.0.1"])), named(static_cluster("app", &[address]))]);
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    let mut standing = Tunnel::open(at, "127.0.0.1").await;
    let mut progress = proxy.engine().progress();
    let before = progress.borrow_and_update().updates;
    control.set([named(both(&["127.0.0.1", "127.0.0.2"]))]);
    progress.wait_for(|p| p.updates > before).await.unwrap();
    assert!(standing.works().await, "it is not judged by the rules of the default chain");
    Tunnel::open(at, "127.0.0.2").await;
}

fn refused(edit: impl FnOnce(&mut NetworkRbac)) -> String {
    let mut rbac = NetworkRbac {
        stat_prefix: "x".to_owned(),
        rules: Some(rules(Action::Allow, "a", anything(), vec![caller(WEB)])),
        ..NetworkRbac::default()
    };
    edit(&mut rbac);
    let mut wire = plain_listener("in");
    wire.filter_chains[0].filters.insert(0, filter("rbac", &rbac));
    let path = config::listener(wire).unwrap_err().path;
    path.strip_prefix("filter_chains[0].filters[0].typed_config.").unwrap_or(&path).to_owned()
}

fn in_policy(edit: impl FnOnce(&mut Policy)) -> String {
    refused(|rbac| edit(rbac.rules.as_mut().unwrap().policies.get_mut("a").unwrap()))
}

#[test]
#[allow(deprecated)]
fn what_is_not_supported_is_refused_by_its_path() {
    let permission = |rule| in_policy(|p| p.permissions[0].rule = Some(rule));
    let principal = |id| in_policy(|p| p.principals[0].identifier = Some(id));
    let range = |address: &str, bits| CidrRange {
        address_prefix: address.to_owned(),
        prefix_len: Some(UInt32Value { value: bits }),
    };
    let a = "rules.policies[\"a\"]";
    let (what, who) = (format!("{a}.permissions[0]"), format!("{a}.principals[0]"));
    for (found, expected) in [
        (refused(|r| r.matcher = Some(Default::default())), "matcher".to_owned()),
        (refused(|r| r.delay_deny = Some(Duration::default())), "delay_deny".to_owned()),
        (refused(|r| r.rules.as_mut().unwrap().action = 3), "rules.action".to_owned()),
        (
            refused(|r| r.shadow_rules = Some(Rbac { action: 9, ..Rbac::default() })),
            "shadow_rules.action".to_owned(),
        ),
        (in_policy(|p| p.condition = Some(Default::default())), format!("{a}.condition")),
        (in_policy(|p| p.permissions.clear()), format!("{a}.permissions")),
        (in_policy(|p| p.principals.clear()), format!("{a}.principals")),
        (in_policy(|p| p.principals[0].identifier = None), who.clone()),
        (permission(Rule::Any(false)), format!("{what}.any")),
        (permission(Rule::DestinationPort(65_536)), format!("{what}.destination_port")),
        (
            permission(Rule::DestinationPortRange(Int32Range { start: 5, end: 5 })),
            format!("{what}.destination_port_range"),
        ),
        (permission(Rule::Matcher(Default::default())), format!("{what}.matcher")),
        (permission(Rule::UrlPath(PathMatcher::default())), format!("{what}.url_path")),
        (permission(Rule::AndRules(Default::default())), format!("{what}.and_rules.rules")),
        (principal(Identifier::Header(Default::default())), format!("{who}.header")),
        (principal(Identifier::FilterState(Default::default())), format!("{who}.filter_state.key")),
        (principal(Identifier::Metadata(Default::default())), format!("{who}.metadata")),
        (principal(Identifier::Custom(Default::default())), format!("{who}.custom.typed_config")),
        (principal(Identifier::OrIds(Set::default())), format!("{who}.or_ids.ids")),
        (
            principal(Identifier::DirectRemoteIp(range("10.0.0", 8))),
            format!("{who}.direct_remote_ip.address_prefix"),
        ),
        (principal(Identifier::RemoteIp(range("10.0.0.0", 33))), format!("{who}.remote_ip.prefix_len")),
        (principal(Identifier::NotId(Box::new(Principal { identifier: None }))), format!("{who}.not_id")),
    ] {
        assert_eq!(found, expected);
    }
}

#[test]
fn filters_that_decide_stand_before_the_one_that_serves() {
    let rbac = NetworkRbac { stat_prefix: "x".to_owned(), ..NetworkRbac::default() };
    let rbac = || filter("rbac", &rbac);
    let with = |filters| {
        let mut wire = plain_listener("in");
        wire.filter_chains[0].filters = filters;
        config::listener(wire).map(|l| l.chains[0].access.len()).map_err(|e| e.path)
    };
    assert_eq!(with(vec![rbac(), rbac(), tcp_filter("app")]), Ok(2));
    assert_eq!(with(vec![tcp_filter("app"), rbac()]), Err("filter_chains[0].filters[1]".to_owned()));
    assert_eq!(with(vec![rbac()]), Err("filter_chains[0].filters[0]".to_owned()));
}

#[tokio::test]
async fn the_client_is_who_the_connection_manager_believes_and_the_peer_who_connects() {
    let range = |address: &str| CidrRange {
        address_prefix: address.to_owned(),
        prefix_len: Some(UInt32Value { value: 8 }),
    };
    let guarded = |use_remote_address, identifier| {
        let who = Principal { identifier: Some(identifier) };
        let rbac =
            HttpRbac { rules: Some(rules(Action::Allow, "a", anything(), vec![who])), ..HttpRbac::default() };
        let mut manager = filtered(all_to("in", "app"), vec![http_of("rbac", &rbac)]);
        manager.use_remote_address =
            Some(xds_proto::google::protobuf::BoolValue { value: use_remote_address });
        manager
    };
    for (manager, forwarded, status) in [
        (guarded(false, Identifier::RemoteIp(range("10.0.0.0"))), "10.1.2.3", 200),
        (guarded(false, Identifier::RemoteIp(range("10.0.0.0"))), "10.1.2.3, 11.0.0.1", 403),
        (guarded(false, Identifier::RemoteIp(range("127.0.0.0"))), "10.1.2.3", 403),
        (guarded(true, Identifier::RemoteIp(range("10.0.0.0"))), "10.1.2.3", 403),
        (guarded(true, Identifier::RemoteIp(range("127.0.0.0"))), "10.1.2.3", 200),
        (guarded(false, Identifier::DirectRemoteIp(range("127.0.0.0"))), "10.1.2.3", 200),
    ] {
        let pair = Pair::start(&manager, []).await;
        let request = || {
            let mut request = get("/");
            request.headers_mut().insert("x-forwarded-for", forwarded.parse().unwrap());
            request
        };
        assert_eq!(pair.alike(&[], request).await.status, status, "{forwarded}");
    }
}

/// What a rule denies by its path, and what is written otherwise but means the same.
#[tokio::test]
async fn a_path_that_is_denied_is_denied_however_it_is_written() {
    let path = |pattern| {
        let path = PathMatcher { rule: Some(path_matcher::Rule::Path(text(pattern))) };
        Permission { rule: Some(Rule::UrlPath(path)) }
    };
    let admin = Permission {
        rule: Some(Rule::OrRules(xds_proto::envoy::config::rbac::v3::permission::Set {
            rules: vec![
                path(MatchPattern::Exact("/admin".to_owned())),
                path(MatchPattern::Prefix("/admin/".to_owned())),
            ],
        })),
    };
    let anybody = Principal { identifier: Some(Identifier::Any(true)) };
    let rbac =
        HttpRbac { rules: Some(rules(Action::Deny, "admin", admin, vec![anybody])), ..HttpRbac::default() };
    let mut manager = filtered(all_to("in", "app"), vec![http_of("rbac", &rbac)]);
    // As Istio sets it, with the path normalisation DECODE_AND_MERGE_SLASHES.
    manager.normalize_path = Some(xds_proto::google::protobuf::BoolValue { value: true });
    manager.merge_slashes = true;
    manager.path_with_escaped_slashes_action = 4;
    let pair = Pair::start(&manager, []).await;
    for (path, status) in [
        ("/admin", 403),
        ("/admin?x=1", 403),
        ("/admin/users", 403),
        ("/%61dmin", 403),
        ("/%61%64min/users", 403),
        ("//admin", 403),
        ("///admin//users", 403),
        ("/x/../admin", 403),
        ("/x/%2e%2e/admin", 403),
        ("/./admin", 403),
        ("/%2e/admin", 403),
        ("/x\\..\\admin", 403),
        ("/admin%2fusers", 403),
        ("/admin%5cusers", 403),
        ("/x%2f..%2fadmin", 403),
        ("/admin/x/..", 403),
        // Other resources, which an application must not take for the same.
        ("/admin;x", 200),
        ("/admin/../public", 200),
        ("/admin%2f..", 200),
        ("/ADMIN", 200),
        ("/administration", 200),
        ("/%2561dmin", 200),
        ("/public?/admin", 200),
    ] {
        let told = |at| crate::client::raw_status(at, path);
        let ours = told(pair.ours).await;
        if let Some(at) = pair.envoy {
            assert_eq!(ours, told(at).await, "{path}");
        }
        assert_eq!(ours, status, "{path}");
    }
}
