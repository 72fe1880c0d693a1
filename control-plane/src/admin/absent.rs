//! Registered nodes whose agents no replica serves. PURE.

use std::collections::{BTreeMap, BTreeSet};

use xds_proto::isthmus::admin::v1::{DataPlaneStatus, Departure};

/// A row for each node without a connected agent. `silent` are the replicas that did not answer: an agent may be
/// connected to one of them.
pub fn agents<'a>(
    nodes: impl IntoIterator<Item = &'a str>,
    connected: &[DataPlaneStatus],
    departures: &[Departure],
    silent: &BTreeSet<u64>,
) -> Vec<DataPlaneStatus> {
    let here: BTreeSet<&str> = connected.iter().map(|plane| plane.id.as_str()).collect();
    let mut left = BTreeMap::<&str, u64>::new();
    for departure in departures {
        let latest = left.entry(&departure.id).or_default();
        *latest = departure.unix_ms.max(*latest);
    }
    let doubt = match silent.iter().map(u64::to_string).collect::<Vec<_>>() {
        unheard if unheard.is_empty() => String::new(),
        unheard => format!("unless it is connected to replica {}, which does not answer", unheard.join(", ")),
    };
    nodes
        .into_iter()
        .map(|node| format!("agent~{node}"))
        .filter(|id| !here.contains(id.as_str()))
        .map(|id| DataPlaneStatus {
            kind: "agent".to_owned(),
            state: "disconnected".to_owned(),
            since_unix_ms: left.get(id.as_str()).copied().unwrap_or(0),
            last_error: doubt.clone(),
            id,
            ..Default::default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(id: &str) -> DataPlaneStatus {
        DataPlaneStatus { id: id.to_owned(), ..Default::default() }
    }

    fn left(id: &str, unix_ms: u64) -> Departure {
        Departure { id: id.to_owned(), unix_ms }
    }

    #[test]
    fn a_node_is_absent_if_no_replica_has_its_agent_and_since_the_last_one_lost_it() {
        let connected = [plane("agent~n1"), plane("proxy~n2")];
        let departures =
            [left("agent~n2", 5), left("agent~n2", 9), left("agent~n1", 7), left("agent~gone", 8)];
        let rows = agents(["n1", "n2", "n3"], &connected, &departures, &BTreeSet::new());
        let told: Vec<_> = rows
            .iter()
            .map(|r| (r.id.as_str(), r.state.as_str(), r.since_unix_ms, r.last_error.as_str()))
            .collect();
        assert_eq!(told, [("agent~n2", "disconnected", 9, ""), ("agent~n3", "disconnected", 0, "")]);
    }

    #[test]
    fn a_replica_that_does_not_answer_leaves_a_doubt() {
        let rows = agents(["n1"], &[], &[], &BTreeSet::from([2, 3]));
        assert!(rows[0].last_error.contains("replica 2, 3"), "{}", rows[0].last_error);
    }
}
