//! Which labels of a workload are part of its identity.

use std::collections::BTreeMap;

use super::{IdentityKey, TrustDomain};
use crate::resource::{Labels, Workload};

/// Labels that controllers set per copy or per rollout. As part of identities they would allocate one number
/// for each pod; so identities leave them out, and a policy that selects by one of them is refused.
const PER_COPY_LABELS: [&str; 10] = [
    "pod-template-hash",
    "pod-template-generation",
    "controller-revision-hash",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "job-name",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    "apps.kubernetes.io/pod-index",
    "statefulset.kubernetes.io/pod-name",
];

/// Whether a label with this key is part of identities: all are, but those that differ per copy of a workload.
pub fn is_policy_label(key: &str) -> bool {
    !PER_COPY_LABELS.contains(&key)
}

impl IdentityKey {
    /// The identity of a declared workload of the cluster with this trust domain.
    pub fn of(trust_domain: &TrustDomain, workload: &Workload) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            namespace: workload.meta.name.namespace.clone(),
            service_account: workload.service_account.clone(),
            labels: policy_labels(&workload.meta.labels),
        }
    }
}

fn policy_labels(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().filter(|(key, _)| is_policy_label(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}
