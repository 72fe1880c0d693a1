//! Writes per second and their latency, with so many clients at once.

use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::Group;
use crate::stats::{Side, median, order, quantile};

/// One series each of ours and the baseline.
#[derive(Debug, Default)]
pub struct Writes {
    /// Per second: ours, baseline.
    pub rate: [Vec<f64>; 2],
    /// Median latency of each run in milliseconds.
    pub p50_ms: [Vec<f64>; 2],
    /// 99th percentile of each run in milliseconds.
    pub p99_ms: [Vec<f64>; 2],
    /// Processor time of all three members per 1,000 writes, in seconds.
    pub cpu_s: [Vec<f64>; 2],
}

/// One run.
struct Run {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_s: f64,
}

/// Runs pairs in turn; each run takes `each`. The clients talk to the leader of their group.
pub async fn writes(
    ours: &mut Group,
    baseline: &mut Group,
    clients: usize,
    pairs: usize,
    each: Duration,
    mut progress: impl FnMut(),
) -> Result<Writes> {
    let mut series = Writes::default();
    for pair in order(pairs) {
        for side in pair {
            let (group, index) = match side {
                Side::Ours => (&mut *ours, 0),
                Side::Baseline => (&mut *baseline, 1),
            };
            let run = run(group, clients, each).await?;
            series.rate[index].push(run.rate);
            series.p50_ms[index].push(run.p50_ms);
            series.p99_ms[index].push(run.p99_ms);
            series.cpu_s[index].push(run.cpu_s);
            progress();
        }
    }
    Ok(series)
}

/// Acknowledged writes and durable syncs of the leader during one run. Not for timing: the process is traced.
pub async fn syncs(group: &mut Group, clients: usize, each: Duration) -> Result<(u64, u64)> {
    let leader = group.leader().await?;
    let client = group.client(leader);
    let (latencies, syncs) = group.process(leader).syncs_during(load(client, clients, each)).await?;
    Ok((latencies?.len() as u64, syncs))
}

async fn run(group: &mut Group, clients: usize, each: Duration) -> Result<Run> {
    group.check()?;
    let client = group.client(group.leader().await?);
    let (before, start) = (group.cpu()?, Instant::now());
    let latencies = load(client, clients, each).await?;
    let (cpu, took) = (group.cpu()? - before, start.elapsed());
    ensure!(!latencies.is_empty(), "{} acknowledged no write in {each:?}", group.name);
    let count = latencies.len() as f64;
    Ok(Run {
        rate: count / took.as_secs_f64(),
        p50_ms: median(&latencies),
        p99_ms: quantile(&latencies, 0.99),
        cpu_s: cpu.as_secs_f64() * 1_000.0 / count,
    })
}

/// Latencies in milliseconds of all writes that were acknowledged. A refused write ends the run: nothing here may
/// be refused.
async fn load(client: super::Client, clients: usize, each: Duration) -> Result<Vec<f64>> {
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..clients as u64)
        .map(|writer| {
            let (client, over) = (client.clone(), over.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    client.put(writer).await?;
                    latencies.push(start.elapsed().as_secs_f64() * 1_000.0);
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    tokio::time::sleep(each).await;
    over.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for writer in writers {
        all.extend(writer.await??);
    }
    Ok(all)
}
