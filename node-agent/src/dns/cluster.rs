//! Names of services: what the agent tells of them, for as long as it is there, and answers to whoever asks for them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};

use dns_proxy::{
    cluster::{Domains, Zone},
    serve::{Cluster, ClusterListeners, Fate},
};
use mesh_model::resource::NamespacedName;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tonic::Streaming;
use xds_proto::isthmus::local::v1::{
    DnsCount, DnsCountRequest, DnsNames, DnsNamesRequest, dns_client::DnsClient,
};

use super::{args::ClusterDnsArgs, named};
use crate::subscribe::{Cache, Resources};

/// Between attempts to reach the agent.
const RETRY: Duration = Duration::from_millis(200);
/// Between attempts to listen, where another process does.
const REBIND: Duration = Duration::from_secs(1);
/// Between two reports of what became of questions.
const REPORT: Duration = Duration::from_secs(1);
/// Names of 20,000 services with their endpoints.
const MAX_MESSAGE: usize = 128 << 20;
/// Whom the node itself asks.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the agent tells of the cluster when it starts the process.
pub(super) struct Start<'a> {
    pub(super) args: &'a ClusterDnsArgs,
    pub(super) mesh_domain: &'a str,
    pub(super) cluster: &'a str,
    /// The agent's socket.
    pub(super) socket: PathBuf,
    /// The agent's state directory.
    pub(super) agent_state: &'a Path,
}

/// Answers for ever. Stop it by dropping the future.
pub(super) async fn serve_for_ever(start: Start<'_>) {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let upstreams = start.args.servers(&text);
    let sockets = start.args.sockets();
    tracing::info!(?sockets, ?upstreams, domain = start.args.domain, "names of services are answered");
    let domains = Domains {
        cluster: start.args.domain.clone(),
        mesh: start.mesh_domain.to_owned(),
        cluster_id: start.cluster.to_owned(),
    };
    let cluster = Cluster::new(domains, upstreams);
    *cluster.zone.write().unwrap_or_else(PoisonError::into_inner) = recall(start.agent_state);
    let (tell, trouble) = watch::channel(String::new());
    let answering = answer_for_ever(cluster.clone(), sockets.clone(), tell);
    let counting = count_for_ever(cluster.clone(), start.socket.clone());
    let following = follow_for_ever(cluster, start.socket, sockets, trouble);
    tokio::join!(answering, counting, following);
}

/// Tells the agent what became of questions. While it is away they are kept, for the next one.
async fn count_for_ever(cluster: Arc<Cluster>, socket: PathBuf) {
    let mut told = [0; Fate::ALL.len()];
    let mut agent = None;
    loop {
        tokio::time::sleep(REPORT).await;
        let now = cluster.counts.all();
        let counts = more(told, now);
        if counts.is_empty() {
            continue;
        }
        if agent.is_none() {
            agent = mesh_tls::grpc::connect_unix(&socket).await.ok().map(DnsClient::new);
        }
        let Some(client) = &mut agent else { continue };
        match client.count(DnsCountRequest { counts }).await {
            Ok(_) => told = now,
            Err(status) => {
                tracing::debug!(%status, "the agent is away: questions are counted on");
                agent = None;
            }
        }
    }
}

/// What is to be told of, in the order of [`Fate::ALL`].
fn more(told: [u64; Fate::ALL.len()], now: [u64; Fate::ALL.len()]) -> Vec<DnsCount> {
    let each = Fate::ALL.into_iter().zip(told.into_iter().zip(now));
    each.filter(|(_, (told, now))| now > told)
        .map(|(fate, (told, now))| DnsCount { fate: fate.name().to_owned(), more: now - told })
        .collect()
}

async fn answer_for_ever(cluster: Arc<Cluster>, sockets: Vec<SocketAddr>, tell: watch::Sender<String>) {
    loop {
        match ClusterListeners::bind(&sockets) {
            Ok(listeners) => {
                tell.send_replace(String::new());
                cluster.clone().serve(listeners).await;
            }
            Err(error) => {
                if *tell.borrow() != error {
                    tracing::error!(error, "names of services are not answered; tried again");
                    tell.send_replace(error);
                }
                tokio::time::sleep(REBIND).await;
            }
        }
    }
}

async fn follow_for_ever(
    cluster: Arc<Cluster>,
    socket: PathBuf,
    sockets: Vec<SocketAddr>,
    mut trouble: watch::Receiver<String>,
) {
    let serves: Vec<String> = sockets.iter().map(ToString::to_string).collect();
    loop {
        let request =
            DnsNamesRequest { serves: serves.clone(), trouble: trouble.borrow_and_update().clone() };
        match connect(&socket, request).await {
            Ok(stream) => tokio::select! {
                () = take(stream, &cluster) => {}
                // Said anew.
                _ = trouble.changed() => continue,
            },
            Err(error) => tracing::debug!(error, "the agent is away: what it told of services holds"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn connect(socket: &Path, request: DnsNamesRequest) -> Result<Streaming<DnsNames>, String> {
    let channel = mesh_tls::grpc::connect_unix(socket).await.map_err(|error| error.to_string())?;
    let mut client = DnsClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let stream = client.names(request).await;
    Ok(stream.map_err(|status| status.message().to_owned())?.into_inner())
}

/// Takes what is told until the stream ends.
async fn take(mut stream: Streaming<DnsNames>, cluster: &Cluster) {
    while let Some(Ok(told)) = stream.next().await {
        // All of them are put together beside those that are answered.
        let fresh = told.whole.then(|| {
            let mut zone = Zone::default();
            put(&mut zone, &told);
            zone
        });
        let mut zone = cluster.zone.write().unwrap_or_else(PoisonError::into_inner);
        match fresh {
            Some(fresh) => *zone = fresh,
            None => put(&mut zone, &told),
        }
    }
}

fn put(zone: &mut Zone, told: &DnsNames) {
    for wire in &told.services {
        match named::read(wire) {
            Some((name, service)) => zone.put(name, service),
            None => tracing::error!(name = wire.name, "what is told of a service can't be read"),
        }
    }
    for name in &told.gone {
        if let Some(name) = NamespacedName::parse(name) {
            zone.remove(&name);
        }
    }
}

/// What an agent has remembered, for a start while it is away; nothing if there is none that can be read.
fn recall(agent_state: &Path) -> Zone {
    let mut resources = Resources::default();
    let cached = Cache::new(agent_state).ok().and_then(|cache| cache.services());
    if let Some(update) = cached
        && let Err(error) = resources.apply(&update)
    {
        tracing::warn!(%error, "remembered services are not used");
    }
    let mut zone = Zone::default();
    if let Some(told) = named::difference(&mut None, &resources.services) {
        put(&mut zone, &told);
    }
    zone
}
