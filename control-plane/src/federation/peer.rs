//! What one peer says, turned into commands. Pure.

use std::collections::{BTreeMap, BTreeSet};

use clustermesh::{import::import_service, trust};
use mesh_model::{
    records::{ClusterInfo, ImportedService, PeerRecord},
    resource::NamespacedName,
};
use mesh_store::{Command, State};
use xds_client::Update;
use xds_proto::{
    isthmus::federation::v1::{ExportedService, PeerCluster},
    type_url,
};

use super::own;

/// What a peer's update leads to.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// To be committed.
    Commit(Box<Command>),
    /// A lagging replica of the peer: another one is asked instead, nothing goes back.
    Behind {
        /// What we hold.
        have: u64,
        /// What it sent.
        got: u64,
    },
    /// Nothing new.
    Nothing,
}

/// Everything that a peer has offered since we began to listen to it.
#[derive(Debug, Default)]
pub(super) struct Offer {
    services: BTreeSet<NamespacedName>,
    revision: u64,
}

impl Offer {
    /// Reads an update of any subscribed type.
    ///
    /// # Errors
    /// What is wrong with it, for the peer to read. Nothing of the update is taken then.
    pub(super) fn hear(
        &mut self,
        update: &Update,
        peer: &PeerRecord,
        state: &State,
        now_unix: u64,
    ) -> Result<Heard, String> {
        let revision = update.system_version.parse().unwrap_or(0);
        if revision < peer.origin_revision {
            return Ok(Heard::Behind { have: peer.origin_revision, got: revision });
        }
        if update.type_url == type_url::<ExportedService>() {
            let (upserts, removals) = services(update, peer)?;
            self.services.extend(upserts.keys().cloned());
            for name in &removals {
                self.services.remove(name);
            }
            self.revision = revision;
            return Ok(Heard::Commit(Box::new(Command::ImportServices {
                cluster: peer.cluster.clone(),
                origin_revision: revision,
                upserts: upserts.into_iter().collect(),
                removals,
            })));
        }
        if update.type_url == type_url::<PeerCluster>() {
            let Some(cluster) = &state.cluster else { return Ok(Heard::Nothing) };
            return description(update, peer, cluster, state, now_unix);
        }
        Err(format!("{} is not subscribed to", update.type_url))
    }

    /// What we hold of the peer although it offers it no more: it was taken back while nobody listened. To be
    /// asked once the peer has said everything it has to say.
    pub(super) fn reconcile(&self, peer: &PeerRecord) -> Option<Command> {
        let removals: Vec<NamespacedName> =
            peer.imports.keys().filter(|name| !self.services.contains(name)).cloned().collect();
        let heard = self.revision.max(peer.origin_revision).max(1);
        (!removals.is_empty() || peer.origin_revision == 0).then(|| Command::ImportServices {
            cluster: peer.cluster.clone(),
            origin_revision: heard,
            upserts: Vec::new(),
            removals,
        })
    }
}

type Services = (BTreeMap<NamespacedName, ImportedService>, Vec<NamespacedName>);

fn services(update: &Update, peer: &PeerRecord) -> Result<Services, String> {
    let mut upserts = BTreeMap::new();
    for resource in &update.added {
        let received: ExportedService = resource.decode().map_err(|e| e.to_string())?;
        let (name, service) = import_service(&received, &peer.trust_domain).map_err(|e| e.to_string())?;
        if name.to_string() != resource.name {
            return Err(format!("resource {:?} holds the service {name}", resource.name));
        }
        upserts.insert(name, service);
    }
    let removals = update.removed.iter().filter_map(|name| NamespacedName::parse(name)).collect();
    Ok((upserts, removals))
}

fn description(
    update: &Update,
    peer: &PeerRecord,
    cluster: &ClusterInfo,
    state: &State,
    now_unix: u64,
) -> Result<Heard, String> {
    let Some(resource) = update.added.iter().find(|r| r.name == peer.cluster) else {
        return Ok(Heard::Nothing);
    };
    let received: PeerCluster = resource.decode().map_err(|e| e.to_string())?;
    let said = trust::validate(
        received.description.as_ref(),
        own(cluster),
        state.peers.values().map(AsRef::as_ref),
        now_unix,
    )
    .map_err(|e| e.to_string())?;
    if said.cluster != peer.cluster || said.trust_domain != peer.trust_domain {
        return Err(format!("it describes {:?} of {}", said.cluster, said.trust_domain));
    }
    let same = said.roots == peer.roots
        && said.doors == peer.doors
        && said.gateways == peer.gateways
        && said.trust.revoked == peer.trust.revoked
        && said.trust.jwt_keys == peer.trust.jwt_keys;
    Ok(if same { Heard::Nothing } else { Heard::Commit(Box::new(Command::PutPeer(said))) })
}
