//! The state as bytes.

use std::sync::Arc;

use imbl::OrdMap;
use mesh_model::{
    identity::IdentityTable,
    records::{ClusterInfo, NodeRecord, PeerRecord, ReplicaRecord, ServiceAllocation, WorkloadBinding},
    resource::{NamespacedName, Object},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{AppliedKeys, Authority, Cursors, State, StoredMeta, TokenRecord, index::Index};

/// Version of the format that [`encode`] writes. [`decode`] reads this one and every older one.
pub const FORMAT: u32 = 2;

/// Why bytes are no state.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// Written by a later release.
    #[error(
        "the snapshot has format {found}, this release reads up to {FORMAT}: run the release that wrote it, or a later one"
    )]
    Newer {
        /// The format that it says it has.
        found: u32,
    },
    /// Cut, damaged, or not a snapshot at all.
    #[error("the snapshot can't be read: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// JSON maps have text as keys, so objects are a list here.
#[derive(Serialize)]
struct Out<'a> {
    format: u32,
    revision: u64,
    cluster: &'a Option<Arc<ClusterInfo>>,
    objects: Vec<(&'a Arc<Object>, &'a Arc<StoredMeta>)>,
    identities: &'a IdentityTable,
    nodes: &'a OrdMap<String, Arc<NodeRecord>>,
    bindings: &'a OrdMap<NamespacedName, Arc<WorkloadBinding>>,
    allocations: &'a OrdMap<NamespacedName, Arc<ServiceAllocation>>,
    peers: &'a OrdMap<String, Arc<PeerRecord>>,
    tokens: &'a OrdMap<String, TokenRecord>,
    replicas: &'a OrdMap<u64, ReplicaRecord>,
    authority: &'a Authority,
    cursors: Cursors,
    applied_keys: &'a AppliedKeys,
}

#[derive(Deserialize)]
struct In {
    revision: u64,
    cluster: Option<Arc<ClusterInfo>>,
    objects: Vec<(Arc<Object>, Arc<StoredMeta>)>,
    identities: IdentityTable,
    nodes: OrdMap<String, Arc<NodeRecord>>,
    bindings: OrdMap<NamespacedName, Arc<WorkloadBinding>>,
    allocations: OrdMap<NamespacedName, Arc<ServiceAllocation>>,
    peers: OrdMap<String, Arc<PeerRecord>>,
    tokens: OrdMap<String, TokenRecord>,
    replicas: OrdMap<u64, ReplicaRecord>,
    #[serde(default)]
    authority: Authority,
    cursors: Cursors,
    applied_keys: AppliedKeys,
}

/// Read first, so that a newer format is recognised whatever else it holds.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The whole state as JSON.
///
/// # Errors
/// [`SnapshotError::Malformed`] if a value has no JSON form, which none of the types here lack.
pub fn encode(state: &State) -> Result<Vec<u8>, SnapshotError> {
    let mut bytes = Vec::new();
    encode_to(state, &mut bytes)?;
    Ok(bytes)
}

/// The same, a piece at a time.
///
/// # Errors
/// Those of the writer.
pub fn encode_to(state: &State, writer: impl std::io::Write) -> Result<(), SnapshotError> {
    let objects = state.objects.values().zip(state.object_meta.values()).collect();
    Ok(serde_json::to_writer(
        writer,
        &Out {
            format: FORMAT,
            revision: state.revision,
            cluster: &state.cluster,
            objects,
            identities: &state.identities,
            nodes: &state.nodes,
            bindings: &state.bindings,
            allocations: &state.allocations,
            peers: &state.peers,
            tokens: &state.tokens,
            replicas: &state.replicas,
            authority: &state.authority,
            cursors: state.cursors,
            applied_keys: &state.applied_keys,
        },
    )?)
}

/// The state that [`encode`] was given.
///
/// # Errors
/// [`SnapshotError::Newer`] for a later release's snapshot, [`SnapshotError::Malformed`] for anything else.
pub fn decode(bytes: &[u8]) -> Result<State, SnapshotError> {
    let Format { format } = serde_json::from_slice(bytes)?;
    if format > FORMAT {
        return Err(SnapshotError::Newer { found: format });
    }
    let read: In = serde_json::from_slice(bytes)?;
    let mut objects = OrdMap::new();
    let mut object_meta = OrdMap::new();
    for (object, meta) in read.objects {
        object_meta.insert(object.key(), meta);
        objects.insert(object.key(), object);
    }
    let mut state = State {
        revision: read.revision,
        cluster: read.cluster,
        objects,
        object_meta,
        identities: read.identities,
        nodes: read.nodes,
        bindings: read.bindings,
        allocations: read.allocations,
        peers: read.peers,
        tokens: read.tokens,
        replicas: read.replicas,
        authority: read.authority,
        applied_keys: read.applied_keys,
        cursors: read.cursors,
        index: Index::default(),
    };
    state.index = Index::of(&state);
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::populated;

    #[test]
    fn a_state_survives_its_snapshot_with_all_that_is_derived() {
        let state = populated();
        assert_eq!(decode(&encode(&state).expect("plain data")).expect("its own output"), state);
    }

    #[test]
    fn a_newer_format_is_refused_by_name_even_if_all_else_is_unknown() {
        let error = decode(br#"{"format": 3, "everything": "else"}"#).expect_err("newer");
        assert!(matches!(error, SnapshotError::Newer { found: 3 }), "{error}");
    }

    #[test]
    fn a_cut_snapshot_is_refused() {
        let bytes = encode(&populated()).expect("plain data");
        for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert!(matches!(decode(&bytes[..cut]), Err(SnapshotError::Malformed(_))), "cut at {cut}");
        }
    }
}
