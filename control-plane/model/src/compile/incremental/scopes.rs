//! Sidecar objects: what they say, and whose Sidecar is another one.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    super::{Changes, Input, scope},
    Changed, Last, changed,
};
use crate::{
    compile::ROOT_NAMESPACE,
    resource::{Kind, NamespacedName, Object, ObjectKey},
};

impl Last {
    /// Takes over what changed Sidecars say.
    pub(super) fn compile_scopes(
        &mut self,
        objects: &Changed<ObjectKey, Arc<Object>>,
    ) -> Changes<NamespacedName> {
        let mut changes = Changes::none();
        for (key, ..) in objects.iter().filter(|(key, ..)| key.kind == Kind::Sidecar) {
            let after = match self.input.object(Kind::Sidecar, &key.name) {
                Some(Object::Sidecar(sidecar)) => Some(scope::one(sidecar)),
                _ => None,
            };
            if self.model.egress_scopes.get(&key.name).map(Arc::as_ref) != after.as_ref() {
                changes.put(&mut self.model.egress_scopes, &key.name, after.map(Arc::new));
            }
        }
        changes
    }

    /// Workloads that may come under another Sidecar: those of its namespace, or all if that is the root.
    pub(super) fn rescoped(
        &self,
        old: &Input,
        objects: &Changed<ObjectKey, Arc<Object>>,
    ) -> BTreeSet<NamespacedName> {
        let mut namespaces: BTreeSet<&str> = BTreeSet::new();
        for (key, before, after) in objects.iter().filter(|(key, ..)| key.kind == Kind::Sidecar) {
            let selects = |object: &Option<Arc<Object>>| match object.as_deref() {
                Some(Object::Sidecar(sidecar)) => Some(sidecar.workloads.clone()),
                _ => None,
            };
            // Other hosts are nothing to those who have it already.
            if selects(before) != selects(after) {
                namespaces.insert(&key.name.namespace);
            }
        }
        let aged = changed(&old.object_meta, &self.input.object_meta);
        for (key, before, after) in aged.iter().filter(|(key, ..)| key.kind == Kind::Sidecar) {
            if before.as_ref().map(|meta| meta.created_unix) != after.as_ref().map(|meta| meta.created_unix) {
                namespaces.insert(&key.name.namespace);
            }
        }
        let everywhere = namespaces.contains(ROOT_NAMESPACE);
        let of = |namespace| self.declared.labelled.candidates(namespace, &None).into_iter().cloned();
        if everywhere {
            return of(None).collect();
        }
        namespaces.into_iter().flat_map(|namespace| of(Some(namespace))).collect()
    }
}
