//! The way to the control plane: any replica that answers.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{ALPN_H2, ClientConfig, PeerPolicy, SharedBundles, SharedIdentity, client_config};
use thiserror::Error;
use tonic::{Code, Status, transport::Channel};

use super::NodeState;

/// Of one attempt to reach one replica, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one unary call, whose write may have to wait for the election of a leader.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no replica can be reached.
#[derive(Debug, Clone, Error)]
#[allow(missing_docs)]
pub enum UpstreamError {
    #[error("no replica is known; give --replica")]
    NoReplicas,
    #[error("no replica answers; the last one tried, {address}, says: {reason}")]
    Unreachable { address: String, reason: String },
}

/// Opens channels with the node's certificate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Upstream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tls: Arc<ClientConfig>,
    replicas: Vec<String>,
    /// Index of the replica that is used.
    current: AtomicUsize,
    /// For unary calls: made when first needed, dropped when it fails.
    shared: Mutex<Option<Channel>>,
    id: SpiffeId,
}

impl Upstream {
    /// `replicas` in order of preference; certificate and roots are read live at each handshake.
    ///
    /// # Errors
    /// The TLS configuration can't be built.
    pub fn new(
        state: &NodeState,
        replicas: Vec<String>,
        identity: SharedIdentity,
        bundles: SharedBundles,
    ) -> Result<Self, mesh_tls::Error> {
        let domain: TrustDomain = state.trust_domain.clone();
        let id = SpiffeId::node(&domain, &state.node);
        let tls = client_config(Some(identity), bundles, PeerPolicy::Replicas(domain), &[ALPN_H2])?;
        let (current, shared) = (AtomicUsize::new(0), Mutex::new(None));
        Ok(Self(Arc::new(Inner { tls, replicas, current, shared, id })))
    }

    /// Who this node is.
    pub fn node_id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// All that are known, in order of preference.
    pub fn replicas(&self) -> &[String] {
        &self.0.replicas
    }

    /// The replica that is used now.
    pub fn replica(&self) -> &str {
        let at = self.0.current.load(Ordering::Relaxed);
        self.0.replicas.get(at).map_or("", String::as_str)
    }

    /// A new channel, for a long stream. Tries each replica once, beginning with the one that worked last.
    ///
    /// # Errors
    /// None answers.
    pub async fn connect(&self) -> Result<Channel, UpstreamError> {
        let count = self.0.replicas.len();
        let first = self.0.current.load(Ordering::Relaxed);
        let mut last = UpstreamError::NoReplicas;
        for step in 0..count {
            let at = (first + step) % count;
            let address = &self.0.replicas[at];
            match dial(address, &self.0.tls).await {
                Ok(channel) => {
                    self.0.current.store(at, Ordering::Relaxed);
                    return Ok(channel);
                }
                Err(reason) => last = UpstreamError::Unreachable { address: address.clone(), reason },
            }
        }
        Err(last)
    }

    /// The stream on the current replica ended: begin the next attempt with another one.
    pub fn move_on(&self) {
        let count = self.0.replicas.len().max(1);
        let at = self.0.current.load(Ordering::Relaxed);
        self.0.current.store((at + 1) % count, Ordering::Relaxed);
    }

    /// Makes a unary call on a shared channel, and once more on another replica if the first can't be reached.
    ///
    /// # Errors
    /// What the control plane answers, or `UNAVAILABLE` with who was tried.
    pub async fn call<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut attempts = 0;
        loop {
            let channel = self.shared().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let timed = tokio::time::timeout(CALL_TIMEOUT, call(channel)).await;
            let late = || Status::unavailable(format!("no answer within {CALL_TIMEOUT:?}"));
            let status = match timed.unwrap_or_else(|_| Err(late())) {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            attempts += 1;
            let elsewhere = matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown);
            if !elsewhere || attempts > self.0.replicas.len() {
                return Err(status);
            }
            *self.lock() = None;
            self.move_on();
        }
    }

    async fn shared(&self) -> Result<Channel, UpstreamError> {
        if let Some(channel) = self.lock().clone() {
            return Ok(channel);
        }
        let channel = self.connect().await?;
        *self.lock() = Some(channel.clone());
        Ok(channel)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Channel>> {
        self.0.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn dial(address: &str, tls: &Arc<ClientConfig>) -> Result<Channel, String> {
    // The name plays no part in the verification: the identity in the certificate does.
    let connecting = mesh_tls::grpc::connect(address, tls.clone(), "replica.isthmus");
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
    }
}
