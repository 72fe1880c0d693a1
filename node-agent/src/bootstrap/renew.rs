//! The node's own certificate is renewed at half its life.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_tls::{CertificateDer, Life, SharedIdentity, certified, csr};
use rand::Rng;
use xds_proto::isthmus::bootstrap::v1::{RenewNodeRequest, certificates_client::CertificatesClient};

use super::{NodeState, Upstream};
use crate::{engine::Engine, identity::RENEWAL_SPREAD};

/// After a failed attempt.
const RETRY: Duration = Duration::from_secs(30);

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Renews for ever, with a new key each time: at half of the certificate's life, or when another root signs. Stop it by
/// dropping the future.
pub async fn renew_for_ever(
    mut state: NodeState,
    dir: PathBuf,
    upstream: Upstream,
    engine: Engine,
    identity: SharedIdentity,
) {
    let mut changes = engine.changes();
    loop {
        changes.borrow_and_update();
        let chain: Vec<_> = state.chain.iter().cloned().map(CertificateDer::from).collect();
        let is_active =
            || engine.resources(|r| r.bundles.get(&state.trust_domain).is_none_or(|b| b.is_active(&chain)));
        let (active, jitter) = (is_active(), rand::rng().random_range(0.0..1.0));
        let wait = match chain.first().map(Life::of) {
            Some(Ok(_)) if !active => RENEWAL_SPREAD.mul_f64(jitter).max(Duration::from_millis(500)),
            Some(Ok(life)) => life.due_in(unix_now(), jitter).max(Duration::from_secs(1)),
            Some(Err(_)) | None => RETRY,
        };
        let due = tokio::time::sleep(wait);
        tokio::pin!(due);
        let changed = loop {
            tokio::select! {
                () = &mut due => break false,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if is_active() != active {
                        break true;
                    }
                }
            }
        };
        if changed {
            continue;
        }
        match renew(&state, &upstream).await {
            Ok(mut renewed) => {
                // Those of registration may be gone by now; should the cache be lost, these lead to the control plane.
                let told = engine.resources(|r| r.bundles.get(&state.trust_domain).map(|b| b.roots.clone()));
                renewed.roots = told.unwrap_or(renewed.roots);
                let stored = renewed.identity().map_err(|error| error.to_string());
                match stored.and_then(|own| certified(own).map_err(|error| error.to_string())) {
                    Ok(key) => {
                        identity.store(Some(key));
                        if let Err(error) = renewed.save(&dir) {
                            tracing::error!(%error, "the renewed node certificate cannot be stored");
                        }
                        state = renewed;
                        tracing::info!("node certificate renewed");
                    }
                    Err(reason) => tracing::error!(reason, "the renewed node certificate is unusable"),
                }
            }
            Err(reason) => {
                tracing::warn!(reason, "the node certificate was not renewed; trying again in {RETRY:?}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn renew(state: &NodeState, upstream: &Upstream) -> Result<NodeState, String> {
    let (csr, key) = csr::generate(upstream.node_id()).map_err(|error| error.to_string())?;
    let answer = upstream
        .call(|channel| {
            let csr = csr.clone();
            async move { CertificatesClient::new(channel).renew_node(RenewNodeRequest { csr }).await }
        })
        .await
        .map_err(|status| status.message().to_owned())?;
    Ok(NodeState { chain: answer.chain, key: key.secret_der().to_vec(), ..state.clone() })
}
