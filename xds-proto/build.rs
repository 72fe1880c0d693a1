//! Compiles our own `.proto` files, and the SPIFFE Workload API. `protox` parses them in Rust, so no `protoc` need be installed.

use std::{error::Error, path::PathBuf};

const FILES: &[&str] = &[
    "isthmus/admin/v1/admin.proto",
    "isthmus/admin/v1/explain.proto",
    "isthmus/admin/v1/replicas.proto",
    "isthmus/admin/v1/recovery.proto",
    "isthmus/admin/v1/tokens.proto",
    "isthmus/agent/v1/resources.proto",
    "isthmus/bootstrap/v1/bootstrap.proto",
    "isthmus/ca/v1/ca.proto",
    "isthmus/federation/v1/federation.proto",
    "isthmus/local/v1/dns.proto",
    "isthmus/local/v1/local.proto",
    "isthmus/local/v1/redirect.proto",
    "isthmus/raft/v1/raft.proto",
    "flow/flow.proto",
    "observer/observer.proto",
    "peer/peer.proto",
    "relay/relay.proto",
    "spiffe/workload.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, [PathBuf::from("proto")])?;
    let mut prost = tonic_prost_build::Config::new();
    // Without both, `prost::Name` yields type URLs that no xDS client accepts.
    prost.enable_type_names();
    prost.type_name_domain(["."], "type.googleapis.com");
    // A resource that is equal has equal bytes.
    prost.btree_map([".isthmus.agent"]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, prost)?;
    Ok(())
}
