//! Connections to the other replicas of this cluster, for what they don't replicate: who is connected to each,
//! and the flows that each has seen.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::FutureExt;
use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{ALPN_H2, PeerPolicy, SharedBundles, SharedIdentity, client_config, grpc};
use tonic::transport::Channel;

use crate::{
    federation::DOOR_NAME,
    raft::{DialError, Dialer},
};

/// Channels by address; each reconnects by itself.
#[derive(Debug)]
pub struct Replicas {
    identity: SharedIdentity,
    bundles: SharedBundles,
    own: TrustDomain,
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Replicas {
    /// No connections yet.
    pub fn new(identity: SharedIdentity, bundles: SharedBundles, own: TrustDomain) -> Self {
        Self { identity, bundles, own, channels: Mutex::default() }
    }

    /// A channel to a replica of this cluster, and to nobody else. Connects at the first call.
    ///
    /// # Errors
    /// The address is malformed.
    pub fn channel(&self, address: &str) -> Result<Channel, mesh_tls::Error> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let policy = PeerPolicy::Replicas(self.own.clone());
        let tls = client_config(Some(self.identity.clone()), self.bundles.clone(), policy, &[ALPN_H2])?;
        let channel = grpc::connect_lazy(address, tls, DOOR_NAME)?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// How raft reaches the others: each by its own identity, so that a replica can't take another's place.
    pub fn dialer(&self) -> Dialer {
        let (identity, bundles, own) = (self.identity.clone(), self.bundles.clone(), self.own.clone());
        Arc::new(move |id, address: String| {
            let (identity, bundles, own) = (identity.clone(), bundles.clone(), own.clone());
            async move {
                if identity.load().is_none() {
                    // It would be taken for anybody, for as long as the connection lasts.
                    let reason = "this replica has no certificate yet".to_owned();
                    return Err(DialError { id, address, reason });
                }
                let policy = PeerPolicy::OneOf(vec![SpiffeId::replica(&own, id)]);
                let failed =
                    |e: mesh_tls::Error| DialError { id, address: address.clone(), reason: e.to_string() };
                let tls = client_config(Some(identity), bundles, policy, &[ALPN_H2]).map_err(failed)?;
                grpc::connect_lazy(&address, tls, DOOR_NAME).map_err(failed)
            }
            .boxed()
        })
    }
}
