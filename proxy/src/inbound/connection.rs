//! One connection of a client: seen, matched to a chain, decrypted, served.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use ::http::HeaderValue;
use bytes::Bytes;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{
    chain::{Chain, Chains, Filter},
    http::{self, Version},
    select::FirstBytes,
};
use crate::{
    config::Codec,
    forward::Client,
    gateway::{self, Inspected},
    io::{Io, Rewind},
    shared::Shared,
    telemetry::ListenerStats,
    tls::{ServerTls, forwarded_client_cert},
};

pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) client: SocketAddr,
    pub(super) chains: Arc<Chains>,
    pub(super) stats: Arc<ListenerStats>,
    pub(super) shared: Arc<Shared>,
}

pub(super) async fn serve(accepted: Accepted) {
    let Accepted { mut stream, client, chains, stats, shared } = accepted;
    let listener = chains.listener.clone();
    let _ = stream.set_nodelay(true);
    let (prefix, first) = if listener.inspects() {
        match gateway::inspect(&mut stream, listener.inspect_timeout).await {
            Inspected::Hello { bytes, server_name } => (bytes, FirstBytes::Tls { server_name }),
            Inspected::Raw { bytes } => (bytes, FirstBytes::Raw),
            Inspected::Silent { bytes } if listener.continue_on_timeout => (bytes, FirstBytes::Raw),
            Inspected::Silent { .. } | Inspected::Closed => return,
        }
    } else {
        (Bytes::new(), FirstBytes::Unseen)
    };
    let Some(chain) = chains.choose(&first).cloned() else {
        stats.no_chain.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(listener = %listener.name, %client, ?first, "no filter chain matches");
        return;
    };
    // A connection must not keep a replaced set of chains alive.
    drop(chains);
    let stream = Rewind::new(prefix, stream);
    let drain = chain.drain.clone();
    let serving = async {
        match &chain.tls {
            None => plain(&chain, Io::Client(stream), client, &shared).await,
            Some(tls) => encrypted(&chain, tls, stream, client, &stats, &shared).await,
        }
    };
    tokio::select! {
        () = serving => {}
        () = http::overtime(&drain) => {
            tracing::debug!(listener = %listener.name, %client, "connection of a former listener is closed");
        }
    }
}

async fn plain(chain: &Chain, io: Io, client: SocketAddr, shared: &Arc<Shared>) {
    match &chain.filter {
        Filter::Tcp(tcp) => gateway::tunnel(shared, tcp, io, client).await,
        Filter::Http(service) => {
            let version = match service.manager.codec {
                Codec::Auto => Version::Either,
                Codec::Http1 => Version::Http1,
                Codec::Http2 => Version::Http2,
            };
            let client = Client { address: client, scheme: "http", certificate: None };
            http::serve(io, service.clone(), client, version, &chain.drain).await;
        }
    }
}

async fn encrypted(
    chain: &Chain,
    tls: &ServerTls,
    stream: Rewind,
    client: SocketAddr,
    stats: &ListenerStats,
    shared: &Arc<Shared>,
) {
    let acceptor = TlsAcceptor::from(tls.config.clone());
    let handshake = tokio::time::timeout(chain.config.handshake_timeout, acceptor.accept(stream));
    let failed = |reason: &dyn std::fmt::Display| {
        stats.handshake_failures.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(chain = %chain.config.name, %client, %reason, "TLS handshake failed");
    };
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return failed(&error),
        Err(_) => return failed(&"not done in time"),
    };
    let session = stream.get_ref().1;
    if tls.require_sni && session.server_name().is_none() {
        return failed(&"no server name");
    }
    let certificate = session
        .peer_certificates()
        .and_then(|certs| forwarded_client_cert(tls.own_id().as_deref(), certs))
        .and_then(|value| HeaderValue::try_from(value).ok());
    let chosen = session.alpn_protocol().map(<[u8]>::to_vec);
    let io = Io::ClientTls(Box::new(stream));
    match &chain.filter {
        Filter::Tcp(tcp) => gateway::tunnel(shared, tcp, io, client).await,
        Filter::Http(service) => {
            let version = match (service.manager.codec, chosen.as_deref()) {
                (Codec::Http1, _) => Version::Http1,
                (Codec::Http2, _) => Version::Http2,
                (Codec::Auto, Some(mesh_tls::ALPN_H2)) => Version::Http2,
                (Codec::Auto, Some(mesh_tls::ALPN_HTTP11)) => Version::Http1,
                (Codec::Auto, _) => Version::Either,
            };
            let client = Client { address: client, scheme: "https", certificate };
            http::serve(io, service.clone(), client, version, &chain.drain).await;
        }
    }
}
