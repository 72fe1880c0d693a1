//! The endpoints of a cluster as the control plane gives them.

use std::net::SocketAddr;

use serde::Serialize;

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
    /// `region/zone/sub_zone`, for people.
    pub locality_name: String,
}

/// `ClusterLoadAssignment`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assignment {
    /// In the order of the resource.
    pub endpoints: Vec<Endpoint>,
    /// In percent; Envoy's default: 140. A priority is left only when fewer than 1/1.4 of its endpoints are healthy.
    pub overprovisioning: u32,
}

impl Assignment {
    /// No endpoint at all.
    pub fn empty() -> Self {
        Self { endpoints: vec![], overprovisioning: 140 }
    }

    /// The share of each endpoint within its priority. With `by_locality` the localities share first, by their
    /// weights, and then the endpoints within each (Envoy's locality-weighted balancing).
    pub fn weights(&self, by_locality: bool) -> Vec<u64> {
        if !by_locality {
            return self.endpoints.iter().map(|e| u64::from(e.weight.max(1))).collect();
        }
        let sum_of = |locality| -> u64 {
            let same = self.endpoints.iter().filter(|e| e.locality == locality);
            same.map(|e| u64::from(e.weight.max(1))).sum::<u64>().max(1)
        };
        // A fixed-point share: fine enough for weights of 1 among 128 in a locality of thousands.
        const SCALE: u64 = 1 << 20;
        self.endpoints
            .iter()
            .map(|e| {
                // A locality without weight gets nothing, as in Envoy.
                let locality = u64::from(e.locality_weight.unwrap_or(0));
                let share = locality.saturating_mul(SCALE).saturating_mul(e.weight.max(1).into())
                    / sum_of(e.locality);
                if locality == 0 { 0 } else { share.max(1) }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localities_share_before_endpoints_do() {
        let endpoint = |locality, locality_weight| Endpoint {
            address: "10.0.0.1:80".parse().unwrap(),
            weight: 1,
            health: Health::Healthy,
            priority: 0,
            locality,
            locality_weight,
            locality_name: String::new(),
        };
        let assignment = Assignment {
            endpoints: vec![
                endpoint(0, Some(1)),
                endpoint(1, Some(1)),
                endpoint(1, Some(1)),
                endpoint(2, None),
            ],
            overprovisioning: 140,
        };
        let weights = assignment.weights(true);
        assert_eq!(weights[0], weights[1] + weights[2]);
        assert_eq!(weights[3], 0);
        assert_eq!(assignment.weights(false), [1, 1, 1, 1]);
    }
}
