//! The counters in Prometheus' text format.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::{ClusterStats, Denials, ListenerStats, Stats};
use crate::config::Priority;

type Pick<S> = fn(&S) -> u64;

const CLUSTER_COUNTERS: [(&str, &str, Pick<ClusterStats>); 12] = [
    ("upstream_retries", "Attempts after the first", |s| s.retries.load(Ordering::Relaxed)),
    ("upstream_retry_overflow", "Retries forbidden by a circuit breaker", |s| {
        s.retry_overflow.load(Ordering::Relaxed)
    }),
    ("upstream_overflow", "Requests forbidden by a circuit breaker", |s| s.overflow.load(Ordering::Relaxed)),
    ("upstream_no_endpoint", "Requests without an endpoint to go to", |s| {
        s.no_endpoint.load(Ordering::Relaxed)
    }),
    ("upstream_connections", "Connections opened", |s| s.connections.load(Ordering::Relaxed)),
    ("upstream_connect_failures", "Connections that could not be opened", |s| {
        s.connect_failures.load(Ordering::Relaxed)
    }),
    ("upstream_ejections", "Endpoints ejected as outliers", |s| s.ejections.load(Ordering::Relaxed)),
    ("upstream_connection_overflow", "Requests that waited because of max_connections", |s| {
        s.connection_overflow.load(Ordering::Relaxed)
    }),
    ("upstream_pending_overflow", "Requests forbidden by max_pending_requests", |s| {
        s.pending_overflow.load(Ordering::Relaxed)
    }),
    ("upstream_dropped", "Requests turned away by drop_overloads", |s| s.dropped.load(Ordering::Relaxed)),
    ("upstream_health_checks", "Active health checks", |s| s.health_checks.load(Ordering::Relaxed)),
    ("upstream_health_check_failures", "Active health checks that failed", |s| {
        s.health_check_failures.load(Ordering::Relaxed)
    }),
];

const CLUSTER_GAUGES: [(&str, &str, Pick<ClusterStats>); 2] = [
    ("upstream_active_connections", "Connections open", |s| s.active_connections.load(Ordering::Relaxed)),
    ("upstream_active_requests", "Requests being served", |s| s.active_requests.load(Ordering::Relaxed)),
];

const LISTENER_COUNTERS: [(&str, &str, Pick<ListenerStats>); 4] = [
    ("downstream_connections", "Connections accepted", |s| s.connections.load(Ordering::Relaxed)),
    ("downstream_refused", "Connections closed because there were too many", |s| {
        s.refused.load(Ordering::Relaxed)
    }),
    ("downstream_handshake_failures", "TLS handshakes that failed", |s| {
        s.handshake_failures.load(Ordering::Relaxed)
    }),
    ("downstream_no_chain", "Connections that no filter chain matches", |s| {
        s.no_chain.load(Ordering::Relaxed)
    }),
];

impl Stats {
    /// The page of `/stats/prometheus`.
    ///
    /// # Errors
    /// Never in practice: it is written to memory.
    pub fn prometheus(self: &Arc<Self>) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("isthmus_proxy");
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Stats {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let clusters = self.all_clusters();
        let listeners = self.all_listeners();
        codes(
            &mut encoder,
            "upstream_requests",
            "Answers of endpoints",
            "cluster",
            clusters.iter().map(|(n, s)| (&**n, &s.codes)),
        )?;
        codes(
            &mut encoder,
            "downstream_requests",
            "Answers to clients",
            "listener",
            listeners.iter().map(|(n, s)| (n.as_str(), &s.codes)),
        )?;
        let by_cluster = || clusters.iter().map(|(n, s)| (&**n, &**s));
        let by_listener = || listeners.iter().map(|(n, s)| (n.as_str(), &**s));
        for (name, help, pick) in CLUSTER_COUNTERS {
            counters(&mut encoder, name, help, "cluster", by_cluster().map(|(n, s)| (n, pick(s))))?;
        }
        for (name, help, pick) in LISTENER_COUNTERS {
            counters(&mut encoder, name, help, "listener", by_listener().map(|(n, s)| (n, pick(s))))?;
        }
        let denied = by_listener().map(|(n, s)| (n, &s.denied));
        denials(&mut encoder, "rbac_denied", "Connections and requests that a policy denied", denied)?;
        let denied = by_listener().map(|(n, s)| (n, &s.shadow_denied));
        let help = "Those that a policy that is tried out would have denied";
        denials(&mut encoder, "rbac_shadow_denied", help, denied)?;
        for (name, help, pick) in CLUSTER_GAUGES {
            gauges(&mut encoder, name, help, "cluster", by_cluster().map(|(n, s)| (n, pick(s))))?;
        }
        outliers(&mut encoder, &clusters)?;
        breakers(&mut encoder, &clusters)?;
        let active = by_listener().map(|(n, s)| (n, s.active_connections.load(Ordering::Relaxed)));
        gauges(&mut encoder, "downstream_active_connections", "Connections open", "listener", active)?;
        for (name, help, value) in [
            ("updates", "Updates of the control plane that were applied", &self.updates),
            ("updates_refused", "Updates of the control plane that were refused", &self.refusals),
            ("overload_shed_requests", "Requests turned away because of overload", &self.shed_requests),
            (
                "overload_shed_connections",
                "Connections turned away because of overload",
                &self.shed_connections,
            ),
        ] {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                prometheus_client::metrics::MetricType::Counter,
            )?)?;
        }
        Ok(())
    }
}

type Clusters = [(Arc<str>, Arc<ClusterStats>)];

fn outliers(encoder: &mut DescriptorEncoder<'_>, clusters: &Clusters) -> Result<(), fmt::Error> {
    for (at, name, help) in [
        (0, "upstream_outliers_detected", "Endpoints that stood out"),
        (1, "upstream_outliers_ejected", "Endpoints that were ejected for it"),
    ] {
        let kind = prometheus_client::metrics::MetricType::Counter;
        let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
        for (cluster, stats) in clusters {
            for (reason, counts) in stats.outliers.seen() {
                let labels = [("cluster", &**cluster), ("reason", reason.as_str())];
                ConstCounter::new(counts.get(at).copied().unwrap_or(0))
                    .encode(metric.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

/// `1` while a limit is reached, and what is left of it where the resource asks for that (`track_remaining`).
fn breakers(encoder: &mut DescriptorEncoder<'_>, clusters: &Clusters) -> Result<(), fmt::Error> {
    for (open, name, help) in [
        (true, "upstream_circuit_open", "Whether a limit of circuit_breakers is reached"),
        (false, "upstream_circuit_remaining", "What is left of a limit of circuit_breakers"),
    ] {
        let kind = prometheus_client::metrics::MetricType::Gauge;
        let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
        for (cluster, stats) in clusters {
            let Some(breakers) = stats.breakers() else { continue };
            for (priority, word) in [(Priority::Default, "default"), (Priority::High, "high")] {
                let breaker = breakers.of(priority);
                if !open && !breaker.track_remaining {
                    continue;
                }
                for (limit, max, used) in breaker.usage() {
                    let labels = [("cluster", &**cluster), ("priority", word), ("limit", limit)];
                    let value = if open { i64::from(used >= max) } else { max.saturating_sub(used).into() };
                    ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
    }
    Ok(())
}

fn codes<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    all: impl Iterator<Item = (&'a str, &'a super::Codes)>,
) -> Result<(), fmt::Error> {
    let mut metric =
        encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Counter)?;
    for (owner, codes) in all {
        for (status, count) in codes.seen() {
            let labels = [(label, owner.to_owned()), ("code", status.to_string())];
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn denials<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: impl Iterator<Item = (&'a str, &'a Denials)>,
) -> Result<(), fmt::Error> {
    let mut metric =
        encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Counter)?;
    for (listener, denials) in all {
        for (policy, count) in denials.seen() {
            let labels = [("listener", listener), ("policy", &*policy)];
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    all: impl Iterator<Item = (&'a str, u64)>,
) -> Result<(), fmt::Error> {
    let mut metric =
        encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Counter)?;
    for (owner, value) in all {
        ConstCounter::new(value).encode(metric.encode_family(&[(label, owner)])?)?;
    }
    Ok(())
}

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    all: impl Iterator<Item = (&'a str, u64)>,
) -> Result<(), fmt::Error> {
    let mut metric =
        encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Gauge)?;
    for (owner, value) in all {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(metric.encode_family(&[(label, owner)])?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_cluster_and_code() {
        let stats = Arc::new(Stats::default());
        let cluster = stats.cluster(&"outbound|80|web.shop".into());
        cluster.codes.count(200);
        cluster.codes.count(503);
        stats.listener("inbound|80").active_connections.fetch_add(2, Ordering::Relaxed);
        stats.listener("inbound|80").denied.count(&"networkpolicy/shop/pay#default-deny-ingress".into());
        let page = stats.prometheus().unwrap();
        for line in [
            "isthmus_proxy_upstream_requests_total{cluster=\"outbound|80|web.shop\",code=\"503\"} 1",
            "isthmus_proxy_downstream_active_connections{listener=\"inbound|80\"} 2",
            "isthmus_proxy_rbac_denied_total{listener=\"inbound|80\",\
             policy=\"networkpolicy/shop/pay#default-deny-ingress\"} 1",
            "isthmus_proxy_updates_total 0",
        ] {
            assert!(page.contains(line), "{line} is not in:\n{page}");
        }
    }
}
