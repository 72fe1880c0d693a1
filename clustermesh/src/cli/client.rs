//! The connection to the control plane.

use std::{future::Future, path::Path, time::Duration};

use tonic::{Response, Status, transport::Channel};
use xds_proto::{
    envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
    isthmus::admin::v1::admin_client::AdminClient,
};

use super::failure::Failure;

/// Longest time for a request that waits for nothing.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest message either way, in bytes: a list of every object of a large cluster.
const MAX_MESSAGE: usize = 256 << 20;

pub(crate) type Admin = AdminClient<Channel>;
pub(crate) type Csds = ClientStatusDiscoveryServiceClient<Channel>;

/// Connects to the socket.
pub(crate) async fn connect(socket: &Path) -> Result<Admin, Failure> {
    Ok(AdminClient::new(channel(socket).await?)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}

/// Connects to the socket, for what data planes have.
pub(crate) async fn connect_csds(socket: &Path) -> Result<Csds, Failure> {
    Ok(ClientStatusDiscoveryServiceClient::new(channel(socket).await?).max_decoding_message_size(MAX_MESSAGE))
}

/// The connection alone.
pub(crate) async fn channel(socket: &Path) -> Result<Channel, Failure> {
    mesh_tls::grpc::connect_unix(socket).await.map_err(|error| {
        let reason = match error {
            mesh_tls::Error::Connect { reason, .. } => reason,
            other => other.to_string(),
        };
        Failure::unreachable(unreachable(&socket.display().to_string(), &reason))
    })
}

fn unreachable(socket: &str, reason: &str) -> String {
    let next = if reason.contains("Permission denied") {
        "run it as root or as the user that runs the control plane"
    } else {
        "start one with 'clustermesh init', or name its socket with --socket or CLUSTERMESH_SOCKET"
    };
    format!("no control plane is reachable at {socket} ({reason}); {next}")
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
        assert_eq!(
            unreachable("/x.sock", "No such file or directory (os error 2)"),
            "no control plane is reachable at /x.sock (No such file or directory (os error 2)); \
             start one with 'clustermesh init', or name its socket with --socket or CLUSTERMESH_SOCKET"
        );
        assert!(
            unreachable("/x.sock", "Permission denied (os error 13)").ends_with("runs the control plane")
        );
    }
}
