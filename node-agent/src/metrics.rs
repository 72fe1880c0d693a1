//! The metrics of an agent, gathered when somebody asks: docs/metrics.md is complete.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ebpf_shared::{Direction, Metric, Reason};
use mesh_telemetry::{
    page::{Labels, Page, label, number},
    process::Process,
};
use mesh_tls::{SharedIdentity, certificate_info};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use crate::{identity::SdsService, local::StatusService, relay::Relay};

/// Whom to ask.
#[allow(missing_docs)]
pub struct Metrics {
    pub status: StatusService,
    /// Of the node.
    pub identity: SharedIdentity,
    pub relay: Relay,
    pub sds: SdsService,
    /// How often this agent has started the DNS proxy.
    pub dns_starts: Arc<AtomicU64>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("node", &self.status.node).finish_non_exhaustive()
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        page.gauges(
            "isthmus_build",
            "Always 1; which version runs",
            [(label("version", env!("CARGO_PKG_VERSION")), 1.0)],
        )?;
        self.stream(&mut page)?;
        self.kernel(&mut page)?;
        self.pods(&mut page)?;
        Process::read().encode(&mut page)
    }
}

impl Metrics {
    fn stream(&self, page: &mut Page<'_>) -> fmt::Result {
        let progress = &self.status.progress;
        let heartbeat = *progress.heartbeat().borrow();
        page.gauge(
            "isthmus_agent_connected",
            "1 while the control plane is heard",
            flag(self.status.connected()),
        )?;
        page.gauge(
            "isthmus_agent_revision",
            "Revision of the newest update that is enforced",
            number(*progress.revision().borrow()),
        )?;
        page.gauge(
            "isthmus_agent_lag_revisions",
            "Revisions that the agent was sent and that are not enforced, by the last heartbeat",
            number(progress.lag()),
        )?;
        page.gauge(
            "isthmus_agent_control_plane_revision",
            "Revision of the replica that serves this agent, by its last heartbeat",
            number(heartbeat.revision),
        )?;
        page.counters(
            "isthmus_agent_acks",
            "Updates that were taken, by type",
            progress.updates().map(|(short, accepted, _)| (label("type", short), accepted)),
        )?;
        page.counters(
            "isthmus_agent_nacks",
            "Updates that were refused, by type",
            progress.updates().map(|(short, _, refused)| (label("type", short), refused)),
        )?;
        page.gauges(
            "isthmus_agent_streams",
            "Open streams of this node's proxies: carried to the control plane, and of secrets",
            [("relayed", self.relay.open_streams()), ("secrets", self.sds.open_streams())]
                .map(|(kind, count)| (label("kind", kind), number(count as u64))),
        )
    }

    fn kernel(&self, page: &mut Page<'_>) -> fmt::Result {
        let engine = &self.status.engine;
        let entries = engine.kernel(|kernel, _| {
            [
                ("classes", kernel.classes.len()),
                ("endpoints", kernel.endpoints.len()),
                ("identities", kernel.identities.len()),
                ("services", kernel.services.len()),
                ("peers", kernel.classes.values().map(|class| class.peers.len()).sum()),
                ("rules", kernel.rulesets.values().map(|set| set.entries().len()).sum()),
            ]
        });
        page.gauges(
            "isthmus_agent_kernel_entries",
            "What the kernel holds, by map",
            entries.map(|(map, count)| (label("map", map), number(count as u64))),
        )?;
        let fill = self.status.fill();
        page.gauges(
            "isthmus_agent_map_entries",
            "Entries of a map in the kernel, of those that the agent writes",
            fill.iter().map(|(map, entries, _)| (label("map", *map), number(*entries as u64))),
        )?;
        page.gauges(
            "isthmus_agent_map_limit",
            "The most entries that the map takes",
            fill.iter().map(|(map, _, limit)| (label("map", *map), f64::from(*limit))),
        )?;
        page.gauge(
            "isthmus_agent_pods_closed",
            "Pods without traffic, because their policy is not in the kernel",
            number(self.status.closed() as u64),
        )?;
        page.gauge(
            "isthmus_agent_kernel_behind",
            "1 while the kernel has refused a write, which is tried again",
            flag(engine.is_behind()),
        )?;
        page.gauges(
            "isthmus_agent_map_full",
            "1 for a map of the kernel that has no room for what the control plane told: of policy nothing is changed until it has, of services those that fit are",
            engine.full_map().map(|map| (label("map", map), flag(true))),
        )?;
        let (names, lapsed, forgotten) = engine.names_known();
        page.gauges(
            "isthmus_agent_names",
            "Names at addresses that DNS has told pods of: those that hold, and those that only connections are left of",
            [("live", names - lapsed), ("lapsed", lapsed)]
                .map(|(state, count)| (label("state", state), number(count as u64))),
        )?;
        page.counter(
            "isthmus_agent_names_forgotten",
            "Names at addresses that were forgotten before their time, as there were too many",
            forgotten,
        )?;
        page.counter(
            "isthmus_agent_dns_proxy_starts",
            "How often this agent has started the DNS proxy",
            self.dns_starts.load(Ordering::Relaxed),
        )?;
        page.counters(
            "isthmus_agent_cluster_dns_questions",
            "Questions at --cluster-dns by what became of them",
            self.status.answering.counts().map(|(fate, count)| (label("result", fate.name()), count)),
        )?;
        let packets = engine.packets();
        let rows = |of: fn(&Metric) -> u64| {
            packets.iter().map(move |(direction, reason, metric)| (cell(*direction, *reason), of(metric)))
        };
        page.counters(
            "isthmus_agent_packets",
            "Packets by direction and what became of them; all but FORWARDED and AUDITED were dropped",
            rows(|metric| metric.packets),
        )?;
        page.counters("isthmus_agent_packet_bytes", "The same in bytes", rows(|metric| metric.bytes))?;
        let suppressed = engine.suppressed();
        page.counters(
            "isthmus_agent_flows_suppressed",
            "Flow events that were counted and not told one by one, because there were many of their kind",
            suppressed.iter().map(|(way, reason, metric)| (cell(*way, *reason), metric.packets)),
        )?;
        page.counter(
            "isthmus_agent_flows_seen",
            "Packets that flows told of, one by one or by counts",
            self.status.ring.level().seen,
        )?;
        page.counter(
            "isthmus_agent_flows_lost",
            "Flow events that found no room, in the kernel or here",
            self.status.flows.lost_ever(),
        )
    }

    fn pods(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut states = BTreeMap::from([("ready", 0), ("starting", 0), ("waiting-for-policy", 0)]);
        let endpoints = self.status.endpoints();
        for endpoint in &endpoints {
            *states.entry(endpoint.state.as_str()).or_default() += 1;
        }
        page.gauges(
            "isthmus_agent_endpoints",
            "Pods of this node by state",
            states.into_iter().map(|(state, count)| (label("state", state), number(count))),
        )?;
        let named = |kind: &str, name: String| -> Labels { vec![("kind", kind.to_owned()), ("name", name)] };
        let node = self.identity.load();
        let node = node.as_ref().and_then(|key| certificate_info(key.cert.first()?).ok());
        let node = node.map(|info| (named("node", self.status.node.clone()), number(info.not_after_unix)));
        let workloads = self.status.secrets.expiries().into_iter();
        page.gauges(
            "isthmus_agent_certificate_expiry_timestamp_seconds",
            "When the certificate of the node or of a workload ends, in seconds since 1970",
            node.into_iter()
                .chain(workloads.map(|(name, end)| (named("workload", name.to_string()), number(end)))),
        )
    }
}

fn cell(direction: Direction, reason: Reason) -> Labels {
    let direction = if direction == Direction::Ingress { "INGRESS" } else { "EGRESS" };
    vec![("direction", direction.to_owned()), ("reason", reason.name().to_owned())]
}

fn flag(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv4Addr};

    use mesh_tls::{TrustBundles, shared_bundles, shared_identity};
    use tokio_util::sync::CancellationToken;

    use prometheus_client::{encoding::text::encode, registry::Registry as Exported};

    use super::*;
    use crate::{
        bootstrap::{Upstream, state::tests::state},
        cni::{Registry, SharedRegistry},
        engine::Engine,
        flows::{Queue, Ring},
        identity::{Callers, Secrets},
        maps::MemoryMaps,
        subscribe::{Progress, TYPES},
    };

    fn metrics(dir: &std::path::Path) -> Metrics {
        let state = state();
        let identity = shared_identity(None);
        let bundles = shared_bundles(TrustBundles::new());
        let upstream = Upstream::new(&state, vec![], identity.clone(), bundles).unwrap();
        let engine = Engine::new(Ipv4Addr::new(192, 0, 2, 1), Box::new(MemoryMaps::default())).unwrap();
        let registry = SharedRegistry::new(Registry::open(dir, state.pod_cidr).unwrap());
        let callers = Callers::new(registry.clone(), BTreeSet::new()).unwrap();
        let secrets = Secrets::new(dir, engine.clone(), upstream.clone()).unwrap();
        let relay = Relay::new(callers.clone(), upstream.clone(), engine.clone());
        let sds = SdsService::new(callers.clone(), secrets.clone(), engine.clone());
        let progress = Progress::default();
        progress.answered(&TYPES[0], false);
        let (flows, ring) = (Queue::default(), Ring::default());
        let status = StatusService {
            way: (crate::tunnel::Mode::Direct, 1_500),
            short_cuts: Default::default(),
            answering: crate::names::Answering::new(&[]),
            node: state.node,
            upstream,
            engine,
            registry,
            secrets,
            callers,
            flows,
            ring,
            progress,
            bpffs: dir.to_owned(),
            stop: CancellationToken::new(),
        };
        Metrics { status, identity, relay, sds, dns_starts: Arc::default() }
    }

    fn page(metrics: Metrics) -> String {
        let mut exported = Exported::default();
        exported.register_collector(Box::new(metrics));
        let mut text = String::new();
        encode(&mut text, &exported).unwrap();
        text
    }

    #[tokio::test]
    async fn every_metric_of_an_agent_is_documented_and_every_documented_one_is_exported() {
        let dir = tempfile::tempdir().unwrap();
        let text = page(metrics(dir.path()));
        let exported: BTreeSet<(String, String)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| {
                (format!("{name}{}", if kind == "counter" { "_total" } else { "" }), kind.to_owned())
            })
            .collect();
        let documented: BTreeSet<(String, String)> = include_str!("../../docs/metrics.md")
            .split("\n## Agents\n")
            .nth(1)
            .unwrap()
            .lines()
            .take_while(|line| !line.starts_with("### "))
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                (cells[0].trim_end_matches('`').to_owned(), cells[1].to_owned())
            })
            .collect();
        let ours: BTreeSet<_> =
            exported.iter().filter(|(name, _)| !name.starts_with("process_")).cloned().collect();
        assert_eq!(ours.difference(&documented).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
        assert_eq!(documented.difference(&ours).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
    }

    #[tokio::test]
    async fn what_is_refused_and_dropped_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let text = page(metrics(dir.path()));
        for line in [
            "isthmus_agent_connected 0",
            "isthmus_agent_nacks_total{type=\"TrustBundle\"} 1",
            "isthmus_agent_acks_total{type=\"TrustBundle\"} 0",
            "isthmus_agent_packets_total{direction=\"INGRESS\",reason=\"DEFAULT_DENY\"} 2",
            "isthmus_agent_packet_bytes_total{direction=\"INGRESS\",reason=\"DEFAULT_DENY\"} 120",
            "isthmus_agent_endpoints{state=\"ready\"} 0",
            "isthmus_agent_streams{kind=\"relayed\"} 0",
            "isthmus_agent_cluster_dns_questions_total{result=\"no-name\"} 0",
        ] {
            assert!(text.lines().any(|found| found.starts_with(line)), "{line} is not in\n{text}");
        }
    }
}
