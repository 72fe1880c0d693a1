//! Changes to the state that can be taken back.

use std::{collections::BTreeSet, sync::Arc};

use mesh_model::{
    identity::IdentityKey,
    records::{
        ClusterInfo, ImportedService, NodeRecord, PeerRecord, ReplicaRecord, ServiceAllocation,
        WorkloadBinding,
    },
    resource::{NamespacedName, Object, ObjectKey, Protocol},
};

use crate::{
    AdministratorRecord, Authority, Bytes16, Change, Confirmation, Cursors, Envelope, Event, Member, Refusal,
    State, StoredMeta, TokenRecord,
    state::{Stored, put},
};

/// How to take one change back: what was there before.
enum Undo {
    Cluster(Option<Arc<ClusterInfo>>),
    Object(ObjectKey, Option<Stored>),
    Node(String, Option<Arc<NodeRecord>>),
    Binding(NamespacedName, Option<Arc<WorkloadBinding>>),
    Allocation(NamespacedName, Option<Arc<ServiceAllocation>>),
    Peer(String, Option<Arc<PeerRecord>>),
    Import(String, NamespacedName, Option<Arc<ImportedService>>),
    OriginRevision(String, u64),
    Token(String, Option<TokenRecord>),
    Replica(u64, Option<ReplicaRecord>),
    Authority(Box<Authority>),
    Confirmation(Member, Option<Confirmation>),
    Administrator(u64, Option<AdministratorRecord>),
}

/// One command at work. Costs in proportion to what it changes, also when it is taken back.
pub(super) struct Transaction<'a> {
    state: &'a mut State,
    /// Cheap, so saved whole.
    cursors: Cursors,
    undo: Vec<Undo>,
    changes: Vec<Change>,
    identities: Vec<IdentityKey>,
    /// Revisions that are left out before this command's.
    skipped_revisions: u64,
    /// Node ports that objects of this command ask for by number.
    reserved_node_ports: BTreeSet<(u16, Protocol)>,
    /// The envelope's clock.
    pub(super) now_unix_ms: u64,
    /// The envelope's randomness.
    pub(super) random: Bytes16,
}

impl<'a> Transaction<'a> {
    pub(super) fn begin(state: &'a mut State, envelope: &Envelope) -> Self {
        Self {
            cursors: state.cursors,
            state,
            undo: Vec::new(),
            changes: Vec::new(),
            identities: Vec::new(),
            skipped_revisions: 0,
            reserved_node_ports: BTreeSet::new(),
            now_unix_ms: envelope.now_unix_ms,
            random: envelope.random,
        }
    }

    /// These are given to nobody who has not asked for them.
    pub(super) fn reserve_node_ports(&mut self, ports: impl Iterator<Item = (u16, Protocol)>) {
        self.reserved_node_ports.extend(ports);
    }

    pub(super) fn is_reserved_node_port(&self, port: u16, protocol: Protocol) -> bool {
        self.reserved_node_ports.contains(&(port, protocol))
    }

    /// The state with the changes so far.
    pub(super) fn state(&self) -> &State {
        self.state
    }

    pub(super) fn cluster(&self) -> Result<&ClusterInfo, Refusal> {
        self.state.cluster.as_deref().ok_or(Refusal::NotInitialised)
    }

    /// The revision that this command will have.
    pub(super) fn revision(&self) -> u64 {
        self.state.revision + 1 + self.skipped_revisions
    }

    pub(super) fn now_unix(&self) -> u64 {
        self.now_unix_ms / 1000
    }

    pub(super) fn cursors(&mut self) -> &mut Cursors {
        &mut self.state.cursors
    }

    pub(super) fn set_cluster(&mut self, info: ClusterInfo) {
        self.undo.push(Undo::Cluster(self.state.cluster.replace(Arc::new(info))));
        self.changes.push(Change::Cluster);
    }

    pub(super) fn put_object(&mut self, key: &ObjectKey, object: Object, meta: StoredMeta) {
        let object = Arc::new(object);
        let old = self.state.put_object(key, Some((object.clone(), Arc::new(meta.clone()))));
        self.changes.push(Change::Put { object, meta, created: old.is_none() });
        self.undo.push(Undo::Object(key.clone(), old));
    }

    /// Whether there was one.
    pub(super) fn delete_object(&mut self, key: &ObjectKey) -> bool {
        let Some((object, meta)) = self.state.put_object(key, None) else { return false };
        self.changes.push(Change::Deleted { object: object.clone(), meta: StoredMeta::clone(&meta) });
        self.undo.push(Undo::Object(key.clone(), Some((object, meta))));
        true
    }

    pub(super) fn set_node(&mut self, name: &str, node: Option<NodeRecord>) {
        let name = name.to_owned();
        let old = put(&mut self.state.nodes, &name, node.map(Arc::new));
        self.changes.push(Change::Node(name.clone()));
        self.undo.push(Undo::Node(name, old));
    }

    pub(super) fn set_binding(&mut self, workload: &NamespacedName, binding: Option<WorkloadBinding>) {
        let old = self.state.put_binding(workload, binding.map(Arc::new));
        self.changes.push(Change::Binding(workload.clone()));
        self.undo.push(Undo::Binding(workload.clone(), old));
    }

    pub(super) fn set_allocation(&mut self, service: &NamespacedName, allocation: Option<ServiceAllocation>) {
        let old = self.state.put_allocation(service, allocation.map(Arc::new));
        self.changes.push(Change::Allocation(service.clone()));
        self.undo.push(Undo::Allocation(service.clone(), old));
    }

    pub(super) fn set_peer(&mut self, cluster: &str, peer: Option<PeerRecord>) {
        let old = self.state.put_peer(cluster, peer.map(Arc::new));
        self.changes.push(Change::Peer(cluster.to_owned()));
        self.undo.push(Undo::Peer(cluster.to_owned(), old));
    }

    pub(super) fn set_import(
        &mut self,
        cluster: &str,
        service: &NamespacedName,
        import: Option<ImportedService>,
    ) {
        let old = self.state.put_import(cluster, service, import.map(Arc::new));
        self.changes.push(Change::Import { cluster: cluster.to_owned(), service: service.clone() });
        self.undo.push(Undo::Import(cluster.to_owned(), service.clone(), old));
    }

    /// A peer's revision alone is no change of this cluster's state: heartbeats would make revisions otherwise.
    pub(super) fn set_origin_revision(&mut self, cluster: &str, revision: u64) {
        if let Some(peer) = self.state.peers.get_mut(cluster) {
            let old = std::mem::replace(&mut Arc::make_mut(peer).origin_revision, revision);
            self.undo.push(Undo::OriginRevision(cluster.to_owned(), old));
        }
    }

    pub(super) fn set_token(&mut self, id: &str, token: Option<TokenRecord>) {
        let id = id.to_owned();
        let old = put(&mut self.state.tokens, &id, token);
        self.changes.push(Change::Token(id.clone()));
        self.undo.push(Undo::Token(id, old));
    }

    pub(super) fn set_replica(&mut self, id: u64, replica: Option<ReplicaRecord>) {
        let old = put(&mut self.state.replicas, &id, replica);
        self.changes.push(Change::Replica(id));
        self.undo.push(Undo::Replica(id, old));
    }

    /// Changes the authority, and the cluster's roots with what is told of them. What nobody but the authority
    /// itself needs to know of makes no revision.
    pub(super) fn change_authority(&mut self, change: impl FnOnce(&mut Authority, &mut ClusterInfo)) {
        let Some(mut cluster) = self.state.cluster.as_deref().cloned() else { return };
        self.undo.push(Undo::Authority(Box::new(self.state.authority.clone())));
        change(&mut self.state.authority, &mut cluster);
        if self.state.cluster.as_deref() != Some(&cluster) {
            self.set_cluster(cluster);
        }
    }

    /// Costs the same however many have confirmed.
    pub(super) fn set_confirmation(&mut self, member: &Member, confirmation: Option<Confirmation>) {
        let old = self.state.authority.set_confirmation(member, confirmation);
        self.undo.push(Undo::Confirmation(member.clone(), old));
    }

    /// A change of its own: who was let in, and who no more, has a revision.
    pub(super) fn set_administrator(&mut self, number: u64, record: Option<AdministratorRecord>) {
        let old = put(&mut self.state.authority.administrators, &number, record);
        self.changes.push(Change::Administrator(number));
        self.undo.push(Undo::Administrator(number, old));
    }

    /// Leaves out revisions that others may have seen and this state never had.
    pub(super) fn skip_revisions(&mut self, count: u64) {
        self.skipped_revisions = count;
    }

    /// Sees to it that there is a number for an identity once the command is committed.
    pub(super) fn want_identity(&mut self, key: IdentityKey) {
        self.identities.push(key);
    }

    /// Makes the changes final and gives them a revision, if there are any.
    pub(super) fn commit(self) -> Vec<Event> {
        let Self { state, changes, identities, skipped_revisions, .. } = self;
        super::identities::settle(state, identities);
        if changes.is_empty() {
            return Vec::new();
        }
        state.revision += 1 + skipped_revisions;
        changes.into_iter().map(|change| Event { revision: state.revision, change }).collect()
    }

    /// Leaves the state as it was at the beginning.
    pub(super) fn roll_back(self) {
        let Self { state, cursors, undo, .. } = self;
        state.cursors = cursors;
        for undo in undo.into_iter().rev() {
            match undo {
                Undo::Cluster(old) => state.cluster = old,
                Undo::Object(key, old) => drop(state.put_object(&key, old)),
                Undo::Node(name, old) => drop(put(&mut state.nodes, &name, old)),
                Undo::Binding(name, old) => drop(state.put_binding(&name, old)),
                Undo::Allocation(name, old) => drop(state.put_allocation(&name, old)),
                Undo::Peer(name, old) => drop(state.put_peer(&name, old)),
                Undo::Import(cluster, name, old) => drop(state.put_import(&cluster, &name, old)),
                Undo::OriginRevision(cluster, old) => {
                    if let Some(peer) = state.peers.get_mut(&cluster) {
                        Arc::make_mut(peer).origin_revision = old;
                    }
                }
                Undo::Token(id, old) => drop(put(&mut state.tokens, &id, old)),
                Undo::Administrator(number, old) => {
                    drop(put(&mut state.authority.administrators, &number, old));
                }
                Undo::Authority(old) => state.authority = *old,
                Undo::Confirmation(member, old) => drop(state.authority.set_confirmation(&member, old)),
                Undo::Replica(id, old) => drop(put(&mut state.replicas, &id, old)),
            }
        }
    }
}
