//! SIGKILL to the leader: how long until the next write is acknowledged?

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, future::select_ok, stream::FuturesUnordered};

use super::{
    Group, MEMBERS,
    client::{AGAIN, Client, PATIENCE},
};
use crate::stats::{Side, order};

/// Milliseconds: ours, baseline.
#[derive(Debug, Default)]
pub struct Loss {
    /// From the signal to the acknowledgement.
    pub gap_ms: [Vec<f64>; 2],
}

/// So often each, in turn.
pub async fn leader_loss(
    ours: &mut Group,
    baseline: &mut Group,
    times: usize,
    mut progress: impl FnMut(),
) -> Result<Loss> {
    let mut loss = Loss::default();
    for pair in order(times) {
        for side in pair {
            let (group, index) = match side {
                Side::Ours => (&mut *ours, 0),
                Side::Baseline => (&mut *baseline, 1),
            };
            loss.gap_ms[index].push(once(group).await?.as_secs_f64() * 1_000.0);
            progress();
        }
    }
    Ok(loss)
}

async fn once(group: &mut Group) -> Result<Duration> {
    let leader = group.leader().await?;
    // Whoever comes next has heard of everything: a group at rest.
    group.client(leader).put(0).await?;
    let survivors: Vec<Client> =
        (0..MEMBERS).filter(|member| *member != leader).map(|member| group.client(member)).collect();
    group.kill(leader)?;
    let start = Instant::now();
    let written = select_ok(survivors.into_iter().map(|client| Box::pin(until_written(client))));
    let _ = tokio::time::timeout(PATIENCE, written).await.context("no write within a minute")??;
    let gap = start.elapsed();
    group.revive(leader).await?;
    Ok(gap)
}

/// A write that was handed to the dead leader may never be answered, so another one is begun every [`AGAIN`], beside
/// those that wait.
async fn until_written(client: Client) -> Result<()> {
    let mut begun = FuturesUnordered::new();
    let mut next = tokio::time::interval(AGAIN);
    loop {
        tokio::select! {
            _ = next.tick() => begun.push(client.put_within(1, PATIENCE)),
            Some(Ok(())) = begun.next() => return Ok(()),
        }
    }
}
