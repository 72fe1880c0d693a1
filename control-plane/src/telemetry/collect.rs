//! The metrics of a replica, gathered when somebody asks. Nothing here is on the way of a request: what is counted
//! elsewhere is read, and what is known elsewhere is looked up.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::{
    page::{Labels, Page, label, number},
    process::Process,
};
use crate::{app::App, raft::Role as RaftRole, xds::Views};

/// Asks a replica.
#[derive(Debug)]
pub struct Metrics(pub Arc<App>);

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (app, mut page) = (&self.0, Page::new(encoder));
        page.gauges(
            "isthmus_build",
            "Always 1; which version runs",
            [(label("version", env!("CARGO_PKG_VERSION")), 1.0)],
        )?;
        raft(app, &mut page)?;
        store(app, &mut page)?;
        xds(app, &mut page)?;
        super::load::encode(app.subscribers.loads(), Instant::now(), &mut page)?;
        page.gauges(
            "isthmus_load_overflow_percent",
            "Share of the calls of a service port that goes to peers, because callers report that they fail here",
            crate::overflow::in_effect(&app.replica.applied()).into_iter().map(|share| {
                let labels = vec![("service", share.service), ("port", share.port.to_string())];
                (labels, f64::from(share.percent))
            }),
        )?;
        authority(app, &mut page)?;
        federation(app, &mut page)?;
        doors(app, &mut page)?;
        Process::read().encode(&mut page)
    }
}

fn raft(app: &App, page: &mut Page<'_>) -> fmt::Result {
    let view = app.replica.metrics();
    let roles =
        [RaftRole::Leader, RaftRole::Follower, RaftRole::Candidate, RaftRole::Learner, RaftRole::Stopped];
    let flag = |holds: bool| if holds { 1.0 } else { 0.0 };
    page.gauge("isthmus_raft_term", "Raft's term", number(view.term))?;
    page.gauge(
        "isthmus_raft_leader",
        "Id of the leader; 0: none is known",
        number(view.leader.unwrap_or(0)),
    )?;
    page.gauges(
        "isthmus_raft_role",
        "1 for the role that this replica has",
        roles.map(|role| (label("role", role.as_str()), flag(view.role == role))),
    )?;
    page.gauge("isthmus_raft_last_log_index", "Newest log entry", number(view.last_log_index.unwrap_or(0)))?;
    page.gauge(
        "isthmus_raft_applied_index",
        "Newest applied entry",
        number(view.applied_index.unwrap_or(0)),
    )?;
    page.gauge(
        "isthmus_raft_snapshot_index",
        "Newest entry in the snapshot",
        number(view.snapshot_index.unwrap_or(0)),
    )?;
    page.gauges(
        "isthmus_raft_quorum_ack_age_seconds",
        "On the leader: since a majority has confirmed it",
        view.quorum_ack_ms.map(|ms| (Labels::new(), ms as f64 / 1e3)),
    )?;
    page.gauges(
        "isthmus_raft_member_lag_entries",
        "Log entries that a member lacks, as far as this replica knows",
        view.members.iter().filter_map(|m| Some((label("replica", m.id.to_string()), number(m.lag?)))),
    )?;
    page.gauges(
        "isthmus_raft_member_reachable",
        "1 for members that have answered lately, of those that this replica has asked",
        view.members.iter().filter_map(|m| Some((label("replica", m.id.to_string()), flag(m.reachable?)))),
    )?;
    page.counter(
        "isthmus_raft_entries_written",
        "Log entries written since the start",
        view.counters.entries_written,
    )?;
    page.counter(
        "isthmus_raft_groups_synced",
        "Groups of log entries made durable since the start; each costs one sync, of the journal",
        view.counters.groups_synced,
    )?;
    page.gauge(
        "isthmus_raft_disk_bytes",
        "Log, watermark and snapshot on the disk",
        number(folder_bytes(&app.config.data_dir.join("raft"))),
    )?;
    page.histogram(
        "isthmus_raft_write_seconds",
        "From taking a command to its durable acknowledgement, on the replica that took it",
        app.replica.write_times(),
    )
}

fn store(app: &App, page: &mut Page<'_>) -> fmt::Result {
    let state = app.replica.applied();
    let mut objects: BTreeMap<&str, u64> =
        mesh_model::resource::Kind::ALL.into_iter().map(|kind| (kind.as_str(), 0)).collect();
    for key in state.objects.keys() {
        *objects.entry(key.kind.as_str()).or_default() += 1;
    }
    let (waits, watches) = app.gate.open();
    page.gauge("isthmus_store_revision", "The state's revision", number(state.revision))?;
    page.gauges(
        "isthmus_store_objects",
        "Objects by kind",
        objects.into_iter().map(|(kind, count)| (label("kind", kind), number(count))),
    )?;
    page.gauge("isthmus_store_nodes", "Registered nodes", number(state.nodes.len() as u64))?;
    page.gauge(
        "isthmus_store_bindings",
        "Workloads that run somewhere",
        number(state.bindings.len() as u64),
    )?;
    let history = app.replica.history_stats();
    page.gauge("isthmus_store_history_events", "Events kept for watchers", number(history.events as u64))?;
    page.gauge(
        "isthmus_store_history_oldest_revision",
        "A watch can go on from this revision or a later one",
        number(history.oldest),
    )?;
    page.gauge("isthmus_admin_watches", "Open watches and observers", number(watches as u64))?;
    page.gauge("isthmus_admin_waits", "Open waits for data planes", number(waits as u64))
}

fn xds(app: &App, page: &mut Page<'_>) -> fmt::Result {
    let (metrics, sums) = (app.subscribers.metrics(), app.subscribers.sums(Instant::now()));
    let by = |of: fn(&crate::xds::subscribers::Sum) -> u64| {
        sums.iter().map(move |((kind, protocol), sum)| {
            (vec![("kind", (*kind).to_owned()), ("protocol", (*protocol).to_owned())], number(of(sum)))
        })
    };
    page.gauges("isthmus_xds_streams", "Open streams", by(|sum| sum.streams))?;
    page.gauges("isthmus_xds_streams_syncing", "Streams with something unanswered", by(|sum| sum.syncing))?;
    page.gauges("isthmus_xds_streams_refused", "Streams with a refusal that stands", by(|sum| sum.refused))?;
    page.gauges(
        "isthmus_xds_streams_stale",
        "Streams that stand, and whose client answers nothing: alert on it",
        by(|sum| sum.stale),
    )?;
    page.gauges(
        "isthmus_xds_streams_queued",
        "Streams with something unsent: a change that was not looked at yet, or that waits for an ACK, for another type or for \
         room in the connection",
        by(|sum| sum.queued),
    )?;
    page.gauges(
        "isthmus_xds_types_queued",
        "Queue depth: types with something unsent, over all streams; each becomes one response with the newest state",
        by(|sum| sum.types_queued),
    )?;
    page.gauges(
        "isthmus_xds_responses_in_flight",
        "Responses that were handed to the connection and not answered, over all streams",
        by(|sum| sum.in_flight),
    )?;
    page.gauge("isthmus_xds_revision", "What the views have reached", number(*app.views.changed().borrow()))?;
    page.gauges(
        "isthmus_xds_oldest_acked_revision",
        "What every connected client is up to date with",
        app.subscribers.oldest_acked().map(|revision| (Labels::new(), number(revision))),
    )?;
    page.counter("isthmus_xds_streams_opened", "Streams that were authorized", metrics.opened.load(Relaxed))?;
    type Count = fn(&super::xds::TypeCounters) -> u64;
    let types: [(&str, &str, Count); 6] = [
        ("isthmus_xds_pushes", "Responses sent, by type", |row| row.pushes.load(Relaxed)),
        ("isthmus_xds_resources", "Resources sent, by type", |row| row.resources.load(Relaxed)),
        ("isthmus_xds_removals", "Names said to be gone, by type", |row| row.removals.load(Relaxed)),
        ("isthmus_xds_push_bytes", "Bytes of the resources sent, by type", |row| row.bytes.load(Relaxed)),
        ("isthmus_xds_acks", "Responses accepted, by type", |row| row.acks.load(Relaxed)),
        ("isthmus_xds_nacks", "Responses refused, by type", |row| row.nacks.load(Relaxed)),
    ];
    for (name, help, of) in types {
        let rows = metrics.types().map(|(short, row)| (label("type", short), of(row)));
        page.counters(name, help, rows)?;
    }
    page.counter(
        "isthmus_xds_stale_nonces",
        "Answers to a response that was not the last one",
        metrics.stale_nonces.load(Relaxed),
    )?;
    page.histogram(
        "isthmus_xds_convergence_seconds",
        "From the commit of a change, for those that were committed while this replica led, to a stream's last ACK of what \
         of it concerns the client",
        &metrics.convergence_from_commit,
    )?;
    page.histogram(
        "isthmus_xds_convergence_from_hearing_seconds",
        "The same for changes that another replica committed: from this one hearing of the commit",
        &metrics.convergence_from_hearing,
    )
}

fn authority(app: &App, page: &mut Page<'_>) -> fmt::Result {
    let known = app.ca.certificates();
    let infos = known.iter().filter_map(|certificate| mesh_tls::certificate_info(certificate).ok());
    page.counters(
        "isthmus_ca_certificates_signed",
        "Certificates signed by this replica, by what for",
        app.gate.signed().map(|(purpose, count)| (label("purpose", purpose), count)),
    )?;
    page.gauges(
        "isthmus_ca_certificate_expiry_timestamp_seconds",
        "When a certificate of this replica ends, in seconds since 1970",
        infos.map(|info| {
            (vec![("subject", info.subject), ("issuer", info.issuer)], number(info.not_after_unix))
        }),
    )
}

fn federation(app: &App, page: &mut Page<'_>) -> fmt::Result {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let state = app.replica.applied();
    // Only the leader listens to peers, and only it has something to say of them.
    let heard: Vec<_> = state
        .peers
        .values()
        .filter_map(|peer| Some((peer, app.liveness.of(&peer.cluster, now_ms)?)))
        .collect();
    let peer = |name: &str| label("peer", name);
    page.gauge("isthmus_federation_peers", "Joined clusters", number(state.peers.len() as u64))?;
    page.gauges(
        "isthmus_federation_peer_state",
        "1 for the state that a peer is in; on the replica that listens to it",
        heard.iter().flat_map(|(record, heard)| {
            ["connected", "stale", "disconnected"].map(|state| {
                let labels = vec![("peer", record.cluster.clone()), ("state", state.to_owned())];
                (labels, if heard.state(now_ms) == state { 1.0 } else { 0.0 })
            })
        }),
    )?;
    page.gauges(
        "isthmus_federation_peer_lag_revisions",
        "Revisions that a peer has sent and that are not committed here",
        heard.iter().map(|(record, heard)| (peer(&record.cluster), number(heard.lag_revisions()))),
    )?;
    page.gauges(
        "isthmus_federation_peer_lag_seconds",
        "Since a peer is ahead of what is committed here",
        heard.iter().map(|(record, heard)| (peer(&record.cluster), heard.lag_ms(now_ms) as f64 / 1e3)),
    )?;
    page.gauges(
        "isthmus_federation_peer_silent_seconds",
        "Since a peer was last heard",
        heard.iter().filter(|(_, heard)| heard.last_unix_ms > 0).map(|(record, heard)| {
            (peer(&record.cluster), now_ms.saturating_sub(heard.last_unix_ms) as f64 / 1e3)
        }),
    )?;
    page.gauges(
        "isthmus_federation_imported_services",
        "Services of a peer that are known here",
        state.peers.values().map(|record| (peer(&record.cluster), number(record.imports.len() as u64))),
    )
}

fn doors(app: &App, page: &mut Page<'_>) -> fmt::Result {
    let (known, newcomers) = app.gate.connected();
    page.gauges(
        "isthmus_door_connections",
        "Open connections to the mesh door, by whether they have shown a certificate",
        [("yes", known), ("no", newcomers)]
            .map(|(certificate, open)| (label("certificate", certificate), number(open as u64))),
    )?;
    page.counter(
        "isthmus_door_handshakes_refused",
        "TLS handshakes that failed, took too long or were too many",
        mesh_tls::grpc::handshakes_refused(),
    )?;
    page.counters(
        "isthmus_door_requests_denied",
        "Requests that the authorization table refused, by role",
        app.gate.denials().map(|(role, count)| (label("role", format!("{role:?}")), count)),
    )?;
    page.counters(
        "isthmus_door_requests_limited",
        "Requests beyond a limit, by its name",
        app.gate.limited().map(|(name, count)| (label("limit", name), count)),
    )
}

/// Bytes of the files in a folder and those in it. Few: a log is one file.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
