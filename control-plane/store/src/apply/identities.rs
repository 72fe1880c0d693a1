//! Numbers for identities: given out when a workload needs one, taken back in bulk.

use std::collections::BTreeSet;

use mesh_model::{
    identity::{FIRST_IDENTITY, IdentityKey, MAX_IDENTITY},
    records::ClusterInfo,
    resource::{Kind, NamespacedName, Object, ObjectKey, Workload},
};

use super::transaction::Transaction;
use crate::{Refusal, State};

/// Unused numbers are looked for only when there are this many more numbers than workloads could need.
const SLACK: usize = 4_096;

/// What a workload is to policy.
pub(super) fn key_of(cluster: &ClusterInfo, workload: &Workload) -> IdentityKey {
    IdentityKey::of(&cluster.trust_domain, workload)
}

/// Asks for a number for a workload's identity, to be given when the command is committed.
pub(super) fn want(tx: &mut Transaction<'_>, workload: &Workload) -> Result<(), Refusal> {
    let key = key_of(tx.cluster()?, workload);
    let space = (MAX_IDENTITY - FIRST_IDENTITY) as usize;
    // The bound counts this command's as new ones, so giving them out can't fail any more.
    if tx.state().identities.len() + crate::limits::MAX_OBJECTS_PER_COMMAND > space {
        return Err(Refusal::Exhausted {
            what: "identity numbers".to_owned(),
            range: format!("{FIRST_IDENTITY}-{MAX_IDENTITY}"),
        });
    }
    tx.want_identity(key);
    Ok(())
}

/// The number of a declared workload.
pub(super) fn number_of(tx: &Transaction<'_>, name: &NamespacedName) -> Option<u32> {
    let key = ObjectKey { kind: Kind::Workload, name: name.clone() };
    let Some(Object::Workload(workload)) = tx.state().objects.get(&key).map(|o| o.as_ref()) else {
        return None;
    };
    tx.state().identities.lookup(&key_of(tx.state().cluster.as_deref()?, workload))
}

/// Gives out what was asked for, and takes back what nobody has any more once that is worth the walk.
pub(super) fn settle(state: &mut State, wanted: Vec<IdentityKey>) {
    if wanted.is_empty() {
        return;
    }
    for key in &wanted {
        // `want` has seen to it that there is room; if not, the workload has no identity and no traffic.
        let _ = state.identities.number_for(key);
    }
    if state.identities.len() > 2 * state.index.count(Kind::Workload) + SLACK {
        let Some(cluster) = &state.cluster else { return };
        let used: BTreeSet<IdentityKey> = state
            .objects
            .values()
            .filter_map(|object| match object.as_ref() {
                Object::Workload(workload) => Some(key_of(cluster, workload)),
                _ => None,
            })
            .collect();
        state.identities.retain(&used);
    }
}
