//! Small pieces that every Envoy message is made of.

use std::net::{IpAddr, SocketAddr};

use xds_proto::{
    Name,
    envoy::{
        config::core::v3::{
            Address, AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource, GrpcService,
            SocketAddress, TransportSocket, address,
            api_config_source::ApiType,
            config_source::ConfigSourceSpecifier,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
            socket_address::PortSpecifier,
            transport_socket,
        },
        r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{BoolValue, Duration, UInt32Value},
    to_any,
};

/// Name of the cluster by which a proxy reaches its node's agent, from the proxy's bootstrap.
pub const AGENT_CLUSTER: &str = "isthmus_agent";

pub(super) fn millis(ms: u64) -> Duration {
    // A duration of more than 10,000 years is refused by protobuf; nobody means one.
    let ms = ms.min(315_576_000_000_000);
    Duration {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
    }
}

pub(super) fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn yes() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}

pub(super) fn address(at: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(at.port()))),
            ..Default::default()
        })),
    }
}

pub(super) fn loopback(port: u16) -> Address {
    address(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port))
}

/// "By the stream that this came on."
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}

/// "From the agent": keys and bundles never come from the control plane.
pub(super) fn agent_sds() -> ConfigSource {
    let service = GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: AGENT_CLUSTER.to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        // The default of 15 s would leave a listener without its certificate and still open it; 0 waits.
        initial_fetch_timeout: Some(Duration { seconds: 0, nanos: 0 }),
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
            api_type: ApiType::DeltaGrpc as i32,
            transport_api_version: ApiVersion::V3 as i32,
            grpc_services: vec![service],
            set_node_on_first_message_only: true,
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub(super) fn transport_socket<M: Name>(name: &str, config: &M) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(to_any(config))),
    }
}

pub(super) fn exact(text: &str) -> StringMatcher {
    StringMatcher { ignore_case: false, match_pattern: Some(MatchPattern::Exact(text.to_owned())) }
}

pub(super) fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher { regex: pattern.to_owned(), ..Default::default() }
}

pub(super) fn matches_regex(pattern: &str) -> StringMatcher {
    StringMatcher { ignore_case: false, match_pattern: Some(MatchPattern::SafeRegex(regex(pattern))) }
}
