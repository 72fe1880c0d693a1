//! What this node, and every data plane on it, trusts and shows by now. A rotation of the root waits for the report.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_model::{identity::TrustDomain, resource::NamespacedName};
use mesh_tls::{CertificateDer, SharedIdentity, fingerprint, root_of};
use tokio::sync::watch;
use xds_proto::isthmus::bootstrap::v1::{ReportTrustRequest, certificates_client::CertificatesClient};

use super::Secrets;
use crate::{
    bootstrap::{Upstream, hex},
    engine::Engine,
    subscribe::Resources,
};

/// After a refusal or a lost connection.
const RETRY: Duration = Duration::from_secs(2);

/// What the streams of secrets have been answered with: versions by name, ACKed.
#[derive(Debug, Clone, Default)]
pub(super) struct Acks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    streams: Mutex<(u64, BTreeMap<u64, Held>)>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Held {
    workload: NamespacedName,
    wanted: BTreeSet<String>,
    acked: BTreeMap<String, String>,
}

/// One stream; forgotten when dropped.
#[derive(Debug)]
pub(super) struct Acking {
    number: u64,
    all: Acks,
}

impl Acks {
    pub(super) fn open(&self, workload: NamespacedName) -> Acking {
        let mut streams = self.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.0 += 1;
        let number = streams.0;
        streams.1.insert(number, Held { workload, wanted: BTreeSet::new(), acked: BTreeMap::new() });
        Acking { number, all: self.clone() }
    }

    /// Whether every stream has ACKed the version that each secret has now. A secret that there is not is not waited for.
    fn are_current(&self, version: impl Fn(&NamespacedName, &str) -> Option<String>) -> bool {
        let streams = self.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.1.values().all(|held| {
            held.wanted.iter().all(|name| {
                let now = version(&held.workload, name);
                now.is_none() || now.as_ref() == held.acked.get(name)
            })
        })
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Acking {
    /// What the stream wants, and has ACKed.
    pub(super) fn update(&self, wanted: &BTreeSet<String>, acked: &BTreeMap<String, String>) {
        {
            let mut streams = self.all.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(held) = streams.1.get_mut(&self.number) else { return };
            if held.wanted == *wanted && held.acked == *acked {
                return;
            }
            held.wanted.clone_from(wanted);
            held.acked.clone_from(acked);
        }
        self.all.changed();
    }
}

impl Drop for Acking {
    fn drop(&mut self) {
        self.all.0.streams.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.number);
        self.all.changed();
    }
}

/// The report. PURE.
fn report(
    own: &TrustDomain,
    resources: &Resources,
    chains: &[Vec<CertificateDer<'static>>],
) -> ReportTrustRequest {
    let generation = resources.bundles.values().map(|bundle| bundle.generation).max().unwrap_or(0);
    let roots: Vec<_> = resources
        .bundles
        .get(own)
        .map(|bundle| bundle.roots.iter().cloned().map(CertificateDer::from).collect())
        .unwrap_or_default();
    let mut under =
        chains.iter().map(|chain| root_of(chain, &roots).map(|root| hex::encode(&fingerprint(root))));
    let first = under.next().flatten().unwrap_or_default();
    let same = under.all(|root| root.as_ref() == Some(&first));
    ReportTrustRequest { generation, root_sha256: if same { first } else { String::new() } }
}

/// Reports whenever it has become another, for ever.
pub async fn report_trust_for_ever(
    own: TrustDomain,
    engine: Engine,
    secrets: Secrets,
    identity: SharedIdentity,
    upstream: Upstream,
) {
    let acks = secrets.acks().clone();
    let (mut of_engine, mut of_secrets) = (engine.changes(), secrets.changes());
    let mut of_acks = acks.0.changes.subscribe();
    let mut told = None;
    loop {
        of_engine.borrow_and_update();
        of_secrets.borrow_and_update();
        of_acks.borrow_and_update();
        let current = acks.are_current(|workload, name| secrets.version(workload, name));
        let node = identity.load().as_ref().map(|key| key.cert.clone());
        let chains: Vec<_> = node.into_iter().chain(secrets.chains()).collect();
        let now = engine.resources(|resources| report(&own, resources, &chains));
        // Without any bundle there is nothing to tell.
        if current && now.generation > 0 && told.as_ref() != Some(&now) {
            let sent = upstream.call(|channel| {
                let now = now.clone();
                async move { CertificatesClient::new(channel).report_trust(now).await }
            });
            match sent.await {
                Ok(_) => told = Some(now),
                Err(status) => {
                    tracing::debug!(reason = status.message(), "the trust of this node is not reported yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
            continue;
        }
        tokio::select! {
            changed = of_engine.changed() => if changed.is_err() { return },
            changed = of_secrets.changed() => if changed.is_err() { return },
            changed = of_acks.changed() => if changed.is_err() { return },
            // The node's own certificate changes without a word.
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_stream_is_current_when_it_has_acked_what_there_is_now() {
        let acks = Acks::default();
        let version = |_: &NamespacedName, name: &str| match name {
            "ROOTCA" => Some("2".to_owned()),
            _ => None,
        };
        assert!(acks.are_current(version), "nobody asks for anything");
        let stream = acks.open(NamespacedName::new("shop", "web"));
        stream.update(&names(&["ROOTCA", "missing"]), &BTreeMap::new());
        assert!(!acks.are_current(version));
        stream.update(&names(&["ROOTCA"]), &[("ROOTCA".to_owned(), "1".to_owned())].into());
        assert!(!acks.are_current(version), "an older one");
        stream.update(&names(&["ROOTCA"]), &[("ROOTCA".to_owned(), "2".to_owned())].into());
        assert!(acks.are_current(version));
        let late = acks.open(NamespacedName::new("shop", "pay"));
        late.update(&names(&["ROOTCA"]), &BTreeMap::new());
        assert!(!acks.are_current(version));
        drop(late);
        assert!(acks.are_current(version), "whoever has gone is not waited for");
    }

    #[test]
    fn a_report_names_a_root_only_if_every_chain_leads_to_it() {
        use mesh_model::identity::SpiffeId;
        use mesh_tls::{csr, issue};
        let own = TrustDomain::parse("west.example").unwrap();
        let now = std::time::SystemTime::now();
        let made: Vec<_> = (0..2)
            .map(|_| {
                let root = issue::Root::generate(own.clone(), now).unwrap();
                let key = issue::Issuer::generate().unwrap();
                let certificate = root.sign_issuer(&key.csr(&own).unwrap(), now).unwrap();
                let id = SpiffeId::workload(&own, "shop", "web");
                let (request, _) = csr::generate(&id).unwrap();
                let issuer = key.certified(certificate).unwrap();
                (root.certificate().clone(), issuer.sign(&request, &id, issue::LEAF_TTL, now).unwrap())
            })
            .collect();
        let mut resources = Resources::default();
        let bundle = crate::subscribe::Bundle {
            roots: made.iter().map(|(root, _)| root.to_vec()).collect(),
            generation: 4,
            ..Default::default()
        };
        resources.bundles.insert(own.clone(), bundle);
        let chain = |at: usize| made[at].1.clone();
        let first = hex::encode(&fingerprint(&made[0].0));
        assert_eq!(report(&own, &resources, &[chain(0), chain(0)]).root_sha256, first);
        assert_eq!(report(&own, &resources, &[chain(0), chain(1)]).root_sha256, "");
        assert_eq!(report(&own, &resources, &[chain(0)]).generation, 4);
        assert_eq!(report(&own, &Resources::default(), &[chain(0)]), ReportTrustRequest::default());
    }
}
