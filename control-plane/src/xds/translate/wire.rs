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
        r#type::matcher::v3::{
            RegexMatcher, StringMatcher,
            regex_matcher::{EngineType, GoogleRe2},
            string_matcher::MatchPattern,
        },
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

/// Instructions of a compiled expression that Envoy is to take. What `mesh_model` lets in is far smaller; the limit is
/// Envoy's to have one at all.
const MAX_PROGRAM_SIZE: u32 = 65_536;
/// Characters that compile to less than the 100 instructions which Envoy takes without being told: each is four at most.
const SURELY_SHORT: usize = 20;

/// An expression. Envoy refuses one of more than 100 instructions (`/[^/]{1,40}` has 126) unless a limit comes with it;
/// how large they may be was decided when the object was applied.
pub(super) fn regex(pattern: &str) -> RegexMatcher {
    let short = pattern.len() <= SURELY_SHORT && !pattern.contains('{');
    RegexMatcher { regex: pattern.to_owned(), engine_type: (!short).then(limited) }
}

// Deprecated in favour of a runtime key, which is the proxy's bootstrap's to set and not ours.
#[allow(deprecated)]
fn limited() -> EngineType {
    EngineType::GoogleRe2(GoogleRe2 { max_program_size: Some(UInt32Value { value: MAX_PROGRAM_SIZE }) })
}

pub(super) fn matches_regex(pattern: &str) -> StringMatcher {
    StringMatcher { ignore_case: false, match_pattern: Some(MatchPattern::SafeRegex(regex(pattern))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_that_may_be_long_comes_with_a_limit_that_it_is_within() {
        assert_eq!(regex("/v[0-9]+/.*").engine_type, None);
        for long in ["/x{30}", "/(?:cards|orders)/[0-9a-f]+"] {
            assert_eq!(regex(long).engine_type, Some(limited()), "{long}");
        }
    }
}
