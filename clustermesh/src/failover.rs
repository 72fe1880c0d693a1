//! In which order the clusters that serve a service are used.

/// Locality tiers: a lower priority is used while anything in it is healthy (Envoy's
/// `LocalityLbEndpoints.priority`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalityOrder {
    local: String,
}

/// Priority of this cluster's own endpoints.
pub const LOCAL: u32 = 0;
/// Priority of endpoints in peers.
pub const PEERS: u32 = 1;

impl LocalityOrder {
    /// This cluster first, then all peers alike.
    pub fn local_first(local: impl Into<String>) -> Self {
        Self { local: local.into() }
    }

    /// The priority of endpoints in a cluster.
    pub fn priority(&self, cluster: &str) -> u32 {
        if cluster == self.local { LOCAL } else { PEERS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_endpoints_come_before_those_of_peers() {
        let order = LocalityOrder::local_first("west");
        assert_eq!(order.priority("west"), LOCAL);
        assert_eq!(order.priority("east"), PEERS);
        assert_eq!(order.priority("north"), order.priority("east"));
    }
}
