//! Certificates in use: two joined clusters with real agents, proxies and an Envoy, in network namespaces. A node is
//! revoked, load is reported, and both roots are replaced under traffic.
//!
//! Needs root and eBPF; SKIP_PRIVILEGED=1 leaves it out.

// In a test an unwrap is the failure; clippy sees helpers of integration tests as plain code.
#![allow(clippy::unwrap_used)]

mod load;
mod mesh;
mod revocation;
mod rotation;
#[path = "../support/mod.rs"]
mod support;
mod thief;

use integration::story::{Step, World};

#[test]
fn certificates_are_revoked_and_replaced_under_traffic_in_two_clusters() {
    if !support::may_run() {
        return;
    }
    let steps = [
        Step { title: "Two clusters start and join", vital: true, run: mesh::start },
        Step {
            title: "A node is revoked, and what it has opens nothing",
            vital: false,
            run: revocation::revoke,
        },
        Step { title: "The revoked node's agent does not come back", vital: false, run: revocation::restart },
        Step { title: "Both roots are replaced under traffic", vital: false, run: rotation::rotate },
        Step { title: "An Envoy's load reaches the control plane", vital: false, run: load::report },
    ];
    support::prove(&steps, World::new().unwrap());
}
