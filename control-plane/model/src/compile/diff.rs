//! What changed between two compilations, by name.

use imbl::{OrdMap, ordmap::DiffItem};

use super::MeshModel;
use crate::resource::NamespacedName;

/// Names of what is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes<K> {
    /// New, or not equal to before.
    pub changed: Vec<K>,
    /// No longer there.
    pub removed: Vec<K>,
}

/// The parts of the mesh that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ModelDiff {
    /// The cluster's own facts: its name, roots, address ranges.
    pub cluster: bool,
    pub nodes: Changes<String>,
    pub workloads: Changes<NamespacedName>,
    pub services: Changes<NamespacedName>,
    pub policy_classes: Changes<u32>,
    /// Nodes that a policy selects.
    pub host_classes: Changes<String>,
    pub peers: Changes<String>,
    pub egress_scopes: Changes<NamespacedName>,
}

/// Compares everything but the revisions. Costs what the two models do not share.
pub fn diff(old: &MeshModel, new: &MeshModel) -> ModelDiff {
    ModelDiff {
        cluster: old.cluster != new.cluster,
        nodes: changes(&old.nodes, &new.nodes),
        workloads: changes(&old.workloads, &new.workloads),
        services: changes(&old.services, &new.services),
        policy_classes: changes(&old.policy_classes, &new.policy_classes),
        host_classes: changes(&old.host_classes, &new.host_classes),
        peers: changes(&old.peers, &new.peers),
        egress_scopes: changes(&old.egress_scopes, &new.egress_scopes),
    }
}

impl ModelDiff {
    /// Whether nothing that a view could show is different.
    pub fn is_empty(&self) -> bool {
        !self.cluster
            && self.nodes.is_empty()
            && self.workloads.is_empty()
            && self.services.is_empty()
            && self.policy_classes.is_empty()
            && self.host_classes.is_empty()
            && self.peers.is_empty()
            && self.egress_scopes.is_empty()
    }
}

impl<K> Changes<K> {
    #[allow(missing_docs)]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// Everything that a model has, as if it came after nothing.
pub(super) fn all(new: &MeshModel) -> ModelDiff {
    ModelDiff { cluster: true, ..diff(&MeshModel::empty(new.cluster.clone()), new) }
}

/// In the order of keys.
fn changes<K: Ord + Clone, V: PartialEq>(old: &OrdMap<K, V>, new: &OrdMap<K, V>) -> Changes<K> {
    let mut found = Changes { changed: Vec::new(), removed: Vec::new() };
    for item in old.diff(new) {
        match item {
            DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } => found.changed.push(key.clone()),
            DiffItem::Remove(key, _) => found.removed.push(key.clone()),
        }
    }
    found
}
