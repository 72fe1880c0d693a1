//! The endpoints of a cluster as the control plane gives them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;

use super::Metadata;

/// What the control plane says about an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// HEALTHY or UNKNOWN.
    Healthy,
    /// DEGRADED: only taken where the healthy ones are too few.
    Degraded,
    /// UNHEALTHY, TIMEOUT or DRAINING: only taken in panic.
    Unhealthy,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its name, for health checks, hashing and host rewrites; may be empty.
    pub hostname: Arc<str>,
    /// Share among the endpoints of its locality. At least 1.
    pub weight: u32,
    /// See [`Health`].
    pub health: Health,
    /// 0 is the most wanted.
    pub priority: u32,
    /// Position of its locality in the resource.
    pub locality: usize,
    /// Share of its locality, if the resource gives one.
    pub locality_weight: Option<u32>,
    /// `region/zone/sub_zone`.
    pub locality_name: Arc<str>,
    /// Of namespace `envoy.lb`: what subsets are made by.
    pub metadata: Arc<Metadata>,
    /// Of namespace `envoy.transport_socket_match`: how it is connected to.
    pub socket: Arc<Metadata>,
    /// How it is asked for its health.
    pub probe: ProbeTarget,
}

/// `Endpoint.HealthCheckConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProbeTarget {
    /// Another port than the endpoint's own.
    pub port: Option<u16>,
    /// Another address.
    pub ip: Option<IpAddr>,
    /// Another `host`.
    pub hostname: String,
    /// It counts as healthy without being asked.
    pub disabled: bool,
}

/// `drop_overloads`: a part of the requests is answered with 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DropShare {
    /// For people.
    pub category: String,
    /// Of a million.
    pub per_million: u32,
}

/// `ClusterLoadAssignment`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assignment {
    /// In the order of the resource.
    pub endpoints: Vec<Endpoint>,
    /// In percent; Envoy's default: 140. A priority is left only when fewer than 1/1.4 of its endpoints are healthy.
    pub overprovisioning: u32,
    /// In order.
    pub drops: Vec<DropShare>,
}

impl Assignment {
    /// No endpoint at all.
    pub fn empty() -> Self {
        Self { endpoints: vec![], overprovisioning: 140, drops: vec![] }
    }

    /// Names of the localities, by position.
    pub fn localities(&self) -> Vec<&str> {
        let count = self.endpoints.iter().map(|e| e.locality + 1).max().unwrap_or(0);
        let mut names = vec![""; count];
        for endpoint in &self.endpoints {
            if let Some(name) = names.get_mut(endpoint.locality) {
                *name = &endpoint.locality_name;
            }
        }
        names
    }

    /// The category by which a request is turned away, if it is. `rng` gives numbers below a million.
    pub fn drops(&self, mut rng: impl FnMut() -> u32) -> Option<&str> {
        self.drops.iter().find(|drop| rng() < drop.per_million).map(|drop| drop.category.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_category_turns_away_its_part_of_what_the_ones_before_let_through() {
        let drop = |category: &str, per_million| DropShare { category: category.to_owned(), per_million };
        let drops = vec![drop("throttle", 500_000), drop("lb", 100_000)];
        let assignment = Assignment { drops, ..Assignment::empty() };
        let dropped = |numbers: &[u32]| {
            let mut numbers = numbers.iter().copied();
            assignment.drops(|| numbers.next().unwrap()).map(str::to_owned)
        };
        assert_eq!(dropped(&[499_999]).as_deref(), Some("throttle"));
        assert_eq!(dropped(&[500_000, 99_999]).as_deref(), Some("lb"));
        assert_eq!(dropped(&[500_000, 100_000]), None);
    }
}
