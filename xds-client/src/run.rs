//! The shell: one stream at a time, for ever.

use std::{
    collections::VecDeque,
    fmt::Display,
    future::Future,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{metadata::MetadataMap, transport::Channel};
use xds_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    },
    isthmus::agent::v1::Heartbeat,
    type_url,
};

use crate::{
    Backoff, DeltaState, Names, Status, Subscription, Transport, Update,
    heartbeat::{self, Watchdog},
};

/// Requests that wait for the peer to read. With more, no response is read until some are gone.
const MAX_QUEUED_REQUESTS: usize = 64;

/// Metadata that says which revision a reconnecting client has ACKed, in decimal, so that a replica that lags serves
/// nothing older.
pub const REVISION_METADATA: &str = "x-isthmus-revision";

/// Everything about a client that is not its handler.
#[derive(Debug)]
pub struct Config {
    /// Sent with the first message of every stream.
    pub node: Node,
    /// What to subscribe to from the start.
    pub subscriptions: Vec<Subscription>,
    /// gRPC metadata of every stream, for instance `x-isthmus-workload`.
    pub metadata: MetadataMap,
    /// ADS unless told otherwise.
    pub transport: Transport,
    /// A larger response ends the stream. Default 16 MiB.
    pub max_message_bytes: usize,
    /// Time allowed for connecting and for the peer to accept the stream. Default 10 s.
    pub connect_timeout: Duration,
    /// Delays between attempts.
    pub backoff: Backoff,
    /// Source of the jitter.
    pub rng: StdRng,
    /// Resources that are held from an earlier life of the process: type URL, name, version. The server then
    /// sends only what changed since, and names what is gone.
    pub held: Vec<(String, String, String)>,
    /// Told of every change of the connection.
    pub status: Option<watch::Sender<Status>>,
    /// Told of every heartbeat. With it heartbeats are asked for, and a stream on which they stop is given up. The
    /// handler does not see them.
    pub heartbeats: Option<watch::Sender<Heartbeat>>,
}

impl Config {
    /// Defaults, with jitter from the operating system's randomness.
    pub fn new(node: Node, subscriptions: Vec<Subscription>) -> Self {
        Self {
            node,
            subscriptions,
            metadata: MetadataMap::new(),
            transport: Transport::Ads,
            max_message_bytes: 16 << 20,
            connect_timeout: Duration::from_secs(10),
            backoff: Backoff::default(),
            rng: StdRng::from_os_rng(),
            held: Vec::new(),
            status: None,
            heartbeats: None,
        }
    }
}

/// A change of subscriptions while the client runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscribeCommand {
    /// Wants more of a type, or a new type.
    Subscribe {
        /// Full type URL.
        type_url: String,
        /// Added to what is wanted already.
        names: Names,
    },
    /// Wants less of a type. The handler gets no `removed` for these: it is the one who decided.
    Unsubscribe {
        /// Full type URL.
        type_url: String,
        /// Taken from what is wanted.
        names: Names,
    },
}

/// Subscribes for ever: connects, resubscribes with the versions it holds, hands each response to `handler`,
/// ACKs what it accepts and NACKs what it refuses, with its words. Stop it by dropping the future.
///
/// * `connect` gives a channel to any replica; it is called again after each loss, with a delay between 100 ms
///   and 5 s (see [`Backoff`]). Give the channel HTTP/2 keepalive: [`keepalive`](crate::keepalive).
/// * `handler` applies an update as a whole or not at all. It runs on the stream's task: no response
///   of any type is read while it works.
/// * Returns only if nothing is subscribed to and `commands` is closed.
/// * `commands` changes subscriptions; they are taken also while disconnected. Closing it is fine.
pub async fn run<C, F, E, H>(
    config: Config,
    mut connect: C,
    mut handler: H,
    mut commands: mpsc::Receiver<SubscribeCommand>,
) where
    C: FnMut() -> F,
    F: Future<Output = Result<Channel, E>>,
    E: Display,
    H: FnMut(Update) -> Result<(), String>,
{
    let Config {
        node,
        subscriptions,
        metadata,
        transport,
        max_message_bytes,
        connect_timeout,
        mut backoff,
        mut rng,
        held,
        status,
        heartbeats,
    } = config;
    let tell = |now: Status| {
        if let Some(status) = &status {
            status.send_replace(now);
        }
    };
    let heartbeat = heartbeats.is_some().then(|| Subscription::wildcard(type_url::<Heartbeat>()));
    let mut state = DeltaState::new(node, subscriptions.into_iter().chain(heartbeat));
    for (type_url, name, version) in held {
        state.hold(&type_url, name, version);
    }
    loop {
        // A stream without any subscription has nothing to say, and neither has its server.
        while !state.subscribed() {
            match commands.recv().await {
                Some(command) => drop(take(&mut state, command)),
                None => return tracing::debug!("nothing is subscribed to, and nothing ever will be"),
            }
        }
        tell(Status::Connecting);
        let (sender, receiver) = mpsc::channel(1);
        let opening = tokio::time::timeout(connect_timeout, async {
            let channel = connect().await.map_err(|e| format!("connect: {e}"))?;
            let requests = ReceiverStream::new(receiver);
            Ok(Stream { channel, requests })
        });
        let opened = while_taking(opening, &mut state, &mut commands).await;
        let reason = match opened {
            Err(_) => format!("connect: no answer within {connect_timeout:?}"),
            Ok(Err(reason)) => reason,
            Ok(Ok(Stream { channel, requests })) => {
                let mut metadata = metadata.clone();
                if let Some(revision) = state.revision() {
                    metadata.insert(REVISION_METADATA, revision.into());
                }
                let mut session = Session {
                    state: &mut state,
                    handler: &mut handler,
                    commands: &mut commands,
                    backoff: &mut backoff,
                    heartbeats: heartbeats.as_ref(),
                    watchdog: Watchdog::new(Instant::now()),
                    queue: VecDeque::new(),
                    sender,
                };
                let opening = transport.open(channel, metadata, requests, max_message_bytes);
                session.serve(opening, connect_timeout, || tell(Status::Connected)).await
            }
        };
        state.disconnect();
        let delay = backoff.next_delay(&mut rng);
        tracing::debug!(%reason, ?delay, "xDS stream ended");
        tell(Status::Disconnected { reason });
        while_taking(tokio::time::sleep(delay), &mut state, &mut commands).await;
    }
}

struct Stream {
    channel: Channel,
    requests: ReceiverStream<DeltaDiscoveryRequest>,
}

/// Waits for `future` and takes commands meanwhile: whoever sends them is not held up by a lost connection.
async fn while_taking<T>(
    future: impl Future<Output = T>,
    state: &mut DeltaState,
    commands: &mut mpsc::Receiver<SubscribeCommand>,
) -> T {
    tokio::pin!(future);
    loop {
        tokio::select! {
            done = &mut future => return done,
            Some(command) = commands.recv() => { let _ = take(state, command); }
        }
    }
}

fn take(state: &mut DeltaState, command: SubscribeCommand) -> Option<DeltaDiscoveryRequest> {
    match command {
        SubscribeCommand::Subscribe { type_url, names } => state.subscribe(&type_url, names),
        SubscribeCommand::Unsubscribe { type_url, names } => state.unsubscribe(&type_url, &names),
    }
}

struct Session<'a, H> {
    state: &'a mut DeltaState,
    handler: &'a mut H,
    commands: &'a mut mpsc::Receiver<SubscribeCommand>,
    backoff: &'a mut Backoff,
    heartbeats: Option<&'a watch::Sender<Heartbeat>>,
    watchdog: Watchdog,
    queue: VecDeque<DeltaDiscoveryRequest>,
    sender: mpsc::Sender<DeltaDiscoveryRequest>,
}

impl<H: FnMut(Update) -> Result<(), String>> Session<'_, H> {
    /// Serves one stream to its end and says why it ended.
    async fn serve(
        &mut self,
        opening: impl Future<Output = Result<tonic::Streaming<DeltaDiscoveryResponse>, tonic::Status>>,
        accept_timeout: Duration,
        connected: impl FnOnce(),
    ) -> String {
        // A server may send its headers only with its first response, so the first requests must flow before
        // the call has returned.
        self.queue = self.state.connect().into();
        let sender = self.sender.clone();
        let mut responses = {
            let opening = tokio::time::timeout(accept_timeout, opening);
            tokio::pin!(opening);
            loop {
                tokio::select! {
                    opened = &mut opening => match opened {
                        Ok(Ok(responses)) => break responses,
                        Ok(Err(status)) => return describe(&status),
                        Err(_) => return format!("stream: not accepted within {accept_timeout:?}"),
                    },
                    permit = sender.reserve(), if !self.queue.is_empty() => match permit {
                        Ok(permit) => if let Some(request) = self.queue.pop_front() { permit.send(request) },
                        Err(_) => return "stream: closed while opening".to_owned(),
                    },
                    Some(command) = self.commands.recv(), if self.queue.len() < MAX_QUEUED_REQUESTS => {
                        self.queue.extend(take(self.state, command));
                    }
                }
            }
        };
        connected();
        loop {
            let room = self.queue.len() < MAX_QUEUED_REQUESTS;
            let deadline = self.watchdog.deadline();
            tokio::select! {
                permit = sender.reserve(), if !self.queue.is_empty() => match permit {
                    Ok(permit) => if let Some(request) = self.queue.pop_front() { permit.send(request) },
                    Err(_) => return "stream: closed by the peer".to_owned(),
                },
                response = responses.message(), if room => match response {
                    Ok(Some(response)) => self.answer(response),
                    Ok(None) => return "stream: ended by the peer".to_owned(),
                    Err(status) => return describe(&status),
                },
                Some(command) = self.commands.recv(), if room => {
                    self.queue.extend(take(self.state, command));
                }
                () = until(deadline), if deadline.is_some() => {
                    let patience = self.watchdog.patience();
                    return format!("stream: connected, but no heartbeat came for {patience:?}");
                }
            }
        }
    }

    fn answer(&mut self, response: DeltaDiscoveryResponse) {
        // Only an answer shows that the peer serves: one that accepts and drops connections is backed off from.
        self.backoff.reset();
        self.watchdog.heard(Instant::now());
        let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
        let request = match self.state.on_response(response) {
            Err(error) => {
                tracing::warn!(%type_url, %nonce, %error, "refused a response");
                self.state.reject(&type_url, &nonce, &error.to_string())
            }
            Ok(update) if self.heartbeats.is_some() && type_url == xds_proto::type_url::<Heartbeat>() => {
                if let (Some(beat), Some(told)) = (heartbeat::of(&update), self.heartbeats) {
                    self.watchdog.beat(&beat, Instant::now());
                    told.send_replace(beat);
                }
                self.state.ack(update.receipt().without_revision())
            }
            Ok(update) => {
                let receipt = update.receipt();
                match (self.handler)(update) {
                    Ok(()) => self.state.ack(receipt),
                    Err(reason) => {
                        tracing::warn!(%type_url, %nonce, %reason, "refused an update");
                        self.state.nack(&receipt, &reason)
                    }
                }
            }
        };
        self.queue.push_back(request);
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn describe(status: &tonic::Status) -> String {
    format!("stream: {}: {}", status.code(), status.message())
}
