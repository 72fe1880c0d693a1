//! Handing leadership over on purpose: before the leader is removed, and before it is stopped.
//!
//! openraft 0.9 has no such call. Writes wait, the successor gets the last entry, the leader steps down, and the
//! successor stands as soon as the others' lease is over: some 250 ms with the default timings, where a leader that
//! just vanishes costs 1.1 to 1.7 s.

use std::{sync::Arc, time::Duration};

use tokio::{sync::RwLock, time::timeout};

use super::{
    contact::Roster,
    election::Elections,
    network::{TakeOver, take_over},
    types::Metrics,
};

/// For the writes that are under way, and for the successor's last entry.
const SETTLE: Duration = Duration::from_secs(1);
/// For the successor to be elected.
const ELECTED: Duration = Duration::from_secs(3);

/// Held for reading by every write; a transfer holds it alone.
pub(crate) type Gate = Arc<RwLock<()>>;

/// The voter that is best informed, of those that answer and are to stay.
pub(crate) fn successor(
    metrics: &Metrics,
    stay: &Roster,
    reachable: impl Fn(u64) -> bool,
) -> Option<(u64, String)> {
    let membership = metrics.membership_config.membership();
    let replication = metrics.replication.as_ref()?;
    membership
        .voter_ids()
        .filter(|id| *id != metrics.id && stay.members.contains(id) && reachable(*id))
        .max_by_key(|id| (replication.get(id).copied().flatten(), std::cmp::Reverse(*id)))
        .and_then(|id| Some((id, membership.get_node(&id)?.addr.clone())))
}

/// Makes `successor` the leader. When this returns, another replica leads, or the reason is given.
pub(crate) async fn hand_over(
    elections: &Elections,
    gate: &Gate,
    successor: (u64, &str),
) -> Result<(), String> {
    let (id, address) = successor;
    let closed = timeout(SETTLE, gate.write()).await.map_err(|_| "writes are under way still".to_owned())?;
    let mut metrics = elections.raft.metrics();
    let informed = metrics.wait_for(|metrics| {
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
        matched.map(|matched| matched.index) == metrics.last_log_index || metrics.replication.is_none()
    });
    timeout(SETTLE, informed)
        .await
        .map_err(|_| format!("replica {id} does not catch up"))?
        .map_err(|error| error.to_string())?;
    let term = metrics.borrow().current_term;
    elections.step_down().await?;
    take_over(&elections.peers, (id, address), &TakeOver { term }).await?;
    let elected = metrics.wait_for(|metrics| {
        metrics.current_term > term && metrics.current_leader.is_some_and(|leader| leader != elections.id)
    });
    timeout(ELECTED, elected)
        .await
        .map_err(|_| format!("replica {id} was not elected in time"))?
        .map_err(|error| error.to_string())?;
    drop(closed);
    tracing::info!(successor = id, "handed leadership over");
    Ok(())
}
