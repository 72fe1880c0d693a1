//! The replicated state of one cluster.

use std::collections::BTreeMap;

use mesh_model::{
    compile::Input,
    identity::IdentityTable,
    records::{
        ClusterInfo, ImportedService, NodeRecord, PeerRecord, ReplicaRecord, ServiceAllocation,
        WorkloadBinding,
    },
    resource::{NamespacedName, Object, ObjectKey},
};
use serde::{Deserialize, Serialize};

use crate::{AppliedKeys, Authority, TokenRecord, index::Index};

/// What the store adds to an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMeta {
    /// `metadata.resourceVersion`: the revision of the last change.
    pub revision: u64,
    /// The revision at which it came to be.
    pub created_revision: u64,
    /// `metadata.uid`, in the form of a UUID.
    pub uid: String,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created_unix: u64,
}

/// Where the next allocations start. They move on and wrap around, so that what was released is given out
/// again as late as possible: a client that still holds it then meets nobody rather than somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursors {
    /// Offset into the service CIDR.
    pub virtual_ip: u64,
    /// Offset from [`crate::limits::MIN_PROXY_PORT`].
    pub proxy_port: u16,
    /// Number of a slice of the pod CIDR.
    pub node_slice: u64,
    /// The greatest replica id that was ever given out.
    pub replica: u64,
    /// The number of the last registration of a node.
    #[serde(default)]
    pub registration: u64,
}

/// The replicated state of one cluster. Equal on all replicas that have applied the same commands.
///
/// To be read freely; changed by [`crate::apply`] alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// Counts the commands that changed something. (Several commands share one raft entry, so the raft index
    /// would not tell two writes of one entry apart, and compare-and-set would let one overwrite the other.)
    pub revision: u64,
    /// None until `Init`.
    pub cluster: Option<ClusterInfo>,
    /// What users wrote.
    pub objects: BTreeMap<ObjectKey, Object>,
    /// The same keys as `objects`.
    pub object_meta: BTreeMap<ObjectKey, StoredMeta>,
    /// Numbers that the kernel sees.
    pub identities: IdentityTable,
    /// Registered nodes.
    pub nodes: BTreeMap<String, NodeRecord>,
    /// Where workloads run. Kept when the workload's object is deleted, until its node says that it is gone.
    pub bindings: BTreeMap<NamespacedName, WorkloadBinding>,
    /// Virtual IPs and proxy ports of services, local and imported.
    pub allocations: BTreeMap<NamespacedName, ServiceAllocation>,
    /// Joined clusters with what they export.
    pub peers: BTreeMap<String, PeerRecord>,
    /// By their public id.
    pub tokens: BTreeMap<String, TokenRecord>,
    /// Replicas that are to be members of the raft group.
    pub replicas: BTreeMap<u64, ReplicaRecord>,
    /// Sealed root keys, issuers, rotations, revocations.
    pub authority: Authority,
    /// For retries.
    pub applied_keys: AppliedKeys,
    /// Where the next allocations start.
    pub cursors: Cursors,
    /// Derived from the rest.
    pub(crate) index: Index,
}

impl State {
    /// What the compiler reads; None until the cluster is initialised.
    pub fn input(&self) -> Option<Input<'_>> {
        Some(Input {
            revision: self.revision,
            cluster: self.cluster.as_ref()?,
            objects: &self.objects,
            identities: &self.identities,
            nodes: &self.nodes,
            bindings: &self.bindings,
            allocations: &self.allocations,
            peers: &self.peers,
        })
    }

    /// An object with what the store knows of it.
    pub fn object(&self, key: &ObjectKey) -> Option<(&Object, &StoredMeta)> {
        Some((self.objects.get(key)?, self.object_meta.get(key)?))
    }

    // What follows keeps the index right. Each returns what was there before.

    pub(crate) fn put_object(
        &mut self,
        key: &ObjectKey,
        new: Option<(Object, StoredMeta)>,
    ) -> Option<(Object, StoredMeta)> {
        let old = self.objects.remove(key).zip(self.object_meta.remove(key));
        self.index.object(key.kind, old.is_some(), new.is_some());
        if let Some((object, meta)) = new {
            self.objects.insert(key.clone(), object);
            self.object_meta.insert(key.clone(), meta);
        }
        old
    }

    pub(crate) fn put_binding(
        &mut self,
        workload: &NamespacedName,
        new: Option<WorkloadBinding>,
    ) -> Option<WorkloadBinding> {
        let old = put(&mut self.bindings, workload, new);
        self.index.binding(workload, old.as_ref(), self.bindings.get(workload));
        old
    }

    pub(crate) fn put_allocation(
        &mut self,
        service: &NamespacedName,
        new: Option<ServiceAllocation>,
    ) -> Option<ServiceAllocation> {
        let old = put(&mut self.allocations, service, new);
        self.index.allocation(service, old.as_ref(), self.allocations.get(service));
        old
    }

    pub(crate) fn put_peer(&mut self, cluster: &str, new: Option<PeerRecord>) -> Option<PeerRecord> {
        let old = put(&mut self.peers, &cluster.to_owned(), new);
        for service in old.iter().flat_map(|peer| peer.imports.keys()) {
            self.index.import(cluster, service, false);
        }
        for service in self.peers.get(cluster).into_iter().flat_map(|peer| peer.imports.keys()) {
            self.index.import(cluster, service, true);
        }
        old
    }

    /// Nothing happens if the peer is unknown.
    pub(crate) fn put_import(
        &mut self,
        cluster: &str,
        service: &NamespacedName,
        new: Option<ImportedService>,
    ) -> Option<ImportedService> {
        let peer = self.peers.get_mut(cluster)?;
        self.index.import(cluster, service, new.is_some());
        put(&mut peer.imports, service, new)
    }
}

/// Inserts or removes.
pub(crate) fn put<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, key: &K, new: Option<V>) -> Option<V> {
    match new {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    }
}
