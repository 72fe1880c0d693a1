//! Connections to the other replicas of this cluster, for what they don't replicate: who is connected to each,
//! and the flows that each has seen.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use mesh_model::identity::TrustDomain;
use mesh_tls::{ALPN_H2, PeerPolicy, SharedBundles, SharedIdentity, client_config, grpc};
use tonic::transport::Channel;

use crate::federation::DOOR_NAME;

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
}
