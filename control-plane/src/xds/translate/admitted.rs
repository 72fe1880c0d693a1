//! Whose access rules a change concerns: who is admitted depends on other workloads' accounts and addresses.

use std::{collections::BTreeSet, net::IpAddr};

use mesh_model::{
    compile::{MeshModel, MeshWorkload, ModelDiff},
    identity::{IdentityNumber, SpiffeId},
    resource::{NamespacedName, ProxyMode},
};

/// What is concerned.
#[derive(Debug, Default)]
pub(super) struct Concerned {
    /// Policy classes that may admit others than before.
    pub(super) classes: BTreeSet<u32>,
    /// Workloads, as `<namespace>/<name>`, that share an address with another one, or did.
    pub(super) workloads: BTreeSet<String>,
}

/// What a change of workloads concerns beside those workloads: found from what they were and are, by index.
pub(super) fn concerned(old: &MeshModel, new: &MeshModel, changes: &ModelDiff) -> Concerned {
    let mut found = Concerned::default();
    let mut accounts: BTreeSet<&SpiffeId> = BTreeSet::new();
    // Who is a node, and not the world, depends on all of them.
    let mut outsiders = !changes.nodes.is_empty();
    for name in changes.workloads.changed.iter().chain(&changes.workloads.removed) {
        let both = [old, new].map(|model| model.workloads.get(name).map(AsRef::as_ref));
        if let [Some(before), Some(after)] = both
            && as_caller(before) == as_caller(after)
        {
            continue;
        }
        let workloads = || both.into_iter().flatten();
        let gateway = workloads().any(|workload| workload.proxy == ProxyMode::Gateway);
        for workload in workloads() {
            let id = &workload.spiffe_id;
            let [before, after] = [old, new].map(|model| identities(model, id));
            // An account whose workloads are all alike is admitted as such, wherever they are; but it is denied by their
            // addresses, too.
            let denied = before.union(&after).any(|i| old.index.is_denied(*i) || new.index.is_denied(*i));
            if gateway || before != after || after.len() > 1 || denied {
                accounts.insert(id);
            }
            for address in workload.binding.iter().flat_map(|binding| &binding.addresses) {
                outsiders |= !new.cluster.has_pods_at(*address);
                for model in [old, new] {
                    let others = model.index.at(*address).filter(|other| *other != name);
                    share(others, model, &mut found, &mut accounts);
                }
            }
        }
    }
    for model in [old, new] {
        for identity in accounts.iter().flat_map(|id| identities(model, id)) {
            found.classes.extend(model.index.admitting(identity));
        }
        if outsiders {
            found.classes.extend(model.index.admitting_outsiders());
        }
    }
    found
}

/// Whoever has an address alone is known by it, and a gateway is only while it has.
fn share<'a>(
    others: impl Iterator<Item = &'a NamespacedName>,
    model: &'a MeshModel,
    found: &mut Concerned,
    accounts: &mut BTreeSet<&'a SpiffeId>,
) {
    for other in others {
        found.workloads.insert(other.to_string());
        if let Some(gateway) = model.workloads.get(other).filter(|w| w.proxy == ProxyMode::Gateway) {
            accounts.insert(&gateway.spiffe_id);
        }
    }
}

fn identities(model: &MeshModel, id: &SpiffeId) -> BTreeSet<IdentityNumber> {
    model.index.account(id).into_iter().flat_map(|account| account.keys().copied()).collect()
}

/// What of a workload others see when it connects to them.
fn as_caller(workload: &MeshWorkload) -> (IdentityNumber, &SpiffeId, ProxyMode, &[IpAddr]) {
    let addresses = workload.binding.as_ref().map(|binding| &binding.addresses[..]).unwrap_or_default();
    (workload.identity, &workload.spiffe_id, workload.proxy, addresses)
}
