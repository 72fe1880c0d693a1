//! Circuit breakers at work: what is in use of each limit, by priority.

use std::sync::Arc;

use super::{Limit, Permit};
use crate::config::{self, Priority, Retries};

/// Of one priority.
#[derive(Debug)]
pub struct Breaker {
    /// Requests.
    pub requests: Arc<Limit>,
    /// Connections.
    pub connections: Arc<Limit>,
    /// Requests that wait for a connection.
    pub pending: Arc<Limit>,
    /// Retries; their limit may follow the requests.
    pub retries: Arc<Limit>,
    allowed_retries: Retries,
    /// Whether what is left is told.
    pub track_remaining: bool,
}

impl Breaker {
    fn new(limits: &config::PriorityLimits) -> Self {
        let retries = match limits.retries {
            Retries::Max(max) => max,
            Retries::Budget { .. } => u32::MAX,
        };
        Self {
            requests: Limit::new(limits.max_requests),
            connections: Limit::new(limits.max_connections),
            pending: Limit::new(limits.max_pending_requests),
            retries: Limit::new(retries),
            allowed_retries: limits.retries,
            track_remaining: limits.track_remaining,
        }
    }

    /// Leave to try once more.
    pub fn try_retry(&self) -> Option<Permit> {
        let allowed = self.allowed_retries.allowed(self.requests.used() + self.pending.used());
        self.retries.try_take_of(allowed)
    }

    /// Each limit with Envoy's name, what may be used at this moment, and what is.
    pub fn usage(&self) -> [(&'static str, u32, u32); 4] {
        let requests = self.requests.used() + self.pending.used();
        [
            ("cx", self.connections.max(), self.connections.used()),
            ("rq_pending", self.pending.max(), self.pending.used()),
            ("rq", self.requests.max(), self.requests.used()),
            ("rq_retry", self.allowed_retries.allowed(requests), self.retries.used()),
        ]
    }
}

/// Of a cluster.
#[derive(Debug)]
pub struct Breakers {
    default: Breaker,
    high: Breaker,
}

impl Breakers {
    /// Nothing is in use.
    pub fn new(config: &config::Breakers) -> Self {
        Self { default: Breaker::new(&config.default), high: Breaker::new(&config.high) }
    }

    /// Those of a priority.
    pub fn of(&self, priority: Priority) -> &Breaker {
        match priority {
            Priority::Default => &self.default,
            Priority::High => &self.high,
        }
    }
}
