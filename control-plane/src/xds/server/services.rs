//! The gRPC services of xDS, all of them the same stream. Not tonic's generated ones: those build a message for each
//! response, of resources that are shared and encoded already.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    marker::PhantomData,
    task::{Context, Poll},
};

use prost::Message;
use tonic::{
    Request, Status, Streaming,
    body::Body,
    codec::BufferSettings,
    codegen::{
        Service,
        http::{self, HeaderValue, header::CONTENT_TYPE},
    },
    server::NamedService,
};
use tonic_prost::ProstDecoder;
use xds_proto::envoy::service::{
    cluster::v3::cluster_discovery_service_server as cluster,
    discovery::v3::aggregated_discovery_service_server as aggregated,
    endpoint::v3::endpoint_discovery_service_server as endpoint,
    extension::v3::extension_config_discovery_service_server as extension,
    listener::v3::listener_discovery_service_server as listener,
    route::v3::{
        route_discovery_service_server as route, scoped_routes_discovery_service_server as scoped_routes,
        virtual_host_discovery_service_server as virtual_host,
    },
    runtime::v3::runtime_discovery_service_server as runtime,
    secret::v3::secret_discovery_service_server as secret,
};

use super::{
    XdsServer,
    codec::Outgoing,
    wire::{Delta, Sotw, Wire},
};
use crate::{
    shown,
    xds::{Views, kinds},
};

/// What a stream keeps for reading while nothing is said, where tonic would keep 8 KiB. Larger requests get more.
const BUFFER_BYTES: usize = 1 << 10;

/// How the messages of a call are compressed. Source: gRPC's `PROTOCOL-HTTP2.md` and `compression.md`.
const ENCODING: &str = "grpc-encoding";
/// What the other end may use.
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";
/// Not at all.
const IDENTITY: &str = "identity";

/// What a service is called, and what it serves.
pub(super) trait Methods: Send + Sync + 'static {
    /// The full name.
    const NAME: &'static str;
    /// Its method for the state of the world, if it has one.
    const SOTW: Option<&'static str>;
    /// Its incremental method.
    const DELTA: &'static str;
    /// The only type; None: any.
    const ONLY: Option<&'static str>;
}

macro_rules! services {
    ($($service:ident: $module:ident, $sotw:expr, $delta:literal, $only:expr;)+) => {
        $(
            pub(super) enum $service {}

            impl Methods for $service {
                const NAME: &'static str = $module::SERVICE_NAME;
                const SOTW: Option<&'static str> = $sotw;
                const DELTA: &'static str = $delta;
                const ONLY: Option<&'static str> = $only;
            }
        )+

        /// `(service, method)` of all of them.
        pub(super) fn methods() -> Vec<(&'static str, &'static str)> {
            let mut methods = Vec::new();
            $(
                methods.extend($service::SOTW.map(|method| ($service::NAME, method)));
                methods.push(($service::NAME, $service::DELTA));
            )+
            methods
        }
    };
}

services! {
    Aggregated: aggregated, Some("StreamAggregatedResources"), "DeltaAggregatedResources", None;
    Listeners: listener, Some("StreamListeners"), "DeltaListeners", Some(kinds::LISTENER);
    Routes: route, Some("StreamRoutes"), "DeltaRoutes", Some(kinds::ROUTE);
    Clusters: cluster, Some("StreamClusters"), "DeltaClusters", Some(kinds::CLUSTER);
    Endpoints: endpoint, Some("StreamEndpoints"), "DeltaEndpoints", Some(kinds::ENDPOINT);
    Secrets: secret, Some("StreamSecrets"), "DeltaSecrets", Some(kinds::SECRET);
    Extensions: extension, Some("StreamExtensionConfigs"), "DeltaExtensionConfigs", Some(kinds::EXTENSION);
    ScopedRoutes: scoped_routes, Some("StreamScopedRoutes"), "DeltaScopedRoutes", Some(kinds::SCOPED_ROUTE);
    VirtualHosts: virtual_host, None, "DeltaVirtualHosts", Some(kinds::VIRTUAL_HOST);
    Runtime: runtime, Some("StreamRuntime"), "DeltaRuntime", Some(kinds::RUNTIME);
}

/// One service.
pub(super) struct Discovery<V, M> {
    server: XdsServer<V>,
    methods: PhantomData<fn() -> M>,
}

impl<V: Views, M: Methods> Discovery<V, M> {
    pub(super) fn new(server: XdsServer<V>) -> Self {
        Self { server, methods: PhantomData }
    }
}

impl<V, M> Clone for Discovery<V, M> {
    fn clone(&self) -> Self {
        Self { server: self.server.clone(), methods: PhantomData }
    }
}

impl<V, M: Methods> NamedService for Discovery<V, M> {
    const NAME: &'static str = M::NAME;
}

impl<V: Views, M: Methods> Service<http::Request<Body>> for Discovery<V, M> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let reason = match method {
            _ if Some(method) == M::SOTW => return ready(Ok(self.stream::<Sotw>(request))),
            _ if method == M::DELTA => return ready(Ok(self.stream::<Delta>(request))),
            _ if method.starts_with("Fetch") => {
                "resources are streamed, not fetched: use the stream or delta method"
            }
            _ => "there is no such method",
        };
        ready(Ok(Status::unimplemented(reason).into_http()))
    }
}

impl<V: Views, M: Methods> Discovery<V, M> {
    fn stream<W: Wire>(&self, request: http::Request<Body>) -> http::Response<Body> {
        if let Some(encoding) = request.headers().get(ENCODING).filter(|encoding| *encoding != IDENTITY) {
            return not_decoded(encoding);
        }
        let largest = self.server.shared().options.request_bytes;
        let requests = request.map(|body| requests(body, largest));
        let responses = self.server.open::<W>(Request::from_http(requests), M::ONLY);
        let mut response = http::Response::new(Body::new(Outgoing::<W>::new(responses)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

/// Requests are not compressed here, and their client is to learn how they may be.
fn not_decoded(encoding: &HeaderValue) -> http::Response<Body> {
    let named = String::from_utf8_lossy(encoding.as_bytes());
    let reason = format!("{ENCODING} is {:?} and must be {IDENTITY:?}, or left out", shown::word(&named));
    let mut response = Status::unimplemented(reason).into_http();
    response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(IDENTITY));
    response
}

/// Requests up to a size, none of them compressed. One that says it is ends the stream: INTERNAL.
fn requests<T: Message + Default + 'static>(body: Body, largest: usize) -> Streaming<T> {
    // What is decoded at once is nothing to a decoder.
    let decoder = ProstDecoder::<T>::new(BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES));
    Streaming::new_request(decoder, body, None, Some(largest))
}
