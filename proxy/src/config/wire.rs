//! Helpers that every conversion uses: presence, durations, addresses, packed messages.

use std::{net::SocketAddr, time::Duration};

use xds_proto::{
    Message, Name,
    envoy::config::core::v3::{
        Address, ConfigSource, DataSource, SocketAddress, address, config_source, data_source, socket_address,
    },
    google::protobuf::{Any, BoolValue, Duration as WireDuration, UInt32Value},
};

use super::error::{ConfigError, Path};

/// Refuses each of these (destructured) fields if it is set. Together with destructuring without `..` the
/// compiler makes sure that no field of Envoy's API is ignored by accident.
macro_rules! refuse {
    ($path:expr; $($field:ident),+ $(,)?) => {
        $(if $crate::config::wire::is_set(&$field) {
            return Err($path.field(stringify!($field)).unsupported());
        })+
    };
}
pub(crate) use refuse;

/// Whether a field differs from "not there", which in proto3 is its default.
pub(crate) fn is_set<T: Default + PartialEq>(field: &T) -> bool {
    *field != T::default()
}

pub(crate) type Result<T> = std::result::Result<T, ConfigError>;

/// Longest duration that is taken: a year. Longer ones are refused, so that arithmetic with time cannot overflow.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) fn duration(path: &Path<'_>, wire: &WireDuration) -> Result<Duration> {
    let seconds = u64::try_from(wire.seconds).map_err(|_| path.invalid(wire.seconds, "is negative"))?;
    let nanos = u32::try_from(wire.nanos)
        .ok()
        .filter(|n| *n < 1_000_000_000)
        .ok_or_else(|| path.invalid(wire.nanos, "nanoseconds are out of range"))?;
    let duration =
        Duration::from_secs(seconds.min(MAX_DURATION.as_secs() + 1)) + Duration::from_nanos(nanos.into());
    if duration > MAX_DURATION {
        return Err(path.invalid(format!("{seconds}s"), "is longer than a year"));
    }
    Ok(duration)
}

/// Not set: the default. Zero stays zero: what it means is the field's business.
pub(crate) fn duration_or(
    path: &Path<'_>,
    wire: &Option<WireDuration>,
    default: Duration,
) -> Result<Duration> {
    wire.as_ref().map_or(Ok(default), |d| duration(path, d))
}

/// Not set: the default. Zero: never, as in most of Envoy's timeouts.
pub(crate) fn timeout_or(
    path: &Path<'_>,
    wire: &Option<WireDuration>,
    default: Option<Duration>,
) -> Result<Option<Duration>> {
    match wire {
        None => Ok(default),
        Some(d) => Ok(Some(duration(path, d)?).filter(|d| !d.is_zero())),
    }
}

pub(crate) fn bool_or(wire: &Option<BoolValue>, default: bool) -> bool {
    wire.as_ref().map_or(default, |b| b.value)
}

pub(crate) fn u32_or(wire: &Option<UInt32Value>, default: u32) -> u32 {
    wire.as_ref().map_or(default, |n| n.value)
}

/// The message inside, if it is of type `M`.
pub(crate) fn unpack<M: Message + Name + Default>(path: &Path<'_>, any: &Any) -> Result<M> {
    if any.type_url != M::type_url() {
        return Err(path.unsupported_type(&any.type_url));
    }
    M::decode(any.value.as_slice()).map_err(|e| path.malformed(e))
}

/// A TCP address with an IP and a port number.
pub(crate) fn address(path: &Path<'_>, wire: Option<Address>) -> Result<SocketAddr> {
    let address = wire.and_then(|a| a.address).ok_or_else(|| path.missing())?;
    let address::Address::SocketAddress(socket) = address else {
        return Err(path.invalid("pipe or internal address", "is not supported, use socket_address"));
    };
    let path = path.field("socket_address");
    let SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = socket;
    refuse!(path; protocol, resolver_name, ipv4_compat, network_namespace_filepath);
    let ip = address
        .parse()
        .map_err(|_| path.field("address").invalid(&address, "is no IP address (names are not resolved)"))?;
    let port = match port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => {
            u16::try_from(port).map_err(|_| path.field("port_value").invalid(port, "is no port"))?
        }
        Some(socket_address::PortSpecifier::NamedPort(_)) => {
            return Err(path.field("named_port").unsupported());
        }
        None => return Err(path.field("port_value").missing()),
    };
    Ok(SocketAddr::new(ip, port))
}

/// Bytes that are part of the resource. Files and environment variables are not read: a resource
/// from the network must not be able to name what is on this machine.
pub(crate) fn inline(path: &Path<'_>, wire: DataSource) -> Result<Vec<u8>> {
    let DataSource { watched_directory, specifier } = wire;
    refuse!(path; watched_directory);
    match specifier {
        Some(data_source::Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(data_source::Specifier::InlineString(text)) => Ok(text.into_bytes()),
        Some(data_source::Specifier::Filename(_)) => Err(path.field("filename").unsupported()),
        Some(data_source::Specifier::EnvironmentVariable(_)) => {
            Err(path.field("environment_variable").unsupported())
        }
        None => Err(path.missing()),
    }
}

/// Which stream a named resource is to be asked for on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The aggregated stream, relayed by the agent to the control plane.
    Ads,
    /// The agent's own secret discovery service, on the same socket.
    Sds,
}

/// `ads` and `self` mean the aggregated stream. A gRPC `api_config_source` means the agent, the only server this
/// proxy knows, and is for secrets only.
#[allow(deprecated)]
pub(crate) fn source(path: &Path<'_>, wire: Option<ConfigSource>, secrets: bool) -> Result<Source> {
    use config_source::ConfigSourceSpecifier as Specifier;
    let wire = wire.ok_or_else(|| path.missing())?;
    // How long to wait before starting without the resource: a listener here waits for as long as it takes.
    let ConfigSource { authorities, initial_fetch_timeout: _, resource_api_version, config_source_specifier } =
        wire;
    refuse!(path; authorities);
    // AUTO (0) means V3 to everybody who is left.
    if !matches!(resource_api_version, 0 | 2) {
        return Err(path.field("resource_api_version").invalid(resource_api_version, "is not V3"));
    }
    match config_source_specifier {
        Some(Specifier::Ads(_) | Specifier::Self_(_)) => Ok(Source::Ads),
        // GRPC (2) and DELTA_GRPC (3); the proxy speaks delta to the agent either way.
        Some(Specifier::ApiConfigSource(api)) if secrets && matches!(api.api_type, 2 | 3) => Ok(Source::Sds),
        Some(Specifier::ApiConfigSource(_)) => Err(path.field("api_config_source").unsupported()),
        Some(Specifier::PathConfigSource(_)) => Err(path.field("path_config_source").unsupported()),
        Some(Specifier::Path(_)) => Err(path.field("path").unsupported()),
        None => Err(path.missing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_overlong_and_malformed_durations_are_refused() {
        let path = Path::ROOT.field("timeout");
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0), (400 * 24 * 3600, 0)] {
            assert!(duration(&path, &WireDuration { seconds, nanos }).is_err(), "{seconds} {nanos}");
        }
        let ok = duration(&path, &WireDuration { seconds: 1, nanos: 500_000_000 }).unwrap();
        assert_eq!(ok, Duration::from_millis(1500));
    }

    #[test]
    fn a_resource_cannot_name_a_file_of_this_machine() {
        let source = DataSource {
            watched_directory: None,
            specifier: Some(data_source::Specifier::Filename("/etc/shadow".into())),
        };
        let error = inline(&Path::ROOT.field("private_key"), source).unwrap_err();
        assert_eq!(error.path, "private_key.filename");
    }
}
