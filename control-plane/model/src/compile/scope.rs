//! Which Sidecar object says what a workload calls. Istio's rule: one that selects the workload by its labels, else the
//! one of its namespace that selects nobody, else that of the root namespace. Of several the oldest, and of equally old
//! ones the first by name.

use std::sync::Arc;

use imbl::OrdMap;

use super::{EgressScope, Input};
use crate::resource::{Kind, NamespacedName, Object, ObjectKey, Sidecar, Workload, matches_labels};

/// Whose Sidecar without a selector is everybody's default: Istio's root namespace, under its own name.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// What every Sidecar says.
pub(super) fn all(input: &Input) -> OrdMap<NamespacedName, Arc<EgressScope>> {
    let sidecars = input.objects.values().filter_map(|object| match object.as_ref() {
        Object::Sidecar(sidecar) => Some(sidecar),
        _ => None,
    });
    sidecars.map(|sidecar| (sidecar.meta.name.clone(), Arc::new(one(sidecar)))).collect()
}

/// What one says.
pub(super) fn one(sidecar: &Sidecar) -> EgressScope {
    EgressScope { hosts: sidecar.hosts.clone() }
}

/// The Sidecar of a workload.
pub(super) fn of(input: &Input, workload: &Workload) -> Option<NamespacedName> {
    let namespace = workload.meta.name.namespace.as_str();
    let selects =
        |s: &&Sidecar| !s.workloads.is_empty() && matches_labels(&s.workloads, &workload.meta.labels);
    let default_of =
        |namespace| oldest(input, in_namespace(input, namespace).filter(|s| s.workloads.is_empty()));
    oldest(input, in_namespace(input, namespace).filter(selects))
        .or_else(|| default_of(namespace))
        .or_else(|| default_of(ROOT_NAMESPACE))
        .map(|sidecar| sidecar.meta.name.clone())
}

fn in_namespace<'a>(input: &'a Input, namespace: &'a str) -> impl Iterator<Item = &'a Sidecar> {
    // No name is empty: this one comes before all of the namespace.
    let first = ObjectKey { kind: Kind::Sidecar, name: NamespacedName::new(namespace, "") };
    let objects = input.objects.range(first..).map(|(_, object)| object.as_ref());
    objects.map_while(move |object| match object {
        Object::Sidecar(sidecar) if sidecar.meta.name.namespace == namespace => Some(sidecar),
        _ => None,
    })
}

/// One whose age is not known counts as the youngest.
fn oldest<'a>(input: &Input, sidecars: impl Iterator<Item = &'a Sidecar>) -> Option<&'a Sidecar> {
    sidecars.min_by_key(|sidecar| {
        let key = ObjectKey { kind: Kind::Sidecar, name: sidecar.meta.name.clone() };
        (input.object_meta.get(&key).map_or(u64::MAX, |meta| meta.created_unix), &sidecar.meta.name)
    })
}
