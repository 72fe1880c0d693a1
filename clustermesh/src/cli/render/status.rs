//! The state of a cluster.

use serde_json::{Value, json};
use xds_proto::isthmus::admin::v1::{DataPlaneStatus, OverflowStatus, PeerStatus, StatusResponse};

use super::{
    age::{age, timestamp, until},
    replicas,
    table::{Cell, Table},
};
use crate::cli::out::{Paint, Tone};

/// Certificates with less time than this are marked, in seconds.
const SOON: u64 = 6 * 3600;

/// `-o table`
pub(crate) fn render(s: &StatusResponse, now: u64, paint: Paint) -> String {
    let mut out = replicas::warning(s, paint);
    if !s.failure.is_empty() {
        out.push_str(&format!("{}\n\n", paint.paint(Tone::Bad, &s.failure)));
    }
    let mut cluster =
        Table::new(["CLUSTER", "TRUST-DOMAIN", "MESH-DOMAIN", "REVISION", "LEADER", "ANSWERED-BY"]);
    let leader = if s.leader == 0 { Cell::toned("<none>", Tone::Bad) } else { s.leader.to_string().into() };
    cluster.row(vec![
        s.cluster.as_str().into(),
        s.trust_domain.as_str().into(),
        s.mesh_domain.as_str().into(),
        s.revision.to_string().into(),
        leader,
        s.answered_by.to_string().into(),
    ]);
    out.push_str(&cluster.render(true, paint));
    let mut section = |title: &str, table: Option<Table>| {
        let title = paint.paint(Tone::Heading, title);
        match table {
            Some(table) => out.push_str(&format!("\n{title}\n{}", table.render(true, paint))),
            None => out.push_str(&format!("\n{title}: none\n")),
        }
    };
    section("Replicas", replicas::table(&s.replicas));
    section("Peers", peers(&s.peers, now));
    if !s.overflow.is_empty() {
        section("Overflow to peers", overflow(&s.overflow, now));
    }
    if !s.oversized.is_empty() {
        section("Too large", oversized(&s.oversized));
    }
    section("Data planes", data_planes(&s.data_planes, now));
    section("Certificates", certificates(s, now));
    let mut objects: Vec<_> = s.objects.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    objects.sort_by(|a, b| a.split(' ').nth(1).cmp(&b.split(' ').nth(1)));
    let objects = if objects.is_empty() { "none".to_owned() } else { objects.join(", ") };
    out.push_str(&format!("\n{}: {objects}\n", paint.paint(Tone::Heading, "Objects")));
    out
}

fn peers(peers: &[PeerStatus], now: u64) -> Option<Table> {
    let mut table = Table::new([
        "CLUSTER",
        "TRUST-DOMAIN",
        "STATE",
        "REVISION",
        "LAG",
        "LAST-HEARD",
        "SERVICES",
        "ERROR",
    ]);
    for p in peers {
        let tone = match p.state.as_str() {
            "connected" => Tone::Good,
            "stale" => Tone::Warning,
            _ => Tone::Bad,
        };
        let heard = (p.last_heard_unix_ms > 0).then_some(p.last_heard_unix_ms / 1000);
        table.row(vec![
            p.cluster.as_str().into(),
            p.trust_domain.as_str().into(),
            Cell::toned(&*p.state, tone),
            p.origin_revision.to_string().into(),
            lag(p.lag_revisions, p.lag_ms),
            heard.map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(Some(at), now))).into(),
            p.imported_services.to_string().into(),
            error(&p.error),
        ]);
    }
    (!peers.is_empty()).then_some(table)
}

fn overflow(shares: &[OverflowStatus], now: u64) -> Option<Table> {
    let mut table = Table::new(["SERVICE", "PORT", "TO-PEERS", "SINCE", "BECAUSE"]);
    for share in shares {
        let because = format!(
            "{} of {} callers saw half of their calls or more fail here",
            share.failing, share.callers
        );
        table.row(vec![
            share.service.as_str().into(),
            share.port.to_string().into(),
            Cell::toned(format!("{}%", share.percent), Tone::Warning),
            age(Some(share.since_unix_ms / 1000), now).into(),
            because.into(),
        ]);
    }
    (!shares.is_empty()).then_some(table)
}

fn oversized(sentences: &[String]) -> Option<Table> {
    let mut table = Table::new(["POLICY"]);
    for sentence in sentences {
        table.row(vec![Cell::toned(sentence.as_str(), Tone::Bad)]);
    }
    (!sentences.is_empty()).then_some(table)
}

fn data_planes(planes: &[DataPlaneStatus], now: u64) -> Option<Table> {
    let mut table = Table::new([
        "ID",
        "KIND",
        "REPLICA",
        "STATE",
        "SENT",
        "ACKED",
        "LAG",
        "CONNECTED",
        "NACKED",
        "LAST-ERROR",
    ]);
    for d in planes {
        let tone = match d.state.as_str() {
            "synced" => Tone::Good,
            "syncing" => Tone::Warning,
            _ => Tone::Bad,
        };
        let connected = match (d.state.as_str(), d.since_unix_ms) {
            ("disconnected", 0) => "not seen".to_owned(),
            ("disconnected", since) => format!("until {} ago", age(Some(since / 1000), now)),
            _ => age((d.connected_unix_ms > 0).then_some(d.connected_unix_ms / 1000), now),
        };
        let replica = if d.replica == 0 { "-".to_owned() } else { d.replica.to_string() };
        table.row(vec![
            d.id.as_str().into(),
            d.kind.as_str().into(),
            replica.into(),
            Cell::toned(&*d.state, tone),
            d.sent_revision.to_string().into(),
            d.acked_revision.to_string().into(),
            lag(d.lag_revisions, d.lag_ms),
            connected.into(),
            Cell::toned(d.nacked.to_string(), if d.nacked == 0 { Tone::Plain } else { Tone::Bad }),
            error(&d.last_error),
        ]);
    }
    (!planes.is_empty()).then_some(table)
}

fn certificates(s: &StatusResponse, now: u64) -> Option<Table> {
    let mut table = Table::new(["SUBJECT", "ISSUER", "NOT-AFTER", "REMAINING"]);
    for c in &s.certificates {
        let remaining = c.not_after_unix.saturating_sub(now);
        let tone = match remaining {
            0 => Tone::Bad,
            1..SOON => Tone::Warning,
            _ => Tone::Plain,
        };
        table.row(vec![
            c.subject.as_str().into(),
            c.issuer.as_str().into(),
            timestamp(c.not_after_unix).into(),
            Cell::toned(until(c.not_after_unix, now), tone),
        ]);
    }
    (!s.certificates.is_empty()).then_some(table)
}

/// `0`, `2 (350ms)` or `7 (12s)`: revisions, and since when it lacks the oldest of them.
fn lag(revisions: u64, milliseconds: u64) -> Cell {
    match (revisions, milliseconds) {
        (0, _) => "0".into(),
        (revisions, ms @ 0..10_000) => Cell::toned(format!("{revisions} ({ms}ms)"), Tone::Warning),
        (revisions, ms) => Cell::toned(format!("{revisions} ({}s)", ms / 1000), Tone::Bad),
    }
}

fn error(text: &str) -> Cell {
    Cell::toned(text, if text.is_empty() { Tone::Plain } else { Tone::Bad })
}

/// `-o json` and `-o yaml`
pub(crate) fn value(s: &StatusResponse) -> Value {
    let peers = s.peers.iter().map(|p| {
        json!({
            "cluster": p.cluster, "trustDomain": p.trust_domain, "state": p.state,
            "originRevision": p.origin_revision, "lastHeardUnixMs": p.last_heard_unix_ms,
            "importedServices": p.imported_services, "error": p.error,
            "peerRevision": p.peer_revision, "lagRevisions": p.lag_revisions, "lagMs": p.lag_ms,
        })
    });
    let data_planes = s.data_planes.iter().map(|d| {
        json!({
            "id": d.id, "kind": d.kind, "replica": d.replica, "sentRevision": d.sent_revision,
            "ackedRevision": d.acked_revision, "nacked": d.nacked, "lastError": d.last_error,
            "connectedUnixMs": d.connected_unix_ms, "state": d.state, "protocol": d.protocol,
            "lagRevisions": d.lag_revisions, "lagMs": d.lag_ms, "silentMs": d.silent_ms,
            "sinceUnixMs": d.since_unix_ms,
        })
    });
    let certificates = s.certificates.iter().map(|c| {
        json!({
            "subject": c.subject, "issuer": c.issuer,
            "notAfter": timestamp(c.not_after_unix), "notAfterUnix": c.not_after_unix,
        })
    });
    json!({
        "cluster": s.cluster, "trustDomain": s.trust_domain, "meshDomain": s.mesh_domain,
        "revision": s.revision, "leader": s.leader, "answeredBy": s.answered_by, "failure": s.failure,
        "raftGroup": s.raft_group, "noQuorum": replicas::no_quorum(s),
        "replicas": replicas::values(&s.replicas),
        "peers": peers.collect::<Vec<_>>(),
        "dataPlanes": data_planes.collect::<Vec<_>>(),
        "overflow": s.overflow.iter().map(|o| json!({
            "service": o.service, "port": o.port, "percent": o.percent, "failing": o.failing,
            "callers": o.callers, "sinceUnixMs": o.since_unix_ms,
        })).collect::<Vec<_>>(),
        "oversized": s.oversized,
        "certificates": certificates.collect::<Vec<_>>(),
        "objects": s.objects,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_proto::isthmus::admin::v1::{CertificateStatus, ReplicaStatus};

    const NOW: u64 = 1_790_000_000;

    fn sample() -> StatusResponse {
        StatusResponse {
            cluster: "west".into(),
            trust_domain: "west.example".into(),
            mesh_domain: "mesh.local".into(),
            revision: 42,
            leader: 1,
            answered_by: 2,
            replicas: vec![ReplicaStatus {
                id: 1,
                address: "192.0.2.1:9443".into(),
                role: "leader".into(),
                matched: 42,
                lag_known: true,
                reachable: true,
                voter: true,
                applied: 41,
                ..ReplicaStatus::default()
            }],
            peers: vec![PeerStatus {
                cluster: "east".into(),
                trust_domain: "east.example".into(),
                state: "connected".into(),
                origin_revision: 17,
                last_heard_unix_ms: (NOW - 3) * 1000,
                imported_services: 2,
                error: String::new(),
                peer_revision: 18,
                lag_revisions: 0,
                lag_ms: 0,
            }],
            data_planes: vec![DataPlaneStatus {
                id: "agent~west-n1".into(),
                kind: "agent".into(),
                replica: 1,
                sent_revision: 42,
                acked_revision: 40,
                nacked: 0,
                last_error: String::new(),
                connected_unix_ms: (NOW - 90) * 1000,
                state: "syncing".into(),
                lag_revisions: 2,
                lag_ms: 350,
                silent_ms: 1_000,
                protocol: "delta".into(),
                since_unix_ms: 0,
            }],
            certificates: vec![CertificateStatus {
                subject: "spiffe://west.example/isthmus/replica/1".into(),
                issuer: "CN=west.example issuer".into(),
                not_after_unix: NOW + 86400,
            }],
            objects: [("Service".to_owned(), 3), ("HTTPRoute".to_owned(), 1)].into(),
            ..StatusResponse::default()
        }
    }

    #[test]
    fn the_status_is_a_page_of_tables() {
        let text = render(&sample(), NOW, Paint::PLAIN);
        assert_eq!(
            text,
            "CLUSTER   TRUST-DOMAIN   MESH-DOMAIN   REVISION   LEADER   ANSWERED-BY\n\
             west      west.example   mesh.local    42         1        2\n\
             \n\
             Replicas\n\
             ID   ADDRESS          ROLE     STATE       LOG   LAG   APPLIED\n\
             1    192.0.2.1:9443   leader   reachable   42    0     41\n\
             \n\
             Peers\n\
             CLUSTER   TRUST-DOMAIN   STATE       REVISION   LAG   LAST-HEARD   SERVICES   ERROR\n\
             east      east.example   connected   17         0     3s ago       2          <none>\n\
             \n\
             Data planes\n\
             ID              KIND    REPLICA   STATE     SENT   ACKED   LAG         CONNECTED   NACKED   LAST-ERROR\n\
             agent~west-n1   agent   1         syncing   42     40      2 (350ms)   90s         0        <none>\n\
             \n\
             Certificates\n\
             SUBJECT                                   ISSUER                   NOT-AFTER              REMAINING\n\
             spiffe://west.example/isthmus/replica/1   CN=west.example issuer   2026-09-22T14:13:20Z   24h\n\
             \n\
             Objects: 1 HTTPRoute, 3 Service\n"
        );
    }

    #[test]
    fn an_agent_that_is_connected_nowhere_is_shown_with_when_it_was() {
        let mut status = sample();
        let plane = &mut status.data_planes[0];
        (plane.state, plane.replica, plane.since_unix_ms) = ("disconnected".into(), 0, (NOW - 300) * 1000);
        let text = render(&status, NOW, Paint::PLAIN);
        assert!(text.contains("agent   -         disconnected") && text.contains("until 5m ago"), "{text}");
        status.data_planes[0].since_unix_ms = 0;
        assert!(render(&status, NOW, Paint::PLAIN).contains("not seen"));
        assert_eq!(value(&status)["dataPlanes"][0]["state"], "disconnected");
    }

    #[test]
    fn an_empty_cluster_has_a_page_too() {
        let text = render(&StatusResponse::default(), NOW, Paint::PLAIN);
        assert!(text.contains("Peers: none\n") && text.contains("Objects: none\n"), "{text}");
        let value = value(&sample());
        assert_eq!(value["peers"][0]["state"], "connected");
        assert_eq!(value["dataPlanes"][0]["ackedRevision"], 40);
    }
}
