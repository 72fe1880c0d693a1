//! Where a proxy connects to: clusters.

use std::{collections::HashMap, net::SocketAddr};

use mesh_model::{compile::MeshEndpoint, identity::SpiffeId, resource::AppProtocol};
use xds_proto::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, OutlierDetection, circuit_breakers,
                cluster::{
                    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy,
                    TransportSocketMatch,
                },
            },
            core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, TransportSocket},
            endpoint::v3::ClusterLoadAssignment,
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                explicit_http_config::ProtocolConfig,
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf::{Any, Struct, Value, value::Kind},
    to_any,
};

use super::{
    endpoint, tls,
    wire::{ads, millis, number},
};

/// Where Envoy looks for its own options of HTTP upstreams.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// A dead endpoint of the same cluster or a gateway is noticed after this long.
const CONNECT_TIMEOUT_MS: u64 = 1_000;

/// What the endpoints of a cluster speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// Every endpoint is behind a proxy.
    Mesh,
    /// None is.
    Plain,
    /// Some are; each endpoint's metadata says which.
    Mixed,
}

impl Encryption {
    /// By a cluster's endpoints. Without any, nobody may be reached in plain text later by surprise.
    pub fn of(endpoints: &[&MeshEndpoint]) -> Self {
        let mtls = endpoints.iter().filter(|e| e.mtls).count();
        match (mtls, endpoints.len() - mtls) {
            (_, 0) => Encryption::Mesh,
            (0, _) => Encryption::Plain,
            _ => Encryption::Mixed,
        }
    }

    /// For proxies that can't mix: the endpoints of one kind only. That of the best ones that are ready, and
    /// mTLS where these differ too.
    pub fn decide<'a>(endpoints: &[&'a MeshEndpoint]) -> (Self, Vec<&'a MeshEndpoint>) {
        let best = endpoints.iter().filter(|e| e.ready).map(|e| e.priority).min();
        let mtls = endpoints
            .iter()
            .filter(|e| e.ready && Some(e.priority) == best)
            .map(|e| e.mtls)
            .reduce(|any, one| any || one)
            .unwrap_or(true);
        let kept = endpoints.iter().filter(|e| e.mtls == mtls).copied().collect();
        (if mtls { Encryption::Mesh } else { Encryption::Plain }, kept)
    }
}

/// The cluster of one service port, as its callers see it.
pub fn outbound(
    name: &str,
    sni: &str,
    allowed: &[SpiffeId],
    protocol: AppProtocol,
    encryption: Encryption,
) -> Cluster {
    // Envoy takes ALPN's word for the HTTP version only if all endpoints have TLS.
    let (options, alpn): (_, &[&str]) = match (protocol, encryption) {
        (AppProtocol::Tcp, _) => (None, &[]),
        (_, Encryption::Mesh) => (Some(auto()), &["h2", "http/1.1"]),
        (AppProtocol::Http, _) => (Some(explicit(false)), &["http/1.1"]),
        (AppProtocol::Http2 | AppProtocol::Grpc, _) => (Some(explicit(true)), &["h2"]),
    };
    let mut cluster = eds(name);
    cluster.typed_extension_protocol_options = options.map(http_options).unwrap_or_default();
    match encryption {
        Encryption::Mesh => cluster.transport_socket = Some(tls::upstream(sni, allowed, alpn)),
        Encryption::Plain => {}
        Encryption::Mixed => {
            cluster.transport_socket_matches = vec![
                socket_match("mtls", Some(endpoint::mtls_metadata()), tls::upstream(sni, allowed, alpn)),
                socket_match("plain", None, tls::plain()),
            ];
        }
    }
    cluster
}

/// The application beside the proxy.
pub fn inbound(name: &str, port: u16, protocol: AppProtocol) -> Cluster {
    let options = match protocol {
        AppProtocol::Tcp => None,
        AppProtocol::Http => Some(explicit(false)),
        AppProtocol::Http2 | AppProtocol::Grpc => Some(explicit(true)),
    };
    let application = SocketAddr::from(([127, 0, 0, 1], port));
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(millis(CONNECT_TIMEOUT_MS)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![endpoint::locality("", 0, vec![endpoint::plain(application, 1)])],
            ..Default::default()
        }),
        typed_extension_protocol_options: options.map(http_options).unwrap_or_default(),
        circuit_breakers: Some(wide_breakers()),
        ..Default::default()
    }
}

/// Local endpoints of an exported service, as the gateway reaches them: bytes, unopened.
pub fn gateway(name: &str) -> Cluster {
    eds(name)
}

/// Whom a client asked before the kernel redirected it, in the HTTP version that it speaks itself.
pub(super) fn original(name: &str) -> Cluster {
    let options = UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(Http1ProtocolOptions::default()),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        ..Default::default()
    });
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(millis(CONNECT_TIMEOUT_MS)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32)),
        lb_policy: LbPolicy::ClusterProvided as i32,
        typed_extension_protocol_options: http_options(options),
        circuit_breakers: Some(wide_breakers()),
        ..Default::default()
    }
}

fn eds(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), service_name: name.to_owned() }),
        connect_timeout: Some(millis(CONNECT_TIMEOUT_MS)),
        lb_policy: LbPolicy::RoundRobin as i32,
        common_lb_config: Some(CommonLbConfig {
            // In panic Envoy sends to endpoints that it knows to be dead instead of the next priority.
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..Default::default()
        }),
        // Two gateway errors in a row (or failed connects) take an endpoint out for 5 s, then 10, and so on.
        // Errors of the application (500) are not a reason.
        outlier_detection: Some(OutlierDetection {
            consecutive_gateway_failure: number(2),
            enforcing_consecutive_gateway_failure: number(100),
            consecutive_5xx: number(0),
            enforcing_consecutive_5xx: number(0),
            enforcing_success_rate: number(0),
            interval: Some(millis(1_000)),
            base_ejection_time: Some(millis(5_000)),
            max_ejection_time: Some(millis(60_000)),
            max_ejection_percent: number(100),
            ..Default::default()
        }),
        circuit_breakers: Some(wide_breakers()),
        // An endpoint that is gone from the list gets no more requests on pooled connections either.
        ignore_health_on_host_removal: true,
        ..Default::default()
    }
}

/// Envoy's default of 1,024 connections, requests and pending requests, and 3 retries, is a limit that nobody
/// asked for.
fn wide_breakers() -> CircuitBreakers {
    CircuitBreakers {
        thresholds: vec![circuit_breakers::Thresholds {
            max_connections: number(1 << 20),
            max_pending_requests: number(1 << 20),
            max_requests: number(1 << 20),
            max_retries: number(1 << 10),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn http_options(options: UpstreamProtocolOptions) -> HashMap<String, Any> {
    let options = HttpProtocolOptions { upstream_protocol_options: Some(options), ..Default::default() };
    HashMap::from([(HTTP_OPTIONS.to_owned(), to_any(&options))])
}

fn auto() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::AutoConfig(AutoHttpConfig {
        http_protocol_options: Some(Http1ProtocolOptions::default()),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        ..Default::default()
    })
}

fn explicit(http2: bool) -> UpstreamProtocolOptions {
    let config = if http2 {
        ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())
    } else {
        ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())
    };
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) })
}

fn socket_match(name: &str, wanted: Option<Struct>, socket: TransportSocket) -> TransportSocketMatch {
    TransportSocketMatch {
        name: name.to_owned(),
        // An empty match accepts every endpoint.
        r#match: Some(wanted.unwrap_or_default()),
        transport_socket: Some(socket),
    }
}

pub(super) fn boolean(key: &str) -> Struct {
    Struct { fields: HashMap::from([(key.to_owned(), Value { kind: Some(Kind::BoolValue(true)) })]) }
}
