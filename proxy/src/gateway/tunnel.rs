//! `tcp_proxy`: a connection to an endpoint of the cluster, and bytes in both directions.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use super::copy;
use crate::{
    balance::Failure,
    config::TcpProxy,
    io::Io,
    outbound::{UpstreamCluster, behalf, dial},
    shared::Shared,
    tls::Offer,
};

/// Passes a client's connection on. Without an endpoint it is closed: there is no other way to say so.
pub async fn tunnel(shared: &Arc<Shared>, tcp: &TcpProxy, client: Io, address: SocketAddr) {
    let Some(cluster) = shared.cluster(&tcp.cluster) else {
        tracing::debug!(cluster = %tcp.cluster, client = %address, "no such cluster");
        return;
    };
    let Some(_permit) = cluster.try_connection() else {
        cluster.stats.overflow.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let Some((upstream, serving)) = connect(&cluster, tcp.connect_attempts, address).await else { return };
    cluster.stats.active_connections.fetch_add(1, Ordering::Relaxed);
    let copied = copy(client, upstream, tcp.idle_timeout).await;
    cluster.stats.active_connections.fetch_sub(1, Ordering::Relaxed);
    drop(serving);
    match copied {
        Ok((sent, received)) => {
            tracing::debug!(cluster = %tcp.cluster, client = %address, sent, received, "connection is through");
        }
        Err(error) => tracing::debug!(cluster = %tcp.cluster, client = %address, %error, "connection broke"),
    }
}

async fn connect(
    cluster: &Arc<UpstreamCluster>,
    attempts: u32,
    client: SocketAddr,
) -> Option<(Io, impl Drop + use<>)> {
    let mut tried = vec![];
    for _ in 0..attempts {
        let Some(host) = cluster.choose(&tried) else {
            cluster.stats.no_endpoint.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(cluster = %cluster.config.name, %client, "no healthy upstream");
            return None;
        };
        let serving = cluster.begin(&host);
        match dial(cluster, &host, behalf().source, Offer::Nothing).await {
            Ok(io) => {
                cluster.stats.connections.fetch_add(1, Ordering::Relaxed);
                cluster.on_success(&host);
                return Some((io, serving));
            }
            Err(error) => {
                cluster.stats.connect_failures.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(cluster = %cluster.config.name, %client, %error, "upstream connect error");
                cluster.on_failure(&host, Failure::Local);
                tried.push(host);
            }
        }
    }
    None
}
