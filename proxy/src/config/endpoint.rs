//! `ClusterLoadAssignment`.

use std::{net::SocketAddr, sync::Arc};

use xds_proto::envoy::{
    config::{
        core::v3::HealthStatus,
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as WireEndpoint, LbEndpoint, LocalityLbEndpoints,
            cluster_load_assignment::{Policy, policy::DropOverload},
            endpoint::HealthCheckConfig,
            lb_endpoint::HostIdentifier,
        },
    },
    r#type::v3::FractionalPercent,
};

use super::{
    error::Path,
    metadata,
    wire::{Result, address, refuse, u32_or},
};
use crate::{
    balance::{Assignment, DropShare, Endpoint, Health, Metadata, ProbeTarget},
    limits,
};

/// Namespace of subsets.
pub(super) const LB: &str = "envoy.lb";
/// Namespace of transport socket matches.
const SOCKET: &str = "envoy.transport_socket_match";

/// Largest weight of an endpoint or locality: sums of them fit in 64 bits with room.
const MAX_WEIGHT: u32 = u32::MAX / 2;
/// Largest priority, as in Envoy.
const MAX_PRIORITY: u32 = 128;

pub(super) fn convert(path: &Path<'_>, wire: ClusterLoadAssignment) -> Result<Assignment> {
    let ClusterLoadAssignment { cluster_name: _, endpoints: localities, named_endpoints, policy } = wire;
    refuse!(path; named_endpoints);
    let policy_path = path.field("policy");
    let Policy { drop_overloads, overprovisioning_factor, endpoint_stale_after, weighted_priority_health } =
        policy.unwrap_or_default();
    refuse!(policy_path; endpoint_stale_after, weighted_priority_health);
    let drops = drops(&policy_path.field("drop_overloads"), drop_overloads)?;
    let overprovisioning = u32_or(&overprovisioning_factor, 140);
    // Below 100 a priority leaves some of the load to the next one although all of it is healthy.
    if !(1..=100_000).contains(&overprovisioning) {
        let path = policy_path.field("overprovisioning_factor");
        return Err(path.invalid(overprovisioning, "must be 1 to 100000"));
    }
    let list = path.field("endpoints");
    let mut endpoints = vec![];
    for (at, wire) in localities.into_iter().enumerate() {
        locality(&list.index(at), at, wire, &mut endpoints)?;
        if endpoints.len() > limits::ENDPOINTS {
            return Err(
                list.invalid(endpoints.len(), format!("endpoints are more than {}", limits::ENDPOINTS))
            );
        }
    }
    Ok(Assignment { endpoints, overprovisioning, drops })
}

fn drops(path: &Path<'_>, wire: Vec<DropOverload>) -> Result<Vec<DropShare>> {
    // As many as gRPC and Istio ever send, and more than Envoy takes (one).
    if wire.len() > 16 {
        return Err(path.invalid(wire.len(), "categories are more than 16"));
    }
    let drop = |(at, wire): (usize, DropOverload)| {
        let at = path.index(at);
        let path = at.field("drop_percentage");
        let FractionalPercent { numerator, denominator } = wire.drop_percentage.unwrap_or_default();
        let scale = match denominator {
            0 => 10_000,
            1 => 100,
            2 => 1,
            other => return Err(path.field("denominator").invalid(other, "is unknown")),
        };
        let per_million = numerator.saturating_mul(scale).min(1_000_000);
        Ok(DropShare { category: wire.category, per_million })
    };
    wire.into_iter().enumerate().map(drop).collect()
}

fn locality(path: &Path<'_>, at: usize, wire: LocalityLbEndpoints, into: &mut Vec<Endpoint>) -> Result<()> {
    let LocalityLbEndpoints {
        locality,
        metadata: of_locality,
        lb_endpoints,
        load_balancing_weight,
        priority,
        proximity: _,
        lb_config,
    } = wire;
    refuse!(path; lb_config);
    if priority > MAX_PRIORITY {
        return Err(path.field("priority").invalid(priority, format!("is above {MAX_PRIORITY}")));
    }
    let locality_weight = load_balancing_weight.map(|w| w.value);
    if locality_weight.is_some_and(|w| w > MAX_WEIGHT) {
        return Err(path
            .field("load_balancing_weight")
            .invalid(locality_weight.unwrap_or(0), "is too large"));
    }
    let locality = locality.unwrap_or_default();
    let parts = [locality.region, locality.zone, locality.sub_zone];
    let locality_name: Arc<str> =
        parts.iter().filter(|p| !p.is_empty()).cloned().collect::<Vec<_>>().join("/").into();
    let locality_socket = metadata::namespace(&path.field("metadata"), of_locality.as_ref(), SOCKET)?;
    // Most endpoints have none, and then share one.
    let none: Arc<Metadata> = Arc::default();
    let shared = |metadata: Metadata| if metadata.is_empty() { none.clone() } else { Arc::new(metadata) };
    let list = path.field("lb_endpoints");
    for (n, wire) in lb_endpoints.into_iter().enumerate() {
        let path = list.index(n);
        let LbEndpoint { health_status, metadata: wire_metadata, load_balancing_weight, host_identifier } =
            wire;
        let endpoint_path = path.field("endpoint");
        let endpoint = match host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
            Some(HostIdentifier::EndpointName(_)) => return Err(path.field("endpoint_name").unsupported()),
            None => return Err(endpoint_path.missing()),
        };
        let WireEndpoint {
            address: wire,
            health_check_config,
            hostname,
            additional_addresses,
            observability_name: _,
        } = endpoint;
        refuse!(endpoint_path; additional_addresses);
        let probe = probe(&endpoint_path.field("health_check_config"), health_check_config)?;
        let weight = u32_or(&load_balancing_weight, 1);
        if weight == 0 || weight > MAX_WEIGHT {
            return Err(path
                .field("load_balancing_weight")
                .invalid(weight, format!("must be 1 to {MAX_WEIGHT}")));
        }
        let health = match HealthStatus::try_from(health_status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Health::Healthy,
            Ok(HealthStatus::Degraded) => Health::Degraded,
            Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => Health::Unhealthy,
            Err(_) => return Err(path.field("health_status").invalid(health_status, "is unknown")),
        };
        let address_path = endpoint_path.field("address");
        let address = address(&address_path, wire)?;
        if address.port() == 0 {
            return Err(address_path
                .field("socket_address")
                .field("port_value")
                .invalid(0, "is no port to connect to"));
        }
        let metadata_path = path.field("metadata");
        let of = |name| metadata::namespace(&metadata_path, wire_metadata.as_ref(), name);
        let mut socket = of(SOCKET)?;
        // Where the endpoint says nothing itself, its locality does.
        if socket.is_empty() {
            socket.clone_from(&locality_socket);
        }
        into.push(Endpoint {
            address,
            hostname: hostname.into(),
            metadata: shared(of(LB)?),
            socket: shared(socket),
            probe,
            weight,
            health,
            priority,
            locality: at,
            locality_weight,
            locality_name: locality_name.clone(),
        });
    }
    Ok(())
}

fn probe(path: &Path<'_>, wire: Option<HealthCheckConfig>) -> Result<ProbeTarget> {
    let HealthCheckConfig { port_value, hostname, address: wire, disable_active_health_check } =
        wire.unwrap_or_default();
    let port =
        u16::try_from(port_value).map_err(|_| path.field("port_value").invalid(port_value, "is no port"))?;
    let other: Option<SocketAddr> = match wire {
        Some(wire) => Some(address(&path.field("address"), Some(wire))?),
        None => None,
    };
    Ok(ProbeTarget {
        port: other.map(|a| a.port()).or(Some(port)).filter(|port| *port != 0),
        ip: other.map(|a| a.ip()),
        hostname,
        disabled: disable_active_health_check,
    })
}
