//! The node's own certificate is renewed at half its life.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_tls::{CertificateDer, SharedIdentity, certificate_info, certified, csr};
use rand::Rng;
use xds_proto::isthmus::bootstrap::v1::{RenewNodeRequest, certificates_client::CertificatesClient};

use super::{NodeState, Upstream};

/// After a failed attempt.
const RETRY: Duration = Duration::from_secs(30);

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long to wait until half the life of a certificate is over, with up to a tenth of it as jitter, so that
/// the nodes of a cluster that were started together do not renew together. At least a second.
pub(crate) fn until_renewal(not_before: u64, not_after: u64, now: u64, jitter: f64) -> Duration {
    let life = not_after.saturating_sub(not_before);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let due = not_before + life / 2 - ((life as f64 / 10.0) * jitter.clamp(0.0, 1.0)) as u64;
    Duration::from_secs(due.saturating_sub(now).max(1))
}

/// Renews for ever, with a new key each time. Stop it by dropping the future.
pub async fn renew_for_ever(
    mut state: NodeState,
    dir: PathBuf,
    upstream: Upstream,
    identity: SharedIdentity,
) {
    loop {
        let wait = match state.chain.first().map(|leaf| certificate_info(&CertificateDer::from(leaf.clone())))
        {
            Some(Ok(info)) => until_renewal(
                info.not_before_unix,
                info.not_after_unix,
                unix_now(),
                rand::rng().random_range(0.0..1.0),
            ),
            Some(Err(_)) | None => RETRY,
        };
        tokio::time::sleep(wait).await;
        match renew(&state, &upstream).await {
            Ok(renewed) => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_before_half_of_the_life_is_over_and_never_at_once() {
        assert_eq!(until_renewal(1000, 2000, 1000, 0.0), Duration::from_secs(500));
        assert_eq!(until_renewal(1000, 2000, 1000, 1.0), Duration::from_secs(400));
        assert_eq!(until_renewal(1000, 2000, 1900, 0.5), Duration::from_secs(1));
        assert_eq!(until_renewal(2000, 1000, 0, 7.0), Duration::from_secs(2000));
    }
}
