//! Packets between nodes and between clusters: a cluster with an overlay and two families on an underlay that carries no
//! pod's packet, and a peer without. Traffic goes on while policies, backends, agents and programs change.
//!
//! Needs root and eBPF; SKIP_PRIVILEGED=1 leaves it out.

// In a test an unwrap is the failure; clippy sees helpers of integration tests as plain code.
#![allow(clippy::unwrap_used)]

mod across;
mod changes;
#[path = "../support/mod.rs"]
mod support;
mod ways;

use integration::story::{Step, World};

#[test]
fn packets_cross_nodes_and_clusters_while_everything_changes() {
    if !support::may_run() {
        return;
    }
    let steps = [
        Step {
            title: "A cluster starts with an overlay and two families, and a peer without",
            vital: true,
            run: ways::start,
        },
        Step { title: "Pods reach pods of another node, by both families", vital: false, run: ways::pods },
        Step { title: "Services lead to pods of another node", vital: false, run: ways::services },
        Step { title: "Nodes and pods of other nodes reach each other", vital: false, run: ways::nodes },
        Step { title: "A policy denies by who it is, whatever the family", vital: false, run: changes::deny },
        Step {
            title: "Policies change under traffic, and nothing is lost",
            vital: false,
            run: changes::policies,
        },
        Step { title: "Agents and programs are replaced under traffic", vital: false, run: changes::agents },
        Step { title: "Connections to a backend that goes are reset", vital: false, run: changes::backends },
        Step { title: "Node ports lead through the overlay", vital: false, run: across::node_ports },
        Step {
            title: "A peer's nodes take over when no backend is left here",
            vital: false,
            run: across::failover,
        },
    ];
    support::prove(&steps, World::new().unwrap());
}
