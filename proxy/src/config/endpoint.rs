//! `ClusterLoadAssignment`.

use xds_proto::envoy::config::{
    core::v3::HealthStatus,
    endpoint::v3::{
        ClusterLoadAssignment, Endpoint as WireEndpoint, LbEndpoint, LocalityLbEndpoints,
        cluster_load_assignment::Policy, lb_endpoint::HostIdentifier,
    },
};

use super::{
    error::Path,
    wire::{Result, address, refuse, u32_or},
};
use crate::{
    balance::{Assignment, Endpoint, Health},
    limits,
};

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
    refuse!(policy_path; drop_overloads, endpoint_stale_after, weighted_priority_health);
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
    Ok(Assignment { endpoints, overprovisioning })
}

fn locality(path: &Path<'_>, at: usize, wire: LocalityLbEndpoints, into: &mut Vec<Endpoint>) -> Result<()> {
    let LocalityLbEndpoints {
        locality,
        metadata: _,
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
    let locality_name = parts.iter().filter(|p| !p.is_empty()).cloned().collect::<Vec<_>>().join("/");
    let list = path.field("lb_endpoints");
    for (n, wire) in lb_endpoints.into_iter().enumerate() {
        let path = list.index(n);
        let LbEndpoint { health_status, metadata: _, load_balancing_weight, host_identifier } = wire;
        let endpoint_path = path.field("endpoint");
        let endpoint = match host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
            Some(HostIdentifier::EndpointName(_)) => return Err(path.field("endpoint_name").unsupported()),
            None => return Err(endpoint_path.missing()),
        };
        // The names are for health checks and people.
        let WireEndpoint {
            address: wire,
            health_check_config,
            hostname: _,
            additional_addresses,
            observability_name: _,
        } = endpoint;
        refuse!(endpoint_path; health_check_config, additional_addresses);
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
        into.push(Endpoint {
            address,
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
