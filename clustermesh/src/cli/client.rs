//! The connection to the control plane.

use std::{future::Future, time::Duration};

use mesh_tls::grpc;
use tonic::{Response, Status, transport::Channel};
use xds_proto::{
    envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
    isthmus::admin::v1::admin_client::AdminClient,
};

use super::{failure::Failure, server::Server};

/// Longest time for a request that waits for nothing.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest message either way, in bytes: a list of every object of a large cluster.
const MAX_MESSAGE: usize = 256 << 20;

pub(crate) type Admin = AdminClient<Channel>;
pub(crate) type Csds = ClientStatusDiscoveryServiceClient<Channel>;

/// Connects to the server.
pub(crate) async fn connect(server: &Server) -> Result<Admin, Failure> {
    Ok(AdminClient::new(channel(server).await?)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}

/// Connects to the server, for what data planes have.
pub(crate) async fn connect_csds(server: &Server) -> Result<Csds, Failure> {
    Ok(ClientStatusDiscoveryServiceClient::new(channel(server).await?).max_decoding_message_size(MAX_MESSAGE))
}

/// The connection alone.
pub(crate) async fn channel(server: &Server) -> Result<Channel, Failure> {
    let connected = match server {
        Server::Socket(path) => grpc::connect_unix(path).await,
        // The name of the host plays no part: who answers is known by its SPIFFE ID.
        Server::Door { address, tls } => grpc::connect(address, tls.clone(), "replica.isthmus").await,
    };
    connected.map_err(|error| {
        let reason = match error {
            mesh_tls::Error::Connect { reason, .. } => reason,
            other => other.to_string(),
        };
        Failure::unreachable(unreachable(server, &reason))
    })
}

fn unreachable(server: &Server, reason: &str) -> String {
    let next = match server {
        Server::Door { .. } => {
            "name the mesh door of a replica with --server, and the folder of 'clustermesh admin create' with \
             --credentials"
        }
        Server::Socket(_) if reason.contains("Permission denied") => {
            "run it as root or as the user that runs the control plane"
        }
        Server::Socket(_) => {
            "start one with 'clustermesh init', or name its socket with --socket or CLUSTERMESH_SOCKET"
        }
    };
    format!("no control plane is reachable at {server} ({reason}); {next}")
}

/// Bounds a request in time.
pub(crate) async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::timed_out(format!(
            "the control plane did not answer within {} s; see whether it has a leader with 'clustermesh status'",
            limit.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_to_do_next() {
        let socket = Server::Socket("/x.sock".into());
        assert_eq!(
            unreachable(&socket, "No such file or directory (os error 2)"),
            "no control plane is reachable at /x.sock (No such file or directory (os error 2)); \
             start one with 'clustermesh init', or name its socket with --socket or CLUSTERMESH_SOCKET"
        );
        assert!(unreachable(&socket, "Permission denied (os error 13)").ends_with("runs the control plane"));
    }
}
