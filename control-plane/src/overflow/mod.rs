//! Overflow: while most callers of a service report that their calls fail in this cluster, a part of the calls goes to
//! the peers that export the same service, a step at a time, never more than half.
//!
//! * [`decide`]: which steps are due. Pure.
//! * [`run`]: the leader asks every replica what its own callers report ([`here`]), decides for all, and writes the
//!   shares into the state. So every replica serves the same endpoints, a client may move between replicas without
//!   noticing, and a new leader goes on where the old one was.
//!
//! What a caller says counts as one voice, that of the workload which its node attests; what nobody says any more is
//! forgotten after a minute, and the share goes back by itself.

pub mod decide;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use mesh_model::{
    records::Overflow,
    resource::{Kind, NamespacedName, Object, ObjectKey},
    view::names,
};
use mesh_store::{Command, State, limits::MAX_OVERFLOW_CHANGES};
use tonic::Status;
use xds_proto::isthmus::admin::v1::{
    CallerLoad, LoadHereRequest, LoadReports, OverflowStatus, admin_client::AdminClient,
};

use self::decide::{Decider, Port, Seen, Step};
use crate::{app::App, doors, raft::Role};

/// Between two looks of the leader; callers report as often.
const PERIOD: Duration = Duration::from_secs(10);
/// How long another replica may take to tell what its callers report.
const ASK: Duration = Duration::from_secs(2);
/// Voices in one answer.
const MAX_VOICES: usize = 20_000;

/// Decides while this replica leads.
pub async fn run(app: Arc<App>) {
    let started = Instant::now();
    let mut decider = Decider::default();
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        if app.replica.metrics().role != Role::Leader {
            decider = Decider::default();
            continue;
        }
        let state = app.replica.applied();
        let (wanted, shares) = (wanted(&state), shares(&state));
        if wanted.is_empty() && shares.is_empty() {
            continue;
        }
        let voices = gather(&app, &state).await;
        drop(state);
        let seen = count(voices, &wanted, &app.ca.replica().cluster);
        let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut steps = decider.decide(&shares, &wanted, &seen, now_ms);
        steps.truncate(MAX_OVERFLOW_CHANGES);
        if steps.is_empty() {
            continue;
        }
        for Step { port: (service, port), percent, seen } in &steps {
            tracing::warn!(
                %service, port, percent, failing = seen.here.failing, callers = seen.here.voters,
                "another share of calls goes to peers"
            );
        }
        let shares = steps.into_iter().map(record).collect();
        if let Err(error) = app.replica.write(Command::SetOverflow { shares }).await {
            tracing::warn!(%error, "the overflow to peers was not changed");
        }
    }
}

/// What the callers that are connected to this replica say of places that fail.
pub fn here(app: &App) -> LoadReports {
    let mut votes = app.subscribers.loads().votes_of_failing(Instant::now());
    votes.truncate(MAX_VOICES);
    let voice = |vote: crate::xds::load::Vote| CallerLoad {
        caller: vote.caller,
        cluster: vote.cluster,
        region: vote.region,
        failing: vote.failing,
    };
    LoadReports { voices: votes.into_iter().map(voice).collect() }
}

/// The shares that are in effect, for status.
pub fn in_effect(state: &State) -> Vec<OverflowStatus> {
    let each = state.allocations.iter().flat_map(|(service, allocation)| {
        allocation.overflow.iter().map(move |(port, share)| OverflowStatus {
            service: service.to_string(),
            port: u32::from(*port),
            percent: u32::from(share.percent),
            failing: share.failing,
            callers: share.callers,
            since_unix_ms: share.since_unix_ms,
        })
    });
    each.collect()
}

/// Ports of services that say that they want it, and that a peer has too.
fn wanted(state: &State) -> BTreeSet<Port> {
    let is_elsewhere = |name: &NamespacedName| {
        let export = ObjectKey { kind: Kind::ServiceExport, name: name.clone() };
        state.objects.contains_key(&export)
            && state.peers.values().any(|peer| peer.imports.contains_key(name))
    };
    let services = state.objects.values().filter_map(|object| match object.as_ref() {
        Object::Service(service) if service.meta.may_overflow() => Some(service),
        _ => None,
    });
    services
        .filter(|service| is_elsewhere(&service.meta.name))
        .flat_map(|service| service.ports.iter().map(|port| (service.meta.name.clone(), port.port)))
        .collect()
}

fn shares(state: &State) -> BTreeMap<Port, u8> {
    let each = state.allocations.iter().flat_map(|(service, allocation)| {
        allocation.overflow.iter().map(|(port, share)| ((service.clone(), *port), share.percent))
    });
    each.collect()
}

async fn gather(app: &App, state: &State) -> Vec<CallerLoad> {
    let own = app.ca.replica().id;
    let others = state.replicas.values().filter(|replica| replica.id != own);
    let asked = others.map(|replica| async {
        let answer = ask(app, &replica.address).await;
        if let Err(error) = &answer {
            tracing::debug!(replica = replica.id, %error, "does not tell what its callers report");
        }
        answer.unwrap_or_default().voices
    });
    let told = join_all(asked).await;
    here(app).voices.into_iter().chain(told.into_iter().flatten()).collect()
}

async fn ask(app: &App, address: &str) -> Result<LoadReports, Status> {
    let channel = app.replicas.channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
    let mut client = AdminClient::new(channel).max_decoding_message_size(doors::MAX_ADMIN_MESSAGE);
    match tokio::time::timeout(ASK, client.load_here(LoadHereRequest {})).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded(format!("{address} did not answer within {ASK:?}"))),
    }
}

/// Counts each caller once for each place, to whichever replicas it reports: if it contradicts itself, as failing.
fn count(voices: Vec<CallerLoad>, wanted: &BTreeSet<Port>, own: &str) -> BTreeMap<Port, Seen> {
    let by_name: BTreeMap<String, &Port> =
        wanted.iter().map(|port| (names::outbound(&port.0, port.1), port)).collect();
    let mut said: BTreeMap<(&Port, bool, String), bool> = BTreeMap::new();
    for voice in voices {
        let Some(port) = by_name.get(&voice.cluster) else { continue };
        *said.entry((*port, voice.region == own, voice.caller)).or_default() |= voice.failing;
    }
    let mut seen: BTreeMap<Port, Seen> = BTreeMap::new();
    for ((port, at_home, _), failing) in said {
        let of = seen.entry(port.clone()).or_default();
        let votes = if at_home { &mut of.here } else { &mut of.peers };
        votes.voters += 1;
        votes.failing += usize::from(failing);
    }
    seen
}

fn record(step: Step) -> (NamespacedName, u16, Overflow) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (service, port) = step.port;
    let share = Overflow {
        percent: step.percent,
        failing: u32::try_from(step.seen.here.failing).unwrap_or(u32::MAX),
        callers: u32::try_from(step.seen.here.voters).unwrap_or(u32::MAX),
        since_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    };
    (service, port, share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voice(caller: &str, cluster: &str, region: &str, failing: bool) -> CallerLoad {
        CallerLoad { caller: caller.into(), cluster: cluster.into(), region: region.into(), failing }
    }

    #[test]
    fn a_caller_that_reports_to_several_replicas_is_counted_once() {
        let port = (NamespacedName::new("shop", "pay"), 80);
        let pay = "outbound|80|pay.shop";
        let voices = vec![
            voice("shop/a", pay, "west", false),
            voice("shop/a", pay, "west", true),
            voice("shop/b", pay, "west", false),
            voice("shop/b", pay, "east", false),
            voice("shop/b", "outbound|80|other.shop", "west", true),
        ];
        let seen = count(voices, &BTreeSet::from([port.clone()]), "west");
        assert_eq!(seen.keys().collect::<Vec<_>>(), [&port]);
        let Seen { here, peers } = seen[&port];
        assert_eq!((here.failing, here.voters, peers.failing, peers.voters), (1, 2, 0, 1));
    }
}
