//! The administrators' unix socket. Who calls is known by the kernel's word: root and the user of this process
//! are the local administrator, anybody else is nobody.

use std::{future::Future, path::Path, sync::Arc};

use mesh_tls::grpc;
use tokio::net::UnixListener;
use tonic::transport::Server;
use xds_proto::isthmus::{
    admin::v1::{
        admin_server::AdminServer, explain_server::ExplainServer, recovery_server::RecoveryServer,
        replicas_server::ReplicasServer, tokens_server::TokensServer,
    },
    ca::v1::certificate_authority_server::CertificateAuthorityServer,
};

use super::MAX_ADMIN_MESSAGE;
use crate::{
    admin::{
        AdminService, explain::ExplainService, recovery::RecoveryService, replicas::ReplicasService,
        tokens::TokensService,
    },
    app::App,
    ca::service::AuthorityService,
    hubble,
    xds::csds,
};

/// Listens on the socket, and makes its folder if need be.
///
/// # Errors
/// The path is taken or can't be written.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|e| anyhow::anyhow!("--admin-socket: {}: {e}", folder.display()))?;
    }
    Ok(grpc::bind_unix(path, 0o600)?)
}

/// Serves until `stop` resolves and every stream has ended.
///
/// # Errors
/// The transport broke.
pub async fn serve(
    app: Arc<App>,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let replicas = ReplicasServer::new(ReplicasService(app.clone()));
    let tokens = TokensServer::new(TokensService(app.clone()));
    let explain = ExplainServer::new(ExplainService(app.clone()));
    let flows = hubble::server(app.clone());
    let clients = csds::service::server(app.clone());
    let recovery = RecoveryServer::new(RecoveryService(app.clone()));
    let admin = AdminServer::new(AdminService(app.clone()))
        .max_decoding_message_size(MAX_ADMIN_MESSAGE)
        .max_encoding_message_size(usize::MAX);
    let authority =
        CertificateAuthorityServer::new(AuthorityService(app)).max_encoding_message_size(usize::MAX);
    Server::builder()
        .add_service(admin)
        .add_service(replicas)
        .add_service(tokens)
        .add_service(explain)
        .add_service(clients)
        .add_service(flows)
        .add_service(authority)
        .add_service(recovery)
        .serve_with_incoming_shutdown(grpc::incoming_unix(listener), stop)
        .await?;
    Ok(())
}
