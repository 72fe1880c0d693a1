//! The replicated state of one cluster.

use std::sync::Arc;

use imbl::OrdMap;
use mesh_model::{
    compile::Input,
    identity::IdentityTable,
    records::{
        ClusterInfo, ImportedService, NodeRecord, PeerRecord, ReplicaRecord, ServiceAllocation, StoredMeta,
        WorkloadBinding,
    },
    resource::{NamespacedName, Object, ObjectKey},
};
use serde::{Deserialize, Serialize};

use crate::{AppliedKeys, Authority, TokenRecord, index::Index};

/// Where the next allocations start. They move on and wrap around, so that what was released is given out
/// again as late as possible: a client that still holds it then meets nobody rather than somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursors {
    /// Offset into the service CIDR.
    pub virtual_ip: u64,
    /// Offset into the service CIDR of IPv6.
    #[serde(default)]
    pub virtual_ip6: u64,
    /// Offset from the first of [`NODE_PORTS`](mesh_model::resource::NODE_PORTS).
    #[serde(default)]
    pub node_port: u16,
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
/// To be read freely; changed by [`crate::apply`] alone. A clone costs nothing: the two share whatever neither
/// changes, so whoever wants to keep a state keeps it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// Counts the commands that changed something. (Several commands share one raft entry, so the raft index
    /// would not tell two writes of one entry apart, and compare-and-set would let one overwrite the other.)
    pub revision: u64,
    /// None until `Init`.
    pub cluster: Option<Arc<ClusterInfo>>,
    /// What users wrote.
    pub objects: OrdMap<ObjectKey, Arc<Object>>,
    /// The same keys as `objects`.
    pub object_meta: OrdMap<ObjectKey, Arc<StoredMeta>>,
    /// Numbers that the kernel sees.
    pub identities: IdentityTable,
    /// Registered nodes.
    pub nodes: OrdMap<String, Arc<NodeRecord>>,
    /// Where workloads run. Kept when the workload's object is deleted, until its node says that it is gone.
    pub bindings: OrdMap<NamespacedName, Arc<WorkloadBinding>>,
    /// Virtual IPs and proxy ports of services, local and imported.
    pub allocations: OrdMap<NamespacedName, Arc<ServiceAllocation>>,
    /// Joined clusters with what they export.
    pub peers: OrdMap<String, Arc<PeerRecord>>,
    /// By their public id.
    pub tokens: OrdMap<String, TokenRecord>,
    /// Replicas that are to be members of the raft group.
    pub replicas: OrdMap<u64, ReplicaRecord>,
    /// Sealed root keys, issuers, rotations, revocations.
    pub authority: Authority,
    /// For retries.
    pub applied_keys: AppliedKeys,
    /// Where the next allocations start.
    pub cursors: Cursors,
    /// Derived from the rest.
    pub(crate) index: Index,
}

/// An object with what the store knows of it.
pub(crate) type Stored = (Arc<Object>, Arc<StoredMeta>);

impl State {
    /// What the compiler reads, shared with this state; None until the cluster is initialised.
    pub fn input(&self) -> Option<Input> {
        Some(Input {
            revision: self.revision,
            cluster: self.cluster.clone()?,
            objects: self.objects.clone(),
            object_meta: self.object_meta.clone(),
            identities: self.identities.clone(),
            nodes: self.nodes.clone(),
            bindings: self.bindings.clone(),
            allocations: self.allocations.clone(),
            peers: self.peers.clone(),
        })
    }

    /// An object with what the store knows of it.
    pub fn object(&self, key: &ObjectKey) -> Option<(&Object, &StoredMeta)> {
        Some((self.objects.get(key)?.as_ref(), self.object_meta.get(key)?.as_ref()))
    }

    // What follows keeps the index right. Each returns what was there before.

    pub(crate) fn put_object(&mut self, key: &ObjectKey, new: Option<Stored>) -> Option<Stored> {
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
        new: Option<Arc<WorkloadBinding>>,
    ) -> Option<Arc<WorkloadBinding>> {
        let old = put(&mut self.bindings, workload, new);
        self.index.binding(workload, old.as_deref(), self.bindings.get(workload).map(Arc::as_ref));
        old
    }

    pub(crate) fn put_allocation(
        &mut self,
        service: &NamespacedName,
        new: Option<Arc<ServiceAllocation>>,
    ) -> Option<Arc<ServiceAllocation>> {
        let old = put(&mut self.allocations, service, new);
        self.index.allocation(service, old.as_deref(), self.allocations.get(service).map(Arc::as_ref));
        old
    }

    pub(crate) fn put_peer(
        &mut self,
        cluster: &str,
        new: Option<Arc<PeerRecord>>,
    ) -> Option<Arc<PeerRecord>> {
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
        new: Option<Arc<ImportedService>>,
    ) -> Option<Arc<ImportedService>> {
        let peer = Arc::make_mut(self.peers.get_mut(cluster)?);
        self.index.import(cluster, service, new.is_some());
        put(&mut peer.imports, service, new)
    }
}

/// Inserts or removes.
pub(crate) fn put<K: Ord + Clone, V: Clone>(map: &mut OrdMap<K, V>, key: &K, new: Option<V>) -> Option<V> {
    match new {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    }
}
