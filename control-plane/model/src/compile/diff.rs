//! What changed between two compilations, by name.

use std::collections::BTreeMap;

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
    pub peers: Changes<String>,
}

/// Compares everything but the revisions.
pub fn diff(old: &MeshModel, new: &MeshModel) -> ModelDiff {
    ModelDiff {
        cluster: old.cluster != new.cluster,
        nodes: changes(&old.nodes, &new.nodes),
        workloads: changes(&old.workloads, &new.workloads),
        services: changes(&old.services, &new.services),
        policy_classes: changes(&old.policy_classes, &new.policy_classes),
        peers: changes(&old.peers, &new.peers),
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
            && self.peers.is_empty()
    }
}

impl<K> Changes<K> {
    #[allow(missing_docs)]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

fn changes<K: Ord + Clone, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Changes<K> {
    Changes {
        changed: new.iter().filter(|(k, v)| old.get(k) != Some(v)).map(|(k, _)| k.clone()).collect(),
        removed: old.keys().filter(|k| !new.contains_key(k)).cloned().collect(),
    }
}
