//! Overflow: while most callers of a service report that their calls fail in this cluster, a part of the calls goes to
//! the peers that export the same service, a step at a time, never more than half.
//!
//! * [`decide`]: which steps are due. Pure.
//! * [`run`]: the leader asks every replica what its own callers report ([`here`]), decides for all, and writes the
//!   shares into the state. So every replica serves the same endpoints, a client may move between replicas without
//!   noticing, and a new leader goes on where the old one was.
//!
//! What a caller says counts as one voice, that of the workload which its node attests; no node's workloads decide
//! alone; what nobody says any more is forgotten after a minute, and the share goes back by itself.

pub mod decide;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use mesh_model::{
    records::Overflow,
    resource::{Kind, NamespacedName, Object, ObjectKey, Protocol},
    view::names,
};
use mesh_store::{Command, State, limits::MAX_OVERFLOW_CHANGES};
use tonic::Status;
use xds_proto::isthmus::admin::v1::{
    CallerLoad, LoadHereRequest, LoadReports, OverflowStatus, admin_client::AdminClient,
};

use self::decide::{Decider, Port, Seen, Step, Votes};
use crate::{app::App, doors, raft::Role};

/// Between two looks of the leader; callers report as often.
const PERIOD: Duration = Duration::from_secs(10);
/// How long another replica may take to tell what its callers report.
const ASK: Duration = Duration::from_secs(2);

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
        let node = |caller: &NamespacedName| state.bindings.get(caller).map(|binding| binding.node.as_str());
        let seen = count(&voices, &wanted, node);
        drop(state);
        let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut steps = decider.decide(&shares, &wanted, &seen, now_ms);
        steps.truncate(MAX_OVERFLOW_CHANGES);
        if steps.is_empty() {
            continue;
        }
        for Step { port: (service, port), percent, seen } in &steps {
            tracing::warn!(
                %service, port, percent, failing = seen.here.all.failing, callers = seen.here.all.voters,
                "another share of calls goes to peers"
            );
        }
        let shares = steps.into_iter().map(record).collect();
        if let Err(error) = app.replica.write(Command::SetOverflow { shares }).await {
            tracing::warn!(%error, "the overflow to peers was not changed");
        }
    }
}

/// What the callers that are connected to this replica say of the ports that may overflow: the contented ones too, or
/// those of one replica would outvote them.
pub fn here(app: &App) -> LoadReports {
    let wanted = wanted(&app.replica.applied());
    let names: BTreeSet<String> =
        wanted.iter().map(|(service, port)| names::outbound(service, *port)).collect();
    let own = &app.ca.replica().cluster;
    let votes = app.subscribers.loads().votes(own, |cluster| names.contains(cluster), Instant::now());
    let voice = |vote: crate::xds::load::Vote| CallerLoad {
        caller: vote.caller,
        cluster: vote.cluster,
        peers: vote.peers,
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

/// Ports of services that say that they want it, and that a peer has ready too.
fn wanted(state: &State) -> BTreeSet<Port> {
    let is_elsewhere = |name: &NamespacedName, port: u16| {
        let export = ObjectKey { kind: Kind::ServiceExport, name: name.clone() };
        let domain = state.cluster.as_ref().map(|cluster| &cluster.mesh_domain);
        let peers = state.peers.values().filter(|peer| Some(&peer.mesh_domain) == domain);
        let offers = peers.filter_map(|peer| peer.imports.get(name));
        let mut ready = offers.filter(|offer| offer.ready_endpoints > 0).flat_map(|offer| &offer.ports);
        state.objects.contains_key(&export)
            && ready.any(|offered| (offered.port, offered.protocol) == (port, Protocol::Tcp))
    };
    let services = state.objects.values().filter_map(|object| match object.as_ref() {
        Object::Service(service) if service.meta.may_overflow() => Some(service),
        _ => None,
    });
    let ports = services.flat_map(|service| service.ports.iter().map(|port| (&service.meta.name, port)));
    ports
        .filter(|(name, port)| port.protocol == Protocol::Tcp && is_elsewhere(name, port.port))
        .map(|(name, port)| (name.clone(), port.port))
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

/// Where each caller runs, and whether it complains.
type Callers<'a> = BTreeMap<&'a str, (&'a str, bool)>;

/// Counts each caller once for each place, to whichever replicas it reports: if it contradicts itself, as failing. Whoever
/// runs on no node (any more) has no voice.
fn count<'a>(
    voices: &'a [CallerLoad],
    wanted: &BTreeSet<Port>,
    node: impl Fn(&NamespacedName) -> Option<&'a str>,
) -> BTreeMap<Port, Seen> {
    let by_name: BTreeMap<String, &Port> =
        wanted.iter().map(|port| (names::outbound(&port.0, port.1), port)).collect();
    let mut said: BTreeMap<(&Port, bool), Callers<'a>> = BTreeMap::new();
    for voice in voices {
        let Some(port) = by_name.get(&voice.cluster) else { continue };
        let Some(node) = NamespacedName::parse(&voice.caller).and_then(|caller| node(&caller)) else {
            continue;
        };
        let callers = said.entry((*port, voice.peers)).or_default();
        callers.entry(&voice.caller).or_insert((node, false)).1 |= voice.failing;
    }
    let mut seen: BTreeMap<Port, Seen> = BTreeMap::new();
    for ((port, peers), callers) in said {
        let of = seen.entry(port.clone()).or_default();
        let votes = Votes::count(callers.into_values());
        match peers {
            true => of.peers = votes.all,
            false => of.here = votes,
        }
    }
    seen
}

fn record(step: Step) -> (NamespacedName, u16, Overflow) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (service, port) = step.port;
    let share = Overflow {
        percent: step.percent,
        failing: u32::try_from(step.seen.here.all.failing).unwrap_or(u32::MAX),
        callers: u32::try_from(step.seen.here.all.voters).unwrap_or(u32::MAX),
        since_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    };
    (service, port, share)
}

#[cfg(test)]
mod tests {
    use super::{decide::PerNode, *};

    fn voice(caller: &str, cluster: &str, peers: bool, failing: bool) -> CallerLoad {
        CallerLoad { caller: caller.into(), cluster: cluster.into(), peers, failing }
    }

    #[test]
    fn a_caller_that_reports_to_several_replicas_is_counted_once_and_one_without_a_node_never() {
        let port = (NamespacedName::new("shop", "pay"), 80);
        let pay = "outbound|80|pay.shop";
        let voices = [
            voice("shop/a", pay, false, false),
            voice("shop/a", pay, false, true),
            voice("shop/b", pay, false, false),
            voice("shop/b", pay, true, false),
            voice("shop/gone", pay, false, true),
            voice("no name", pay, false, true),
            voice("shop/b", "outbound|80|other.shop", false, true),
        ];
        let node = |caller: &NamespacedName| (caller.name != "gone").then_some("n1");
        let seen = count(&voices, &BTreeSet::from([port.clone()]), node);
        let here = PerNode { all: Votes { failing: 1, voters: 2 }, least: Votes::default() };
        let expected = Seen { here, peers: Votes { failing: 0, voters: 1 } };
        assert_eq!(seen, BTreeMap::from([(port, expected)]));
    }
}
