//! One connection of a client: seen, matched to a chain, decrypted, served.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ::http::HeaderValue;
use bytes::Bytes;
use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{
    chain::{Chain, Chains, Filter},
    gate::Who,
    http::{self, Version},
    select::{Ends, FirstBytes},
};
use crate::{
    config::{Codec, OriginalSource, ProxyHeader},
    forward::Client,
    gateway::{self, Inspected, Passed, Wishes},
    io::{Io, Rewind},
    outbound::{Behalf, Source, on_behalf},
    policy::Connection,
    shared::Shared,
    telemetry::ListenerStats,
    tls::{ServerTls, forwarded_client_cert},
};

pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) client: SocketAddr,
    /// Whom the client asked, if the kernel redirected it here, and that is wanted to be known.
    pub(super) asked: Option<SocketAddr>,
    pub(super) chains: Arc<Chains>,
    pub(super) stats: Arc<ListenerStats>,
    pub(super) shared: Arc<Shared>,
}

pub(super) async fn serve(accepted: Accepted) {
    let Accepted { mut stream, client: direct, asked, chains, stats, shared } = accepted;
    let listener = chains.listener.clone();
    let _ = stream.set_nodelay(true);
    // Without it the other end is gone.
    let Some(local) = asked.or_else(|| stream.local_addr().ok()) else { return };
    let mut ends = Ends { local, remote: direct, direct };
    let mut bytes = BytesMut::new();
    if let Some(wanted) = &listener.filters.proxy_header {
        match passed(&mut stream, &mut bytes, wanted, listener.inspect_timeout).await {
            Ok(None) => {}
            Ok(Some(Passed { source, destination })) => {
                (ends.remote, ends.local) = (source, destination);
            }
            Err(reason) => {
                stats.no_chain.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(listener = %listener.name, client = %direct, %reason, "no PROXY header");
                return;
            }
        }
    }
    let client = ends.remote;
    let (inspects, http) = chains.inspects(ends);
    let (prefix, first) = if inspects {
        match gateway::inspect(&mut stream, bytes, listener.inspect_timeout, http).await {
            Inspected::Hello { bytes, wishes: Wishes { server_name, protocols } } => {
                (bytes, FirstBytes::Tls { server_name, protocols })
            }
            Inspected::Raw { bytes, protocol } => (bytes, FirstBytes::Raw { protocol }),
            Inspected::Silent { bytes } if listener.continue_on_timeout => {
                (bytes, FirstBytes::Raw { protocol: None })
            }
            Inspected::Silent { .. } | Inspected::Closed => return,
        }
    } else {
        (bytes.freeze(), FirstBytes::Unseen)
    };
    let Some(chain) = chains.choose(ends, &first).cloned() else {
        stats.no_chain.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(listener = %listener.name, %client, ?first, "no filter chain matches");
        return;
    };
    // A connection must not keep a replaced set of chains alive.
    drop(chains);
    let stream = Rewind::new(prefix, stream);
    let drain = chain.drain.clone();
    let who = Who { listener: &listener.name, stats: &stats, wanted: shared.access_log };
    let server_name = match first {
        FirstBytes::Tls { server_name, .. } => server_name,
        FirstBytes::Unseen | FirstBytes::Raw { .. } => None,
    };
    let source = listener.filters.original_source;
    let source = source.map(|OriginalSource { mark }| Source { ip: client.ip().to_canonical(), mark });
    let Ends { local, remote, direct } = ends;
    let behalf = Behalf { asked, source };
    let connection = Connection { local, remote, direct, peer: None, server_name, behalf };
    let serving = on_behalf(behalf, async {
        match &chain.tls {
            None => plain(&chain, who, stream, connection, &shared).await,
            Some(tls) => encrypted(&chain, tls, who, stream, connection, &shared).await,
        }
    });
    tokio::select! {
        () = serving => {}
        () = http::overtime(&drain) => {
            tracing::debug!(listener = %listener.name, %client, "connection of a former listener is closed");
        }
    }
}

/// Whom the connection is passed on for: None if for nobody else.
async fn passed(
    stream: &mut TcpStream,
    bytes: &mut BytesMut,
    wanted: &ProxyHeader,
    limit: Duration,
) -> Result<Option<Passed>, String> {
    match gateway::read_header(stream, bytes, limit).await {
        Err(error) => Err(error.to_string()),
        Ok(None) if wanted.optional => Ok(None),
        Ok(None) => Err("the connection does not begin with one".to_owned()),
        Ok(Some((version, _))) if wanted.disallowed.contains(&version) => {
            Err(format!("{version:?} is not allowed"))
        }
        Ok(Some((_, passed))) => Ok(passed),
    }
}

async fn plain(chain: &Chain, who: Who<'_>, stream: Rewind, connection: Connection, shared: &Arc<Shared>) {
    let io = Io::Client(stream);
    match &chain.filter {
        Filter::Tcp(tcp) => {
            let tunnel = gateway::tunnel(shared, tcp, io, connection.remote);
            chain.gate.guard(who, &connection, tunnel).await;
        }
        Filter::Http(service) => {
            let version = match service.manager.codec {
                Codec::Auto => Version::Either,
                Codec::Http1 => Version::Http1,
                Codec::Http2 => Version::Http2,
            };
            let client = Client {
                connection: connection.clone(),
                scheme: "http",
                certificate: None,
                peer_certificate: None,
            };
            let serving = http::serve(io, service.clone(), client, version, &chain.drain);
            chain.gate.guard(who, &connection, serving).await;
        }
    }
}

async fn encrypted(
    chain: &Chain,
    tls: &ServerTls,
    who: Who<'_>,
    stream: Rewind,
    mut connection: Connection,
    shared: &Arc<Shared>,
) {
    let client = connection.remote;
    let acceptor = TlsAcceptor::from(tls.config.clone());
    let handshake = tokio::time::timeout(chain.config.handshake_timeout, acceptor.accept(stream));
    let failed = |reason: &dyn std::fmt::Display| {
        who.stats.handshake_failures.fetch_add(1, Ordering::Relaxed);
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
    connection.server_name = session.server_name().map(str::to_owned);
    let peer = session.peer_certificates().and_then(|certs| mesh_tls::peer_spiffe_id(certs).ok());
    connection.peer = peer.map(|id| id.to_string());
    let certificate = session
        .peer_certificates()
        .and_then(|certs| forwarded_client_cert(tls.own_id().as_deref(), certs))
        .and_then(|value| HeaderValue::try_from(value).ok());
    let peer_certificate = session
        .peer_certificates()
        .and_then(|certs| certs.first())
        .map(|certificate| Bytes::copy_from_slice(certificate));
    let chosen = session.alpn_protocol().map(<[u8]>::to_vec);
    let io = Io::ClientTls(Box::new(stream));
    match &chain.filter {
        Filter::Tcp(tcp) => {
            let tunnel = gateway::tunnel(shared, tcp, io, client);
            chain.gate.guard(who, &connection, tunnel).await;
        }
        Filter::Http(service) => {
            let version = match (service.manager.codec, chosen.as_deref()) {
                (Codec::Http1, _) => Version::Http1,
                (Codec::Http2, _) => Version::Http2,
                (Codec::Auto, Some(mesh_tls::ALPN_H2)) => Version::Http2,
                (Codec::Auto, Some(mesh_tls::ALPN_HTTP11)) => Version::Http1,
                (Codec::Auto, _) => Version::Either,
            };
            let client =
                Client { connection: connection.clone(), scheme: "https", certificate, peer_certificate };
            let serving = http::serve(io, service.clone(), client, version, &chain.drain);
            chain.gate.guard(who, &connection, serving).await;
        }
    }
}
