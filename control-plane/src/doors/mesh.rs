//! The mesh door: one TCP port, TLS 1.3, certificates of clients verified where offered. [`Admission`] asks `authz` who
//! may before a request is read, and every service behind it again. Whoever has no certificate has little of everything.

use std::{future::Future, sync::Arc};

use futures::FutureExt;
use mesh_tls::{ALPN_H2, ClientAuth, grpc, server_config};
use tokio::net::TcpListener;
use tonic::transport::Server;
use xds_proto::isthmus::{
    admin::v1::{
        admin_server::AdminServer, explain_server::ExplainServer, recovery_server::RecoveryServer,
        replicas_server::ReplicasServer, tokens_server::TokensServer,
    },
    bootstrap::v1::{
        bootstrap_server::BootstrapServer, certificates_server::CertificatesServer,
        endpoints_server::EndpointsServer,
    },
    ca::v1::certificate_authority_server::CertificateAuthorityServer,
    federation::v1::federation_server::FederationServer,
    raft::v1::raft_server::RaftServer,
};

use super::{
    MAX_ADMIN_MESSAGE, MAX_BOOTSTRAP_MESSAGE, MAX_JOIN_MESSAGE, MAX_NEWCOMER_STREAMS, MAX_SMALL_MESSAGE,
    MAX_STREAMS_PER_CONNECTION, NEWCOMER_CONNECTION_WINDOW, NEWCOMER_STREAM_WINDOW, admission::Admission,
    connections,
};
use crate::{
    admin::{
        AdminService, explain::ExplainService, recovery::RecoveryService, replicas::ReplicasService,
        tokens::TokensService,
    },
    app::App,
    ca::{bootstrap::BootstrapService, certificates::CertificatesService, service::AuthorityService},
    federation::service::FederationService,
    hubble,
    raft::RaftService,
    sources::nodes::EndpointsService,
    views::ModelViews,
    xds::{XdsServer, csds},
};

/// Serves until `stop` resolves and every stream has ended.
///
/// # Errors
/// The transport broke.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    raft: RaftServer<RaftService>,
    xds: &XdsServer<ModelViews>,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let tls = server_config(app.ca.own().clone(), app.bundles.clone(), ClientAuth::Optional, &[ALPN_H2])?;
    let authority = CertificateAuthorityServer::new(AuthorityService(app.clone()))
        .max_decoding_message_size(MAX_SMALL_MESSAGE)
        .max_encoding_message_size(usize::MAX);
    let routes = xds
        .routes()
        .add_service(raft)
        .add_service(authority)
        .add_service(
            BootstrapServer::new(BootstrapService(app.clone()))
                .max_decoding_message_size(MAX_BOOTSTRAP_MESSAGE),
        )
        .add_service(
            CertificatesServer::new(CertificatesService(app.clone()))
                .max_decoding_message_size(MAX_SMALL_MESSAGE),
        )
        .add_service(
            EndpointsServer::new(EndpointsService(app.clone())).max_decoding_message_size(MAX_SMALL_MESSAGE),
        )
        .add_service(
            FederationServer::new(FederationService(app.clone())).max_decoding_message_size(MAX_JOIN_MESSAGE),
        )
        .add_service(csds::service::server(app.clone()))
        .add_service(hubble::server(app.clone()))
        .add_service(
            ReplicasServer::new(ReplicasService(app.clone())).max_decoding_message_size(MAX_SMALL_MESSAGE),
        )
        .add_service(
            ExplainServer::new(ExplainService(app.clone())).max_decoding_message_size(MAX_SMALL_MESSAGE),
        )
        .add_service(
            TokensServer::new(TokensService(app.clone())).max_decoding_message_size(MAX_SMALL_MESSAGE),
        )
        .add_service(
            RecoveryServer::new(RecoveryService(app.clone())).max_decoding_message_size(MAX_SMALL_MESSAGE),
        )
        .add_service(
            AdminServer::new(AdminService(app.clone()))
                .max_decoding_message_size(MAX_ADMIN_MESSAGE)
                .max_encoding_message_size(usize::MAX),
        );
    let services = Admission::new(app.clone(), routes.prepare());
    let (known, newcomers) = connections::divide(app.gate.clone(), grpc::incoming(listener, tls));
    let stop = stop.shared();
    let for_known = crate::xds::server::keepalive(Server::builder())
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .serve_with_incoming_shutdown(services.clone(), known, stop.clone());
    let for_newcomers = crate::xds::server::keepalive(Server::builder())
        .max_concurrent_streams(MAX_NEWCOMER_STREAMS)
        .initial_stream_window_size(NEWCOMER_STREAM_WINDOW)
        .initial_connection_window_size(NEWCOMER_CONNECTION_WINDOW)
        .serve_with_incoming_shutdown(services, newcomers, stop);
    tokio::try_join!(for_known, for_newcomers)?;
    Ok(())
}
