//! The endpoints of a cluster.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};

use mesh_model::compile::MeshEndpoint;
use xds_proto::{
    envoy::config::{
        core::v3::{Locality, Metadata},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
            cluster_load_assignment::Policy, lb_endpoint::HostIdentifier,
        },
    },
    google::protobuf::Struct,
};

use super::wire::{address, number};

/// Envoy's own key for what [`TransportSocketMatch`](xds_proto::envoy::config::cluster::v3::cluster::TransportSocketMatch) reads.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// The assignment of one cluster. Endpoints that are not ready are left out, so that a priority without a
/// ready one falls to the next without a single request spent on finding out.
///
/// `overflow` percent go to the next priority though this one is ready, where there is one: Envoy gives a priority as much
/// of the load as its share of healthy endpoints times a factor, 140% unless it is told another one.
pub fn assignment(cluster: &str, endpoints: &[&MeshEndpoint], overflow: u8) -> ClusterLoadAssignment {
    let ready = || endpoints.iter().filter(|e| e.ready && e.weight > 0).copied();
    // Priorities must count from 0 without gaps (Envoy's EDS; gRPC refuses others).
    let levels: BTreeSet<u32> = ready().map(|e| e.priority).collect();
    let level = |priority| levels.iter().position(|p| *p == priority).unwrap_or(0) as u32;
    let mut localities: BTreeMap<(u32, &str), BTreeMap<SocketAddr, LbEndpoint>> = BTreeMap::new();
    for endpoint in ready() {
        let mut message = plain(endpoint.address, endpoint.weight);
        if endpoint.mtls {
            message.metadata = Some(Metadata {
                filter_metadata: HashMap::from([(SOCKET_MATCH.to_owned(), mtls_metadata())]),
                ..Default::default()
            });
        }
        localities
            .entry((level(endpoint.priority), endpoint.cluster.as_str()))
            .or_default()
            .insert(endpoint.address, message);
    }
    let factor = (overflow > 0 && levels.len() > 1).then(|| 100u32.saturating_sub(overflow.into()).max(1));
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        policy: factor.map(|factor| Policy { overprovisioning_factor: number(factor), ..Default::default() }),
        endpoints: localities
            .into_iter()
            .map(|((priority, region), members)| locality(region, priority, members.into_values().collect()))
            .collect(),
        ..Default::default()
    }
}

pub(super) fn plain(at: SocketAddr, weight: u32) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address(at)),
            ..Default::default()
        })),
        load_balancing_weight: number(weight.max(1)),
        ..Default::default()
    }
}

pub(super) fn locality(region: &str, priority: u32, members: Vec<LbEndpoint>) -> LocalityLbEndpoints {
    // The locality's share is that of its members (gRPC ignores localities without a weight).
    let weight = members
        .iter()
        .map(|m| m.load_balancing_weight.as_ref().map_or(1, |w| w.value))
        .fold(0u32, u32::saturating_add);
    LocalityLbEndpoints {
        locality: Some(Locality { region: region.to_owned(), ..Default::default() }),
        lb_endpoints: members,
        load_balancing_weight: number(weight.max(1)),
        priority,
        ..Default::default()
    }
}

/// What an endpoint with a proxy says of itself.
pub(super) fn mtls_metadata() -> Struct {
    super::cluster::boolean("mtls")
}
