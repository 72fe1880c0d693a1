//! What clients have in common that are told of some services and not of others.
//!
//! One set for each distinct answer, whoever it is the answer to: a namespace, or a namespace under a Sidecar object.
//! It selects from the sets that hold every service, so a resource is there once, and is kept up to date by what
//! changed. In most meshes there is none of these sets: everybody has the one with all services.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use mesh_model::{
    compile::{MeshModel, MeshService, ModelDiff},
    resource::NamespacedName,
    view::{Reach, Scope},
};

use super::{
    callers::{Callers, SERVICE_TYPES},
    shared::{Part, Shared, each},
};
use crate::xds::{ResourceSet, kinds};

/// A set that no client has had for so many revisions is forgotten.
const IDLE_REVISIONS: u32 = 64;

/// The sets of one revision, by who has them.
#[derive(Debug, Default)]
pub(super) struct ScopedSets(Mutex<BTreeMap<Key, Kept>>);

/// In this order: what a Sidecar selects from comes before it.
type Key = (Callers, Scope);

#[derive(Debug, Clone, Default)]
struct Kept {
    /// Empty while it is being made.
    set: Arc<OnceLock<Arc<ResourceSet>>>,
    /// Revisions since a client had it.
    idle: u32,
}

impl ScopedSets {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The set of a scope, made if nobody has asked for it before. `all` is of the same revision.
    pub(super) fn get(
        &self,
        all: &Shared,
        callers: Callers,
        scope: &Scope,
        model: &MeshModel,
    ) -> Arc<ResourceSet> {
        let place = {
            let mut sets = self.lock();
            let kept = sets.entry((callers, scope.clone())).or_default();
            kept.idle = 0;
            kept.set.clone()
        };
        // Not under the lock: other scopes are not to wait for this one. Whoever wants the same set does.
        place.get_or_init(|| Arc::new(Selection { all, callers, scope, model }.whole())).clone()
    }

    /// The same, if it is there already.
    pub(super) fn made(&self, callers: Callers, scope: &Scope) -> Option<Arc<ResourceSet>> {
        let mut sets = self.lock();
        let kept = sets.get_mut(&(callers, scope.clone()))?;
        kept.idle = 0;
        kept.set.get().cloned()
    }

    /// Puts into `next`, whose parts are there already, what these sets are after a change.
    pub(super) fn carry_over(&self, next: &Shared, old: &MeshModel, new: &MeshModel, changes: &ModelDiff) {
        let kept: Vec<(Key, Kept)> =
            self.lock().iter().map(|(key, kept)| (key.clone(), kept.clone())).collect();
        for ((callers, scope), Kept { set, idle }) in kept {
            let Some(set) = set.get().filter(|_| idle < IDLE_REVISIONS) else { continue };
            let selection = Selection { all: next, callers, scope: &scope, model: new };
            let set = Arc::new(OnceLock::from(selection.after(set, old, changes)));
            next.scoped().lock().insert((callers, scope), Kept { set, idle: idle + 1 });
        }
    }
}

/// What of a revision belongs to a scope.
struct Selection<'a> {
    all: &'a Shared,
    callers: Callers,
    scope: &'a Scope,
    model: &'a MeshModel,
}

impl Selection<'_> {
    fn whole(&self) -> ResourceSet {
        let public = self.all.part(Part::Public(self.callers), self.model);
        match self.scope {
            // Nearly all of it is what everybody has: so is the tree.
            Scope::Public | Scope::Namespace(_) => {
                let mut set = (**public).clone();
                let namespace = match self.scope {
                    Scope::Namespace(namespace) => namespace.as_str(),
                    Scope::Public | Scope::Egress { .. } => "",
                };
                for name in self.model.index.restricted_to(namespace) {
                    self.put(&mut set, BTreeSet::new(), self.model.services.get(name).map(Arc::as_ref));
                }
                set
            }
            Scope::Egress { .. } => {
                let mut set = ResourceSet::new(0);
                for service in self.model.services.values() {
                    self.put(&mut set, BTreeSet::new(), Some(service.as_ref()));
                }
                self.put_the_rest(&mut set);
                set
            }
        }
    }

    /// The same set, if nothing in it is different.
    fn after(&self, before: &Arc<ResourceSet>, old: &MeshModel, changes: &ModelDiff) -> Arc<ResourceSet> {
        let relisted = match self.scope {
            Scope::Egress { sidecar, .. } => each(&changes.egress_scopes).any(|name| name == sidecar),
            Scope::Public | Scope::Namespace(_) => false,
        };
        let set = if relisted {
            let mut set = self.whole();
            set.share_with(before);
            self.put_the_rest(&mut set);
            set
        } else {
            let mut set = (**before).clone();
            for name in self.concerned(old, changes) {
                let gone = old
                    .services
                    .get(name)
                    .map(|service| self.callers.names(&old.cluster.mesh_domain, service));
                self.put(&mut set, gone.unwrap_or_default(), self.model.services.get(name).map(Arc::as_ref));
            }
            self.put_the_rest(&mut set);
            set
        };
        if set.shares_all(before) { before.clone() } else { Arc::new(set) }
    }

    /// Services that changed, and where their routes lead and led: how these are reached may be different.
    fn concerned<'c>(&self, old: &'c MeshModel, changes: &'c ModelDiff) -> BTreeSet<&'c NamespacedName>
    where
        Self: 'c,
    {
        let mut names: BTreeSet<&NamespacedName> = each(&changes.services).collect();
        if matches!(self.scope, Scope::Egress { .. }) {
            for name in each(&changes.services) {
                for service in [old.services.get(name), self.model.services.get(name)].into_iter().flatten() {
                    names.extend(service.backends());
                }
            }
        }
        names
    }

    /// Makes one service in the set what it is now; `gone` are the names that it had before.
    fn put(
        &self,
        set: &mut ResourceSet,
        mut gone: BTreeSet<(&'static str, String)>,
        now: Option<&MeshService>,
    ) {
        if let Some(service) = now {
            let reach = self.scope.reach(self.model, service);
            let from = match service.visibility.is_everywhere() {
                true => Part::Public(self.callers),
                false => Part::Restricted(self.callers),
            };
            let from = self.all.part(from, self.model);
            for (type_url, name) in self.callers.names(&self.model.cluster.mesh_domain, service) {
                let wanted = match reach {
                    Reach::Whole => true,
                    Reach::Backend => type_url == kinds::CLUSTER || type_url == kinds::ENDPOINT,
                    Reach::Named | Reach::Hidden => false,
                };
                if let Some(resource) = from.get(type_url, &name).filter(|_| wanted) {
                    set.put(resource.clone());
                    gone.remove(&(type_url, name));
                }
            }
        }
        for (type_url, name) in gone {
            set.remove(type_url, &name);
        }
    }

    /// What is no service, and what there is by name.
    fn put_the_rest(&self, set: &mut ResourceSet) {
        let public = self.all.part(Part::Public(self.callers), self.model);
        set.insert_type(kinds::SECRET, public.of(kinds::SECRET).cloned().unwrap_or_default());
        if matches!(self.scope, Scope::Egress { .. }) {
            let visible = self.all.of_scope(self.callers, &self.scope.visible(self.model), self.model);
            set.name_types_of(&visible, &SERVICE_TYPES);
        }
    }
}
