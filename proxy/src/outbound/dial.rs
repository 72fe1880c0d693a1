//! New connections.

use std::{net::SocketAddr, sync::Arc};

use tokio_rustls::TlsConnector;

use super::{
    Host, UpstreamCluster,
    behalf::{self, Source},
    kernel,
};
use crate::{io::Io, tls::Offer};

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    /// TCP.
    Refused,
    /// TLS.
    Handshake,
    /// Neither in time.
    Timeout,
    /// Certificate or roots have not arrived.
    NotReady,
    /// A circuit breaker forbids it.
    Overflow,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConnectError {
    /// See there.
    pub failure: ConnectFailure,
    /// For people.
    pub reason: Arc<str>,
}

impl ConnectError {
    pub(super) fn new(failure: ConnectFailure, reason: impl Into<Arc<str>>) -> Self {
        Self { failure, reason: reason.into() }
    }

    /// Envoy's name of the reset reason.
    pub fn reset_reason(&self) -> &'static str {
        match self.failure {
            ConnectFailure::Refused | ConnectFailure::Handshake | ConnectFailure::NotReady => {
                "remote connection failure"
            }
            ConnectFailure::Timeout => "connection timeout",
            ConnectFailure::Overflow => "overflow",
        }
    }
}

/// Connects to an endpoint, in the name of `source` if one is given, with TLS where the cluster has it.
///
/// # Errors
/// See [`ConnectFailure`].
pub async fn dial(
    cluster: &UpstreamCluster,
    host: &Host,
    source: Option<Source>,
    offer: Offer,
) -> Result<Io, ConnectError> {
    dial_to(cluster, host.socket, host.address, source, offer).await
}

/// The same to any address, in one of the ways of the cluster.
pub(super) async fn dial_to(
    cluster: &UpstreamCluster,
    socket: usize,
    address: SocketAddr,
    source: Option<Source>,
    offer: Offer,
) -> Result<Io, ConnectError> {
    let limit = cluster.config.connect_timeout;
    match tokio::time::timeout(limit, connect(cluster, socket, address, source, offer)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::new(
            ConnectFailure::Timeout,
            format!("no connection to {address} within {limit:?}"),
        )),
    }
}

async fn connect(
    cluster: &UpstreamCluster,
    socket: usize,
    address: SocketAddr,
    source: Option<Source>,
    offer: Offer,
) -> Result<Io, ConnectError> {
    let tls = cluster.tls(socket);
    if let Some(tls) = tls
        && !tls.ready()
    {
        let reason = format!("certificate or roots of cluster {:?} have not arrived", cluster.config.name);
        return Err(ConnectError::new(ConnectFailure::NotReady, reason));
    }
    let refused = |e: std::io::Error| ConnectError::new(ConnectFailure::Refused, format!("{address}: {e}"));
    let connected = match source {
        // A client's name goes before the cluster's own.
        Some(_) => behalf::connect(address, source).await,
        None => kernel::connect(&cluster.config.socket, address).await,
    };
    let stream = connected.map_err(refused)?;
    // Small writes must not wait for each other's acknowledgement.
    stream.set_nodelay(true).map_err(refused)?;
    let Some(tls) = tls else { return Ok(Io::Endpoint(stream)) };
    let connector = TlsConnector::from(tls.config(offer));
    let stream = connector
        .connect(tls.server_name(address.ip()), stream)
        .await
        .map_err(|e| ConnectError::new(ConnectFailure::Handshake, format!("TLS with {address}: {e}")))?;
    Ok(Io::EndpointTls(Box::new(stream)))
}

/// Whether ALPN chose HTTP/2.
pub(super) fn chose_http2(io: &Io) -> bool {
    match io {
        Io::EndpointTls(stream) => stream.get_ref().1.alpn_protocol() == Some(mesh_tls::ALPN_H2),
        Io::Client(_) | Io::ClientTls(_) | Io::Endpoint(_) => false,
    }
}
