//! The authority of a cluster that is made from a backup.
//!
//! A backup holds the roots' keys sealed to the replicas of its time: it alone opens none of them. With the folder of
//! keys of any of those replicas the cluster goes on under its roots, and nobody else notices. Without, its roots'
//! keys are lost, and a new root takes their place: nodes, replicas and peers must be introduced to it again.

use std::{path::Path, time::SystemTime};

use mesh_store::{Authority, State, fingerprint_of};

use super::{Ca, CaError, seal_to};

/// Gives the one replica of a restored state a copy of the active root's key, from keys that are there.
///
/// # Errors
/// The folder holds no keys, those of another cluster, or none that open a copy.
pub fn with_keys(folder: &Path, state: &mut State, id: u64) -> Result<Ca, CaError> {
    let damaged = |reason: &str| CaError::Damaged { path: folder.to_owned(), reason: reason.to_owned() };
    let ca = Ca::open(folder)?.ok_or_else(|| {
        damaged("holds no keys of a replica: copy those of one of the cluster's replicas there")
    })?;
    let own = ca.replica();
    let same = state
        .cluster
        .as_ref()
        .is_some_and(|cluster| cluster.name == own.cluster && cluster.trust_domain == own.trust_domain);
    if !same {
        return Err(damaged(&format!("holds keys of the cluster {}, which is another one", own.cluster)));
    }
    let fingerprint = state.authority.active.clone();
    let root = ca.active_root(state)?;
    let sealed = seal_to(&root, id, ca.sealing_key())?;
    let public = ca.sealing_key().to_vec();
    forget_replicas(&mut state.authority);
    state.authority.sealing_keys.insert(id, public);
    state.authority.roots.entry(fingerprint).or_default().sealed.insert(id, sealed);
    ca.renumbered(id)
}

/// Makes a new root for a restored state, whose keys are lost.
///
/// # Errors
/// No randomness, or the folder can't be written.
pub fn anew(folder: &Path, state: &mut State, id: u64, now: SystemTime) -> Result<Ca, CaError> {
    let damaged = |reason: &str| CaError::Damaged { path: folder.to_owned(), reason: reason.to_owned() };
    let cluster = state.cluster.as_mut().ok_or_else(|| damaged("there is no cluster to make keys for"))?;
    let cluster = std::sync::Arc::make_mut(cluster);
    Ca::create(folder, &cluster.name, &cluster.trust_domain, now)?;
    let ca =
        Ca::open(folder)?.ok_or_else(|| damaged("the keys that were just made are gone"))?.renumbered(id)?;
    // The old roots go: whoever has a certificate of theirs has to come again.
    cluster.roots = ca.roots().iter().map(|root| root.to_vec()).collect();
    let generation = state.authority.generation + 1;
    let roots = cluster.roots.iter().map(|der| (fingerprint_of(der), Default::default())).collect();
    let active = cluster.roots.first().map(|der| fingerprint_of(der)).unwrap_or_default();
    cluster.trust.generation = generation;
    cluster.trust.active_root.clone_from(&active);
    state.authority = Authority { generation, roots, active, ..Authority::default() };
    Ok(ca)
}

/// The replicas of the lost cluster have no say any more.
fn forget_replicas(authority: &mut Authority) {
    authority.sealing_keys.clear();
    authority.issuers.clear();
    authority.confirmed_replicas.clear();
    authority.rotation = None;
    for root in authority.roots.values_mut() {
        let gone: Vec<u64> = std::mem::take(&mut root.sealed).into_keys().collect();
        root.left_with.extend(gone);
    }
}
