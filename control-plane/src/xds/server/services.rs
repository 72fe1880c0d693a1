//! tonic's services, all of them the same stream.

use tonic::{Request, Response, Status, Streaming};
use xds_proto::envoy::service::{
    cluster::v3::cluster_discovery_service_server::ClusterDiscoveryService,
    discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
    endpoint::v3::endpoint_discovery_service_server::EndpointDiscoveryService,
    extension::v3::extension_config_discovery_service_server::ExtensionConfigDiscoveryService,
    listener::v3::listener_discovery_service_server::ListenerDiscoveryService,
    route::v3::{
        route_discovery_service_server::RouteDiscoveryService,
        scoped_routes_discovery_service_server::ScopedRoutesDiscoveryService,
        virtual_host_discovery_service_server::VirtualHostDiscoveryService,
    },
    runtime::v3::runtime_discovery_service_server::RuntimeDiscoveryService,
    secret::v3::secret_discovery_service_server::SecretDiscoveryService,
};

use super::{
    Responses, XdsServer,
    wire::{Delta, Sotw},
};
use crate::xds::{Views, kinds};

#[tonic::async_trait]
impl<V: Views> AggregatedDiscoveryService for XdsServer<V> {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open::<Sotw>(request, None)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open::<Delta>(request, None)
    }
}

/// VHDS is incremental only.
#[tonic::async_trait]
impl<V: Views> VirtualHostDiscoveryService for XdsServer<V> {
    type DeltaVirtualHostsStream = Responses<DeltaDiscoveryResponse>;

    async fn delta_virtual_hosts(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaVirtualHostsStream>, Status> {
        self.open::<Delta>(request, Some(kinds::VIRTUAL_HOST))
    }
}

/// A service of one type. Its unary `Fetch` method is for polling over REST and is not served.
macro_rules! service {
    ($service:ident, $type_url:expr, $stream:ident, $delta:ident, $fetch:ident, $Stream:ident, $Delta:ident) => {
        #[tonic::async_trait]
        impl<V: Views> $service for XdsServer<V> {
            type $Stream = Responses<DiscoveryResponse>;
            type $Delta = Responses<DeltaDiscoveryResponse>;

            async fn $stream(
                &self,
                request: Request<Streaming<DiscoveryRequest>>,
            ) -> Result<Response<Self::$Stream>, Status> {
                self.open::<Sotw>(request, Some($type_url))
            }

            async fn $delta(
                &self,
                request: Request<Streaming<DeltaDiscoveryRequest>>,
            ) -> Result<Response<Self::$Delta>, Status> {
                self.open::<Delta>(request, Some($type_url))
            }

            async fn $fetch(
                &self,
                _: Request<DiscoveryRequest>,
            ) -> Result<Response<DiscoveryResponse>, Status> {
                Err(Status::unimplemented(
                    "resources are streamed, not fetched: use the stream or delta method",
                ))
            }
        }
    };
}

service!(
    ListenerDiscoveryService,
    kinds::LISTENER,
    stream_listeners,
    delta_listeners,
    fetch_listeners,
    StreamListenersStream,
    DeltaListenersStream
);
service!(
    RouteDiscoveryService,
    kinds::ROUTE,
    stream_routes,
    delta_routes,
    fetch_routes,
    StreamRoutesStream,
    DeltaRoutesStream
);
service!(
    ClusterDiscoveryService,
    kinds::CLUSTER,
    stream_clusters,
    delta_clusters,
    fetch_clusters,
    StreamClustersStream,
    DeltaClustersStream
);
service!(
    EndpointDiscoveryService,
    kinds::ENDPOINT,
    stream_endpoints,
    delta_endpoints,
    fetch_endpoints,
    StreamEndpointsStream,
    DeltaEndpointsStream
);
service!(
    SecretDiscoveryService,
    kinds::SECRET,
    stream_secrets,
    delta_secrets,
    fetch_secrets,
    StreamSecretsStream,
    DeltaSecretsStream
);
service!(
    ScopedRoutesDiscoveryService,
    kinds::SCOPED_ROUTE,
    stream_scoped_routes,
    delta_scoped_routes,
    fetch_scoped_routes,
    StreamScopedRoutesStream,
    DeltaScopedRoutesStream
);
service!(
    RuntimeDiscoveryService,
    kinds::RUNTIME,
    stream_runtime,
    delta_runtime,
    fetch_runtime,
    StreamRuntimeStream,
    DeltaRuntimeStream
);
service!(
    ExtensionConfigDiscoveryService,
    kinds::EXTENSION,
    stream_extension_configs,
    delta_extension_configs,
    fetch_extension_configs,
    StreamExtensionConfigsStream,
    DeltaExtensionConfigsStream
);
