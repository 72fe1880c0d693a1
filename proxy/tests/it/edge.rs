//! What is found out about a connection before a chain is chosen, and in whose name endpoints are asked.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rustls::{
    DigitallySignedStruct, ProtocolVersion, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};
use xds_proto::{
    Name,
    envoy::{
        config::{
            core::v3::{CidrRange, SocketOption, socket_option},
            listener::v3::{FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter},
        },
        extensions::filters::listener::{
            http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, original_src::v3::OriginalSrc,
            proxy_protocol::v3::ProxyProtocol, tls_inspector::v3::TlsInspector,
        },
        extensions::transport_sockets::tls::v3::TlsParameters,
    },
    google::protobuf::{BoolValue, UInt32Value},
    to_any,
};

use crate::{
    backend::Backend,
    client::raw,
    control::{Control, named},
    resources::*,
};

const GET: &str = "GET / HTTP/1.1\r\nhost: pay.shop\r\nconnection: close\r\n\r\n";

fn filter_of<M: Name>(config: &M) -> ListenerFilter {
    ListenerFilter {
        name: M::full_name(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(to_any(config))),
        ..ListenerFilter::default()
    }
}

fn with(mut listener: Listener, filters: Vec<ListenerFilter>) -> Listener {
    listener.listener_filters = filters;
    listener
}

fn to_cluster(name: &str) -> FilterChain {
    chain(http_filter(&hcm(inline(all_to(name, name)))))
}

fn matching(mut chain: FilterChain, matches: FilterChainMatch) -> FilterChain {
    chain.filter_chain_match = Some(matches);
    chain
}

fn block(ip: &str, length: u32) -> Vec<CidrRange> {
    vec![CidrRange { address_prefix: ip.to_owned(), prefix_len: Some(UInt32Value { value: length }) }]
}

/// `named` serves who comes from 192.0.2.0/24, `other` everybody else.
async fn by_source(control: &Control, filter: ProxyProtocol) -> (Backend, Backend) {
    let (named_app, other) = (Backend::start("named").await, Backend::start("other").await);
    let from = FilterChainMatch { source_prefix_ranges: block("192.0.2.0", 24), ..Default::default() };
    let chains = vec![matching(to_cluster("named"), from), to_cluster("other")];
    control.set([
        named(with(listener("in", chains), vec![filter_of(&filter)])),
        named(static_cluster("named", &[named_app.address])),
        named(static_cluster("other", &[other.address])),
    ]);
    (named_app, other)
}

#[tokio::test]
async fn the_client_is_whom_the_proxy_header_names() {
    let control = Control::start().await;
    let (named_app, other) = by_source(&control, ProxyProtocol::default()).await;
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    let version2 = |source: [u8; 4]| {
        let head = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c";
        [&head[..], &source, &[198, 51, 100, 1, 0x20, 0, 0, 80], GET.as_bytes()].concat()
    };
    let line = |source: &str| format!("PROXY TCP4 {source} 198.51.100.1 4000 80\r\n{GET}").into_bytes();
    for (bytes, app) in [
        (line("192.0.2.7"), "named"),
        (line("203.0.113.7"), "other"),
        (version2([192, 0, 2, 7]), "named"),
        (version2([203, 0, 113, 7]), "other"),
        (format!("PROXY UNKNOWN\r\n{GET}").into_bytes(), "other"),
    ] {
        let answer = raw(at, &bytes).await;
        assert!(answer.contains(&format!("x-backend: {app}")), "{answer}");
    }
    // However it is cut.
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in version2([192, 0, 2, 7]) {
        stream.write_all(&[byte]).await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("x-backend: named"), "{answer}");
    let before = (named_app.requests(), other.requests());
    // Without one, and with one that is none.
    assert_eq!(raw(at, GET.as_bytes()).await, "");
    assert_eq!(raw(at, format!("PROXY TCP4 a b 1 2\r\n{GET}").as_bytes()).await, "");
    assert_eq!((named_app.requests(), other.requests()), before);
}

#[tokio::test]
async fn a_proxy_header_may_be_optional_and_a_version_forbidden() {
    let control = Control::start().await;
    let filter = ProxyProtocol {
        allow_requests_without_proxy_protocol: true,
        disallowed_versions: vec![0],
        ..Default::default()
    };
    let (named_app, _other) = by_source(&control, filter).await;
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    assert!(raw(at, GET.as_bytes()).await.contains("x-backend: other"));
    assert_eq!(raw(at, format!("PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n{GET}").as_bytes()).await, "");
    assert_eq!(named_app.requests(), 0);
}

#[tokio::test]
async fn what_is_spoken_and_whom_it_was_for_choose_the_chain() {
    let control = Control::start().await;
    let apps = [Backend::start("one").await, Backend::start("two").await, Backend::start("six").await];
    let speaks = |protocol: &str| FilterChainMatch {
        application_protocols: vec![protocol.to_owned()],
        ..FilterChainMatch::default()
    };
    let to = FilterChainMatch { prefix_ranges: block("127.0.0.6", 32), ..FilterChainMatch::default() };
    let chains = vec![
        matching(to_cluster("one"), speaks("http/1.1")),
        matching(to_cluster("two"), speaks("h2c")),
        matching(to_cluster("six"), to),
    ];
    let mut everywhere = with(listener("in", chains), vec![filter_of(&HttpInspector {})]);
    everywhere.address = address("0.0.0.0:0".parse().unwrap());
    let clusters = ["one", "two", "six"].into_iter().zip(&apps);
    let clusters = clusters.map(|(name, app)| named(static_cluster(name, &[app.address])));
    control.set(clusters.chain([named(everywhere)]));
    let proxy = control.proxy().await;
    let port = proxy.listener("in").await.unwrap().port();
    let at = |ip: [u8; 4]| SocketAddr::new(IpAddr::from(ip), port);
    assert!(raw(at([127, 0, 0, 1]), GET.as_bytes()).await.contains("x-backend: one"));
    assert!(raw(at([127, 0, 0, 6]), GET.as_bytes()).await.contains("x-backend: six"));
    let request = crate::client::get("/");
    let answer = crate::client::send(at([127, 0, 0, 1]), http::Version::HTTP_2, request).await;
    assert_eq!(answer.backend(), "two");
    assert_eq!(raw(at([127, 0, 0, 1]), b"SSH-2.0-x\r\n").await, "");
}

/// Says on each connection, request by request, whom it sees, and on which connection.
async fn tells_the_peer() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                loop {
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await?);
                    }
                    head.clear();
                    let text = peer.to_string();
                    let length = text.len();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{text}");
                    stream.write_all(answer.as_bytes()).await?;
                }
                #[allow(unreachable_code)]
                Ok::<_, std::io::Error>(())
            });
        }
    });
    address
}

async fn seen(from: &str, at: SocketAddr) -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(from.parse().unwrap()).unwrap();
    let mut stream = socket.connect(at).await.unwrap();
    stream.write_all(GET.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    body.parse().unwrap_or_else(|_| panic!("{answer}"))
}

#[tokio::test]
async fn endpoints_are_asked_in_the_clients_name_and_no_connection_serves_two() {
    if std::env::var_os("SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        println!("skipped: another's name takes CAP_NET_ADMIN, and SKIP_PRIVILEGED=1 is set");
        return;
    }
    let app = tells_the_peer().await;
    let control = Control::start().await;
    let source = filter_of(&OriginalSrc { mark: 7, ..Default::default() });
    let by_bytes = listener("bytes", vec![chain(tcp_filter("app"))]);
    control.set([
        named(with(listener("in", vec![to_cluster("app")]), vec![source.clone()])),
        named(with(by_bytes, vec![source])),
        named(static_cluster("app", &[app])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    let first = seen("127.0.0.5:0", at).await;
    let other = seen("127.0.0.6:0", at).await;
    let again = seen("127.0.0.5:0", at).await;
    assert_eq!(first.ip(), IpAddr::from([127, 0, 0, 5]));
    assert_eq!(other.ip(), IpAddr::from([127, 0, 0, 6]));
    assert_eq!(again, first, "a client's own connection serves it again");

    let at = proxy.listener("bytes").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.7:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(at).await.unwrap();
    stream.write_all(GET.as_bytes()).await.unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.contains("127.0.0.7:"), "{answer}");
}

/// Takes every certificate: what is tried here is which versions are spoken.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = mesh_tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = mesh_tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        mesh_tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

fn taking_anybody(versions: &[&'static SupportedProtocolVersion]) -> tokio_rustls::TlsConnector {
    let config = rustls::ClientConfig::builder_with_provider(mesh_tls::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    Arc::new(config).into()
}

/// The version that is agreed on, and whether anything was resumed, call by call. None: no handshake.
async fn handshakes(
    at: SocketAddr,
    versions: &[&'static SupportedProtocolVersion],
) -> Vec<Option<(ProtocolVersion, bool)>> {
    let connector = taking_anybody(versions);
    let mut out = Vec::new();
    for _ in 0..2 {
        let stream = TcpStream::connect(at).await.unwrap();
        let name = ServerName::try_from("shop.example").unwrap();
        let Ok(mut stream) = connector.connect(name, stream).await else {
            out.push(None);
            continue;
        };
        stream.write_all(GET.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
        let session = stream.get_ref().1;
        let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        out.push(session.protocol_version().map(|version| (version, resumed)));
    }
    out
}

#[tokio::test]
async fn who_is_asked_for_no_certificate_may_speak_tls_1_2_where_that_is_said_and_nothing_is_resumed() {
    let ca = Ca::new("west.example");
    let app = Backend::start("app").await;
    let control = Control::start().await;
    let by_versions = |name: &str, least: i32, most: i32| {
        let mut tls = downstream_tls(&[]);
        tls.require_client_certificate = None;
        let common = tls.common_tls_context.as_mut().unwrap();
        common.validation_context_type = None;
        common.tls_params = Some(TlsParameters {
            tls_minimum_protocol_version: least,
            tls_maximum_protocol_version: most,
            ..TlsParameters::default()
        });
        named(listener(name, vec![with_tls(to_cluster("app"), &[], &tls)]))
    };
    control.set([
        by_versions("mesh", 0, 0),
        by_versions("both", 3, 0),
        by_versions("old", 3, 3),
        named(static_cluster("app", &[app.address])),
        named(ca.identity("spiffe://west.example/ns/shop/sa/gateway")),
    ]);
    let proxy = control.proxy().await;
    let (old, new) = (&rustls::version::TLS12, &rustls::version::TLS13);
    let spoken = |version| vec![Some((version, false)); 2];
    for (name, versions, expected) in [
        ("mesh", [new, new], spoken(ProtocolVersion::TLSv1_3)),
        ("mesh", [old, old], vec![None; 2]),
        ("both", [old, old], spoken(ProtocolVersion::TLSv1_2)),
        ("both", [new, old], spoken(ProtocolVersion::TLSv1_3)),
        ("old", [new, old], spoken(ProtocolVersion::TLSv1_2)),
        ("old", [new, new], vec![None; 2]),
    ] {
        let at = proxy.listener(name).await.unwrap();
        assert_eq!(handshakes(at, &versions).await, expected, "{name}");
    }
}

#[tokio::test]
async fn of_several_certificates_a_client_is_shown_the_one_for_the_name_that_it_asks_for() {
    let ca = Ca::new("west.example");
    let control = Control::start().await;
    let mut tls = downstream_tls(&[]);
    tls.require_client_certificate = None;
    let common = tls.common_tls_context.as_mut().unwrap();
    common.validation_context_type = None;
    let one = common.tls_certificate_sds_secret_configs.remove(0);
    for name in ["first", "shop", "all"] {
        let mut named = one.clone();
        named.name = name.to_owned();
        common.tls_certificate_sds_secret_configs.push(named);
    }
    let app = Backend::start("app").await;
    control.set([
        named(listener("in", vec![with_tls(to_cluster("app"), &[], &tls)])),
        named(static_cluster("app", &[app.address])),
        named(ca.named("first", "first.example")),
        named(ca.named("shop", "shop.example")),
        named(ca.named("all", "eu.shop.example")),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    let connector = taking_anybody(&[&rustls::version::TLS13]);
    for (asked, shown) in [
        ("shop.example", "shop.example"),
        ("Shop.Example", "shop.example"),
        ("eu.shop.example", "eu.shop.example"),
        ("a.b.shop.example", "first.example"),
        ("other.example", "first.example"),
        ("127.0.0.1", "first.example"),
    ] {
        let stream = TcpStream::connect(at).await.unwrap();
        let name = ServerName::try_from(asked).unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        assert_eq!(mesh_tls::dns_names(&chain[0]), [shown], "{asked}");
    }
}

#[test]
fn what_a_listener_finds_out_is_refused_by_its_path_where_it_is_not_done() {
    let good = || listener("in", vec![to_cluster("app")]);
    let changed = |edit: &dyn Fn(&mut Listener)| {
        let mut listener = good();
        edit(&mut listener);
        proxy::config::listener(listener).map(drop).map_err(|error| error.path)
    };
    let option = |level, name, value| SocketOption {
        level,
        name,
        value: Some(socket_option::Value::IntValue(value)),
        ..SocketOption::default()
    };
    let matching = |edit: &dyn Fn(&mut FilterChainMatch)| {
        changed(&|listener| edit(listener.filter_chains[0].filter_chain_match.get_or_insert_default()))
    };
    let yes = || Some(BoolValue { value: true });
    assert_eq!(changed(&|_| {}), Ok(()));
    assert_eq!(changed(&|l| (l.transparent, l.freebind, l.use_original_dst) = (yes(), yes(), yes())), Ok(()));
    assert_eq!(changed(&|l| l.bind_to_port = Some(BoolValue { value: false })), Ok(()));
    assert_eq!(changed(&|l| l.socket_options = vec![option(1, 36, -1_560_281_088)]), Ok(()));
    let at = |path: &str| Err(path.to_owned());
    assert_eq!(changed(&|l| l.socket_options = vec![option(1, 2, 1)]), at("socket_options[0]"));
    assert_eq!(changed(&|l| l.socket_options = vec![option(1, 9, 2)]), at("socket_options[0].int_value"));
    let both = &|l: &mut Listener| {
        (l.bind_to_port, l.use_original_dst) = (Some(BoolValue { value: false }), yes());
    };
    assert_eq!(changed(both), at("use_original_dst"));
    let late = &|l: &mut Listener| {
        l.listener_filters = vec![filter_of(&TlsInspector::default()), filter_of(&ProxyProtocol::default())];
    };
    assert_eq!(changed(late), at("listener_filters[1]"));
    let late = &|l: &mut Listener| {
        l.listener_filters = vec![filter_of(&ProxyProtocol::default()), filter_of(&OriginalDst {})];
    };
    assert_eq!(changed(late), at("listener_filters[1]"));
    let ports = &|l: &mut Listener| {
        l.listener_filters = vec![filter_of(&OriginalSrc { bind_port: true, mark: 0 })];
    };
    assert_eq!(changed(ports), at("listener_filters[0].typed_config.bind_port"));
    let small = &|l: &mut Listener| l.per_connection_buffer_limit_bytes = Some(UInt32Value { value: 1024 });
    assert_eq!(changed(small), at("per_connection_buffer_limit_bytes"));

    let in_match = |field: &str| Err(format!("filter_chains[0].filter_chain_match.{field}"));
    assert_eq!(
        matching(&|m| m.destination_port = Some(UInt32Value { value: 0 })),
        in_match("destination_port")
    );
    assert_eq!(matching(&|m| m.source_ports = vec![80, 65_536]), in_match("source_ports[1]"));
    assert_eq!(matching(&|m| m.source_type = 3), in_match("source_type"));
    assert_eq!(
        matching(&|m| m.source_prefix_ranges = block("10.0.0.0", 33)),
        in_match("source_prefix_ranges[0].prefix_len")
    );
    assert_eq!(
        matching(&|m| m.direct_source_prefix_ranges = block("a", 8)),
        in_match("direct_source_prefix_ranges[0].address_prefix")
    );
    assert_eq!(matching(&|m| m.address_suffix = "x".to_owned()), in_match("address_suffix"));
    let twice = &|l: &mut Listener| {
        let matches = FilterChainMatch { source_ports: vec![1, 2], ..Default::default() };
        let other = FilterChainMatch { source_ports: vec![2], ..Default::default() };
        l.filter_chains =
            vec![self::matching(to_cluster("a"), matches), self::matching(to_cluster("b"), other)];
    };
    assert_eq!(changed(twice), at("filter_chains[1].filter_chain_match"));
}
