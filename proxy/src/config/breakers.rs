//! `CircuitBreakers`: limits by routing priority, and of one endpoint.

use serde::Serialize;
use xds_proto::envoy::config::cluster::v3::{
    CircuitBreakers,
    circuit_breakers::{Thresholds, thresholds::RetryBudget},
};

use super::{
    balancing::percent,
    error::Path,
    wire::{Result, refuse, u32_or},
};
use crate::limits;

/// `RoutingPriority`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// DEFAULT
    #[default]
    Default,
    /// HIGH
    High,
}

impl Priority {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Default, Self::High];

    /// The value of Envoy's enumeration.
    ///
    /// # Errors
    /// It is neither.
    pub(super) fn convert(path: &Path<'_>, wire: i32) -> Result<Self> {
        match wire {
            0 => Ok(Self::Default),
            1 => Ok(Self::High),
            other => Err(path.invalid(other, "is not DEFAULT or HIGH")),
        }
    }
}

/// Limits of one priority.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PriorityLimits {
    /// Connections.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    /// Requests.
    pub max_requests: u32,
    /// Retries.
    pub retries: Retries,
    /// Whether what is left is told.
    pub track_remaining: bool,
}

/// Most retries at a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Retries {
    /// So many.
    Max(u32),
    /// A part of the requests that are under way, and at least some.
    Budget {
        /// Of them.
        percent: f64,
        /// At least.
        min: u32,
    },
}

impl Retries {
    /// How many there may be while so many requests are active or wait.
    pub fn allowed(&self, requests: u32) -> u32 {
        match self {
            Self::Max(max) => *max,
            Self::Budget { percent, min } => ((percent / 100.0 * f64::from(requests)) as u32).max(*min),
        }
    }
}

/// `CircuitBreakers`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Breakers {
    /// Of priority DEFAULT.
    pub default: PriorityLimits,
    /// Of priority HIGH.
    pub high: PriorityLimits,
    /// Connections to one endpoint.
    pub max_connections_per_host: Option<u32>,
}

impl Breakers {
    /// Those of a priority.
    pub fn of(&self, priority: Priority) -> &PriorityLimits {
        match priority {
            Priority::Default => &self.default,
            Priority::High => &self.high,
        }
    }
}

const DEFAULT: PriorityLimits = PriorityLimits {
    max_connections: limits::BREAKER,
    max_pending_requests: limits::BREAKER,
    max_requests: limits::BREAKER,
    retries: Retries::Max(limits::BREAKER_RETRIES),
    track_remaining: false,
};

pub(super) fn convert(path: &Path<'_>, wire: Option<CircuitBreakers>) -> Result<Breakers> {
    let CircuitBreakers { thresholds, per_host_thresholds } = wire.unwrap_or_default();
    let list = path.field("thresholds");
    let (mut default, mut high) = (None, None);
    for (at, wire) in thresholds.into_iter().enumerate() {
        let path = list.index(at);
        let slot = match Priority::convert(&path.field("priority"), wire.priority)? {
            Priority::Default => &mut default,
            Priority::High => &mut high,
        };
        let converted = one(&path, wire)?;
        // The first counts, as in Envoy.
        slot.get_or_insert(converted);
    }
    let list = path.field("per_host_thresholds");
    let mut per_host = None;
    for (at, wire) in per_host_thresholds.into_iter().enumerate() {
        let path = list.index(at);
        let Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = wire;
        // Envoy knows no other either, and refuses them.
        refuse!(path; max_pending_requests, max_requests, max_retries, retry_budget, track_remaining,
            max_connection_pools, priority);
        let max = max_connections.ok_or_else(|| path.field("max_connections").missing())?;
        per_host.get_or_insert(max.value);
    }
    Ok(Breakers {
        default: default.unwrap_or(DEFAULT),
        high: high.unwrap_or(DEFAULT),
        max_connections_per_host: per_host,
    })
}

fn one(path: &Path<'_>, wire: Thresholds) -> Result<PriorityLimits> {
    let Thresholds {
        priority: _,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        track_remaining,
        max_connection_pools,
    } = wire;
    // Each endpoint has one pool here, whatever the requests that use it.
    refuse!(path; max_connection_pools);
    let retries = match retry_budget {
        // As in Envoy, `max_retries` has no effect beside a budget.
        Some(RetryBudget { budget_percent, budget_interval, min_retry_concurrency }) => {
            let path = path.field("retry_budget");
            refuse!(path; budget_interval);
            let percent = percent(&path.field("budget_percent"), budget_percent, 20.0)?;
            Retries::Budget { percent, min: u32_or(&min_retry_concurrency, 3) }
        }
        None => Retries::Max(u32_or(&max_retries, limits::BREAKER_RETRIES)),
    };
    Ok(PriorityLimits {
        max_connections: u32_or(&max_connections, limits::BREAKER),
        max_pending_requests: u32_or(&max_pending_requests, limits::BREAKER),
        max_requests: u32_or(&max_requests, limits::BREAKER),
        retries,
        track_remaining,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_follows_the_requests_and_never_falls_below_its_minimum() {
        let budget = Retries::Budget { percent: 20.0, min: 3 };
        for (requests, allowed) in [(0, 3), (10, 3), (20, 4), (1000, 200)] {
            assert_eq!(budget.allowed(requests), allowed, "{requests}");
        }
        assert_eq!(Retries::Max(7).allowed(1000), 7);
    }
}
