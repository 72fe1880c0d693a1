//! The page for operators says the limits that the program has.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path, time::Duration};

use control_plane::{admin, doors};
use mesh_model::resource::{Kind, MAX_OBJECT_DEPTH};
use mesh_store::limits::{self, max_objects};

#[test]
fn the_table_of_limits_in_the_documents_is_that_of_the_program() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("\n## Limits\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let said: BTreeMap<&str, usize> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
        .filter_map(|(what, limit)| Some((what, limit.parse().ok()?)))
        .collect();
    let kinds = [
        ("workloads", Kind::Workload),
        ("endpoint slices", Kind::EndpointSlice),
        ("services", Kind::Service),
        ("service exports", Kind::ServiceExport),
        ("network policies", Kind::NetworkPolicy),
        ("HTTP routes", Kind::HttpRoute),
        ("sidecars", Kind::Sidecar),
        ("Cilium network policies", Kind::CiliumNetworkPolicy),
        ("Cilium clusterwide network policies", Kind::CiliumClusterwideNetworkPolicy),
        ("cluster network policies", Kind::ClusterNetworkPolicy),
        ("namespaces", Kind::Namespace),
    ];
    assert_eq!(kinds.len(), Kind::ALL.len(), "a new kind has a limit: say it");
    let mut program: BTreeMap<&str, usize> =
        kinds.into_iter().map(|(what, kind)| (what, max_objects(kind))).collect();
    program.extend([
        ("bytes of one object as JSON", limits::MAX_OBJECT_BYTES),
        ("nesting of one object", MAX_OBJECT_DEPTH),
        ("objects in one apply or delete", limits::MAX_OBJECTS_PER_COMMAND),
        ("bytes of one command between replicas", limits::MAX_COMMAND_BYTES),
        ("nodes", limits::MAX_NODES),
        ("addresses of one workload", limits::MAX_ADDRESSES_PER_WORKLOAD),
        ("replicas, learners included", limits::MAX_REPLICAS),
        ("peers", limits::MAX_PEERS),
        ("services that one peer exports", limits::MAX_IMPORTS_PER_PEER),
        ("ports of an imported service", limits::MAX_PORTS_PER_IMPORT),
        ("namespaces in exportTo", limits::MAX_EXPORT_TO),
        ("identities of an imported service", limits::MAX_IDENTITIES_PER_IMPORT),
        ("roots of one trust domain", limits::MAX_ROOTS),
        ("bytes of a root certificate", limits::MAX_ROOT_BYTES),
        ("mesh doors of one peer", limits::MAX_PEER_DOORS),
        ("gateways of one peer", limits::MAX_PEER_GATEWAYS),
        ("tokens", limits::MAX_TOKENS),
        ("certificates of administrators that have not ended", limits::MAX_ADMINISTRATORS),
        ("seconds that one is valid", limits::MAX_ADMINISTRATOR_SECONDS as usize),
        ("events that a watch can be behind", limits::MAX_HISTORY_EVENTS),
        ("bytes of these events", limits::MAX_HISTORY_BYTES),
        ("milliseconds that a write can be repeated with its key", limits::KEY_MEMORY_MS as usize),
        ("writes that can be repeated with their keys", limits::MAX_KEYS),
        ("bytes of one request of an administrator", doors::MAX_ADMIN_MESSAGE),
        ("bytes of one request of a node or peer", doors::MAX_SMALL_MESSAGE),
        ("bytes of one request of a new node or replica", doors::MAX_BOOTSTRAP_MESSAGE),
        ("bytes of one request of a new peer", doors::MAX_JOIN_MESSAGE),
        ("streams of one connection", doors::MAX_STREAMS_PER_CONNECTION as usize),
        ("the same without a certificate", doors::MAX_NEWCOMER_STREAMS as usize),
        ("seconds that a connection without a certificate lasts", seconds(doors::connections::NEWCOMER_TIME)),
        ("seconds until a request has arrived", seconds(doors::admission::BODY_TIME)),
        ("the same of a newcomer", seconds(doors::admission::NEWCOMER_BODY_TIME)),
        ("seconds that an answer is kept for a reader that does not read", seconds(admin::outlet::UNREAD)),
        ("seconds for reading what a watch begins with", seconds(admin::watch::FIRST_LIST)),
    ]);
    assert_eq!(said, program);
}

fn seconds(time: Duration) -> usize {
    time.as_secs() as usize
}
