//! The types that are served, and what the order between them is.
//!
//! Make before break: what is referred to is sent before what refers to it, and removed after it. Envoy's own
//! order is CDS, EDS, LDS, RDS
//! (<https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#eventual-consistency-considerations>);
//! the agent's types follow the same idea: a policy exists before the endpoint that it protects.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
};

/// `type.googleapis.com/envoy.service.runtime.v3.Runtime`
pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
/// SDS.
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// CDS.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// EDS.
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// ECDS.
pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// LDS.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// SRDS.
pub const SCOPED_ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
/// RDS.
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// VHDS.
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
/// Roots by trust domain, for agents.
pub const TRUST_BUNDLE: &str = "type.googleapis.com/isthmus.agent.v1.TrustBundle";
/// Nodes and their pod ranges, for agents.
pub const NODE: &str = "type.googleapis.com/isthmus.agent.v1.Node";
/// Compiled policy, for agents.
pub const POLICY_CLASS: &str = "type.googleapis.com/isthmus.agent.v1.PolicyClass";
/// Address to identity, for agents.
pub const WORKLOAD_ADDRESS: &str = "type.googleapis.com/isthmus.agent.v1.WorkloadAddress";
/// The node's own workloads, for agents.
pub const LOCAL_ENDPOINT: &str = "type.googleapis.com/isthmus.agent.v1.LocalEndpoint";
/// The host network of the node itself, for agents.
pub const HOST_ENDPOINT: &str = "type.googleapis.com/isthmus.agent.v1.HostEndpoint";
/// Virtual addresses and backends, for agents.
pub const SERVICE: &str = "type.googleapis.com/isthmus.agent.v1.Service";
/// Roots and gateways of the serving cluster, for peers.
pub const PEER_CLUSTER: &str = "type.googleapis.com/isthmus.federation.v1.PeerCluster";
/// Exported services, for peers.
pub const EXPORTED_SERVICE: &str = "type.googleapis.com/isthmus.federation.v1.ExportedService";

/// How one type behaves on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Position in the stream when several types have something to say; lower goes first.
    pub rank: u8,
    /// Changes of this type wait until these have nothing unsent and nothing unacknowledged.
    pub waits_for: &'static [&'static str],
    /// Removals of this type wait until these have settled, and are held while one of these runs an older
    /// configuration because it refused the new one.
    pub referenced_by: &'static [&'static str],
    /// An empty first request means "everything". In the protocol that is LDS and CDS (Envoy: SRDS too); for
    /// other types Envoy sends empty requests when it has *lost* interest.
    pub legacy_wildcard: bool,
    /// A SotW response is the full state: what is not in it is gone.
    pub full_state: bool,
    /// The type whose resources are sent again after a change of this one that refers to them. Envoy keeps a
    /// changed cluster warming, and its ACK back, until the cluster's endpoints arrive after it, changed or not.
    pub warms: Option<&'static str>,
    /// Resources are asked for by names that are not theirs: VHDS, where a name is `<route configuration>/<authority>`,
    /// and a virtual host serves several authorities. A name that nothing serves is answered as not to be resolved,
    /// on which the client answers the request that waits for it.
    pub aliases: bool,
}

const PLAIN: Kind = Kind {
    rank: u8::MAX,
    waits_for: &[],
    referenced_by: &[],
    legacy_wildcard: false,
    full_state: false,
    warms: None,
    aliases: false,
};

/// The kind of a type. A type that is not known is served like any other, with whatever a view has of it
/// (which is nothing): see [`Event::UnknownType`](super::session::Event::UnknownType).
pub fn kind(type_url: &str) -> Kind {
    match type_url {
        RUNTIME => Kind { rank: 0, ..PLAIN },
        // Nothing waits longer than a secret: clusters and listeners stay warming without theirs.
        SECRET => Kind { rank: 1, referenced_by: &[CLUSTER, LISTENER], ..PLAIN },
        CLUSTER => Kind {
            rank: 2,
            referenced_by: &[LISTENER, ROUTE, SCOPED_ROUTE, VIRTUAL_HOST],
            legacy_wildcard: true,
            full_state: true,
            warms: Some(ENDPOINT),
            ..PLAIN
        },
        // Never waits for CDS: Envoy holds the CDS ACK back until it has these.
        ENDPOINT => Kind { rank: 3, referenced_by: &[CLUSTER], ..PLAIN },
        EXTENSION => Kind { rank: 4, referenced_by: &[LISTENER], ..PLAIN },
        LISTENER => Kind {
            rank: 5,
            waits_for: &[CLUSTER, ENDPOINT],
            legacy_wildcard: true,
            full_state: true,
            warms: Some(ROUTE),
            ..PLAIN
        },
        SCOPED_ROUTE => Kind {
            rank: 6,
            waits_for: &[CLUSTER, ENDPOINT, LISTENER],
            legacy_wildcard: true,
            full_state: true,
            ..PLAIN
        },
        ROUTE => Kind {
            rank: 7,
            waits_for: &[CLUSTER, ENDPOINT, LISTENER],
            referenced_by: &[LISTENER, SCOPED_ROUTE],
            ..PLAIN
        },
        VIRTUAL_HOST => Kind { rank: 8, waits_for: &[CLUSTER, ENDPOINT], aliases: true, ..PLAIN },
        TRUST_BUNDLE => Kind { rank: 20, ..PLAIN },
        NODE => Kind { rank: 21, ..PLAIN },
        POLICY_CLASS => Kind { rank: 22, referenced_by: &[LOCAL_ENDPOINT, HOST_ENDPOINT], ..PLAIN },
        WORKLOAD_ADDRESS => Kind { rank: 23, ..PLAIN },
        LOCAL_ENDPOINT => Kind { rank: 24, waits_for: &[POLICY_CLASS], ..PLAIN },
        SERVICE => Kind { rank: 25, ..PLAIN },
        HOST_ENDPOINT => Kind { rank: 26, waits_for: &[POLICY_CLASS], ..PLAIN },
        PEER_CLUSTER => Kind { rank: 30, referenced_by: &[EXPORTED_SERVICE], ..PLAIN },
        EXPORTED_SERVICE => Kind { rank: 31, waits_for: &[PEER_CLUSTER], ..PLAIN },
        _ => PLAIN,
    }
}

impl Kind {
    /// Whether the type is one that is served.
    pub fn is_known(&self) -> bool {
        self.rank != u8::MAX
    }
}

/// Whether [`kind`] has an entry of its own for the type.
pub fn is_known(type_url: &str) -> bool {
    kind(type_url).is_known()
}

/// The type URL as a string that all who speak of the type share. One that is not known gets a string of its own.
pub fn interned(type_url: &str) -> Arc<str> {
    static ALL: OnceLock<HashSet<Arc<str>>> = OnceLock::new();
    let all = ALL.get_or_init(|| KNOWN.iter().map(|type_url| Arc::from(*type_url)).collect());
    all.get(type_url).cloned().unwrap_or_else(|| type_url.into())
}

/// Every type that [`kind`] has an entry for.
const KNOWN: [&str; 18] = [
    RUNTIME,
    SECRET,
    CLUSTER,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    SCOPED_ROUTE,
    ROUTE,
    VIRTUAL_HOST,
    TRUST_BUNDLE,
    NODE,
    POLICY_CLASS,
    WORKLOAD_ADDRESS,
    LOCAL_ENDPOINT,
    SERVICE,
    HOST_ENDPOINT,
    PEER_CLUSTER,
    EXPORTED_SERVICE,
];

#[cfg(test)]
mod tests {
    use xds_proto::{
        envoy::{
            config::{
                cluster::v3::Cluster,
                core::v3::TypedExtensionConfig,
                endpoint::v3::ClusterLoadAssignment,
                listener::v3::Listener,
                route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost},
            },
            extensions::transport_sockets::tls::v3::Secret,
            service::runtime::v3::Runtime,
        },
        isthmus::{agent::v1 as agent, federation::v1 as federation},
        type_url,
    };

    use super::*;

    #[test]
    fn constants_are_the_type_urls_of_their_messages() {
        assert_eq!(RUNTIME, type_url::<Runtime>());
        assert_eq!(SECRET, type_url::<Secret>());
        assert_eq!(CLUSTER, type_url::<Cluster>());
        assert_eq!(ENDPOINT, type_url::<ClusterLoadAssignment>());
        assert_eq!(EXTENSION, type_url::<TypedExtensionConfig>());
        assert_eq!(LISTENER, type_url::<Listener>());
        assert_eq!(SCOPED_ROUTE, type_url::<ScopedRouteConfiguration>());
        assert_eq!(ROUTE, type_url::<RouteConfiguration>());
        assert_eq!(VIRTUAL_HOST, type_url::<VirtualHost>());
        assert_eq!(TRUST_BUNDLE, type_url::<agent::TrustBundle>());
        assert_eq!(NODE, type_url::<agent::Node>());
        assert_eq!(POLICY_CLASS, type_url::<agent::PolicyClass>());
        assert_eq!(WORKLOAD_ADDRESS, type_url::<agent::WorkloadAddress>());
        assert_eq!(LOCAL_ENDPOINT, type_url::<agent::LocalEndpoint>());
        assert_eq!(SERVICE, type_url::<agent::Service>());
        assert_eq!(HOST_ENDPOINT, type_url::<agent::HostEndpoint>());
        assert_eq!(PEER_CLUSTER, type_url::<federation::PeerCluster>());
        assert_eq!(EXPORTED_SERVICE, type_url::<federation::ExportedService>());
    }

    #[test]
    fn what_waits_goes_later_so_that_waiting_can_not_go_in_circles() {
        for of in KNOWN {
            assert!(is_known(of));
            for first in kind(of).waits_for {
                assert!(kind(first).rank < kind(of).rank, "{of} waits for {first}");
            }
        }
        let removed_after = |of: &str| kind(of).referenced_by;
        assert!(removed_after(CLUSTER).contains(&ROUTE) && !removed_after(ROUTE).contains(&CLUSTER));
        assert!(removed_after(ENDPOINT).contains(&CLUSTER) && !removed_after(CLUSTER).contains(&ENDPOINT));
    }
}
