//! The gRPC side: streams in, sessions inside, and nothing that a slow client could hold up but itself.
//!
//! Each stream is one task. It makes a response only when the transport has room for one, so a client that doesn't
//! read costs at most one response per type in its session, one in the channel and one in HTTP/2's buffers, and
//! gets the newest state when it reads again.

mod codec;
mod services;
pub(super) mod stream;
mod wire;

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use xds_proto::envoy::service::load_stats::v3::load_reporting_service_server::{
    self, LoadReportingServiceServer,
};

use super::{PeerIdentity, Subscribers, Views, session::Limits};
use codec::Responses;
use services::Discovery;
use stream::Origin;
use wire::Wire;

/// Metadata that says which workload's stream an agent relays, as `<namespace>/<name>`.
pub const WORKLOAD_METADATA: &str = "x-isthmus-workload";
/// SotW clients say it as well in the version of each type's first request, delta clients in the versions that they hold.
pub use xds_client::REVISION_METADATA;

/// How the server treats its streams.
#[derive(Debug, Clone)]
pub struct Options {
    /// Per stream.
    pub limits: Limits,
    /// Largest request. Default 16 MiB: a reconnecting client lists the versions of all that it holds.
    pub request_bytes: usize,
    /// Identifier of this replica, sent with every response.
    pub identifier: Arc<str>,
    /// A stream that says nothing for so long is closed. Default 15 s.
    pub first_request: Duration,
    /// How long a client that has seen a newer revision than this replica waits for it to catch up. Default 30 s. After
    /// that it is sent to another one.
    pub catch_up: Duration,
    /// How long a reconnecting client has to name its types before anything is removed. Default 200 ms.
    pub reopen: Duration,
    /// Between heartbeats, for clients that want them. Default 5 s.
    pub heartbeat: Duration,
    /// How often clients report their load. Default 10 s.
    pub load_interval: Duration,
}

impl Options {
    /// Defaults.
    pub fn new(identifier: impl Into<Arc<str>>) -> Self {
        Self {
            limits: Limits::default(),
            request_bytes: 16 << 20,
            identifier: identifier.into(),
            first_request: Duration::from_secs(15),
            catch_up: Duration::from_secs(30),
            reopen: Duration::from_millis(200),
            heartbeat: crate::xds::heartbeat::INTERVAL,
            load_interval: crate::xds::load::service::INTERVAL,
        }
    }
}

/// Serves the views to whoever may have them. Cheap to clone.
#[derive(Debug)]
pub struct XdsServer<V> {
    shared: Arc<Shared<V>>,
}

#[derive(Debug)]
pub(super) struct Shared<V> {
    pub(super) views: Arc<V>,
    pub(super) subscribers: Arc<Subscribers>,
    pub(super) options: Options,
    pub(super) draining: CancellationToken,
}

impl<V> Clone for XdsServer<V> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<V: Views> XdsServer<V> {
    /// A server of `views`, whose streams are listed in `subscribers`.
    pub fn new(views: Arc<V>, subscribers: Arc<Subscribers>, options: Options) -> Self {
        let draining = CancellationToken::new();
        Self { shared: Arc::new(Shared { views, subscribers, options, draining }) }
    }

    /// Every service, ready to be added to a tonic server: ADS, one service for each of Envoy's own types,
    /// and LRS.
    pub fn routes(&self) -> tonic::service::Routes {
        let mut routes = tonic::service::RoutesBuilder::default();
        let bytes = self.shared.options.request_bytes;
        macro_rules! add {
            ($($methods:ident),+) => {
                $(routes.add_service(Discovery::<V, services::$methods>::new(self.clone()));)+
            };
        }
        add!(
            Aggregated,
            Listeners,
            Routes,
            Clusters,
            Endpoints,
            Secrets,
            Extensions,
            ScopedRoutes,
            VirtualHosts,
            Runtime
        );
        routes.add_service(LoadReportingServiceServer::new(self.clone()).max_decoding_message_size(bytes));
        routes.routes()
    }

    /// Who is connected.
    pub fn subscribers(&self) -> &Arc<Subscribers> {
        &self.shared.subscribers
    }

    pub(super) fn shared(&self) -> &Arc<Shared<V>> {
        &self.shared
    }

    /// Ends all streams, and each new one, with UNAVAILABLE: clients go to another replica.
    pub fn drain(&self) {
        self.shared.draining.cancel();
    }

    fn open<W: Wire>(
        &self,
        request: tonic::Request<Streaming<W::Request>>,
        only: Option<&'static str>,
    ) -> Responses {
        let origin = Origin::of(&request, only);
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(stream::serve::<W, V>(self.shared.clone(), origin, request.into_inner(), sender));
        receiver
    }
}

/// `(service, method)` of everything that [`XdsServer::routes`] serves.
pub fn methods() -> Vec<(&'static str, &'static str)> {
    let mut methods = services::methods();
    methods.push((load_reporting_service_server::SERVICE_NAME, "StreamLoadStats"));
    methods
}

/// Makes a tonic server notice clients that are gone without a word, and never wait for small packets.
pub fn keepalive(server: tonic::transport::Server) -> tonic::transport::Server {
    server
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .tcp_nodelay(true)
}

fn peer<T>(request: &tonic::Request<T>) -> PeerIdentity {
    match request.extensions().get::<mesh_tls::grpc::PeerInfo>() {
        Some(info) => PeerIdentity {
            spiffe_id: info.spiffe_id.clone(),
            registration: info.registration,
            addr: Some(info.addr),
        },
        None => PeerIdentity { addr: request.remote_addr(), ..PeerIdentity::default() },
    }
}

#[cfg(test)]
mod tests;
