//! The stream of rules, for as long as the agent is there, and again when it comes back.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dns_proxy::Rules;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Streaming, transport::Channel};
use xds_proto::isthmus::local::v1::{DnsFollowRequest, DnsNote, DnsRules, dns_client::DnsClient};

use super::{sight::KernelSight, wire};
use crate::persist;

/// Between attempts to reach the agent.
const RETRY: Duration = Duration::from_millis(200);
/// Rules of a node that is full.
const MAX_MESSAGE: usize = 64 << 20;
/// Notes that are handed on at once.
const BATCH: usize = 256;

pub(super) struct Follower {
    pub(super) socket: PathBuf,
    pub(super) port: u16,
    /// Where the rules are kept.
    pub(super) saved: PathBuf,
    pub(super) sight: KernelSight,
}

/// The rules that an agent told an earlier process; none if there are none that can be read.
pub(super) fn recall(saved: &Path) -> Rules {
    let Some(bytes) = persist::read_optional(saved).unwrap_or_else(|error| {
        tracing::warn!(%error, file = %saved.display(), "the rules from before can't be read");
        None
    }) else {
        return Rules::default();
    };
    let parsed = DnsRules::decode(bytes.as_slice()).map_err(|error| error.to_string());
    parsed.and_then(|wire| wire::parse(&wire).map_err(|error| error.to_string())).unwrap_or_else(|error| {
        tracing::warn!(error, file = %saved.display(), "the rules from before are not used");
        Rules::default()
    })
}

impl Follower {
    /// Follows the agent. Stop it by dropping the future.
    pub(super) async fn follow_for_ever(
        self,
        tell: watch::Sender<Arc<Rules>>,
        connected: watch::Sender<Option<Channel>>,
        mut notes: mpsc::Receiver<DnsNote>,
    ) {
        // Said once for each time that it goes away.
        let mut is_away = false;
        loop {
            match self.connect().await {
                Ok((channel, stream)) => {
                    is_away = false;
                    tracing::info!("the agent is there");
                    self.sight.reopen();
                    connected.send_replace(Some(channel.clone()));
                    tokio::select! {
                        () = self.take(stream, &tell) => {}
                        () = hand_on(channel, &mut notes) => {}
                    }
                    connected.send_replace(None);
                }
                Err(error) if !is_away => {
                    is_away = true;
                    tracing::warn!(error, "the agent is away: names that are allowed already go on");
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn connect(&self) -> Result<(Channel, Streaming<DnsRules>), String> {
        let channel = mesh_tls::grpc::connect_unix(&self.socket).await.map_err(|error| error.to_string())?;
        let mut client = DnsClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let stream = client.follow(DnsFollowRequest { port: self.port.into() }).await;
        Ok((channel, stream.map_err(|status| status.message().to_owned())?.into_inner()))
    }

    /// Takes rules until the stream ends.
    async fn take(&self, mut stream: Streaming<DnsRules>, tell: &watch::Sender<Arc<Rules>>) {
        while let Some(Ok(told)) = stream.next().await {
            match wire::parse(&told) {
                Ok(rules) => {
                    tell.send_replace(Arc::new(rules));
                    if let Err(error) = persist::write_private(&self.saved, &told.encode_to_vec()) {
                        tracing::warn!(%error, file = %self.saved.display(), "the rules are not kept");
                    }
                }
                Err(error) => tracing::error!(%error, "rules are not taken; those from before hold on"),
            }
        }
    }
}

/// Hands notes to the agent until it is gone.
async fn hand_on(channel: Channel, notes: &mut mpsc::Receiver<DnsNote>) {
    let (forward, stream) = mpsc::channel(BATCH);
    let mut client = DnsClient::new(channel);
    let mut call = std::pin::pin!(client.note(ReceiverStream::new(stream)));
    loop {
        tokio::select! {
            _ = &mut call => return,
            note = notes.recv() => match note {
                // Full, as the agent does not read: dropped, as at the gate.
                Some(note) => drop(forward.try_send(note)),
                None => return,
            },
        }
    }
}
