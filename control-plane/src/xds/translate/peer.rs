//! What other clusters subscribe to: the exported services, and this cluster's own description.

use std::{collections::BTreeSet, sync::Arc};

use clustermesh::export::{ExportFacts, exported_service};
use mesh_model::{
    compile::{MeshModel, ModelDiff},
    resource::NamespacedName,
};
use xds_proto::isthmus::federation::v1::{ClusterDescription, PeerCluster};

use crate::xds::{Encoded, ResourceSet, TypeResources, kinds};

/// The exported services of one revision, as every peer has them.
#[derive(Debug, Clone, Default)]
pub struct Exports {
    services: TypeResources,
    /// By resource name, for those in `services`.
    origin_revisions: imbl::OrdMap<Arc<str>, u64>,
    /// The newest of them. Changes with what is exported and not with the whole state: a peer is not to be woken for
    /// nothing.
    revision: u64,
}

impl Exports {
    /// Of the revision after. `moved` names services of which only the facts may have changed.
    pub fn update(
        &mut self,
        model: &MeshModel,
        changes: &ModelDiff,
        moved: impl IntoIterator<Item = NamespacedName>,
        facts: impl Fn(&NamespacedName) -> ExportFacts,
    ) {
        let mut names: BTreeSet<NamespacedName> = moved.into_iter().collect();
        names.extend(changes.services.changed.iter().chain(&changes.services.removed).cloned());
        // Of services at node ports it is told which nodes there are.
        if changes.cluster || !changes.nodes.changed.is_empty() || !changes.nodes.removed.is_empty() {
            names.extend(model.index.exported().cloned());
        }
        let mut changed = false;
        for name in names {
            let found = model.services.get(&name).filter(|service| service.exported);
            let key = name.to_string();
            match found.and_then(|service| exported_service(model, service, facts(&name))) {
                Some(message) => {
                    let resource = Arc::new(Encoded::new(key, &message));
                    if self.services.get(&resource.name) != Some(&resource) {
                        self.origin_revisions.insert(resource.name.clone(), message.origin_revision);
                        self.services.insert(resource.name.clone(), resource);
                        changed = true;
                    }
                }
                None if self.services.contains_key(key.as_str()) => {
                    self.services.remove(key.as_str());
                    self.origin_revisions.remove(key.as_str());
                    changed = true;
                }
                None => {}
            }
        }
        if changed {
            self.revision = self.origin_revisions.values().copied().max().unwrap_or(0);
        }
    }

    /// What a peer is to have: nothing until it has joined.
    pub fn view(&self, model: &MeshModel, cluster: &str, description: ClusterDescription) -> ResourceSet {
        let mut set = ResourceSet::new(model.revision);
        if model.peers.contains_key(cluster) {
            set.insert_type(kinds::EXPORTED_SERVICE, self.services.clone());
            let name = description.cluster.clone();
            let message = PeerCluster { description: Some(description), revision: self.revision };
            set.insert(Encoded::new(name, &message));
        }
        set
    }
}
