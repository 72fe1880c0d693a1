//! CHECK: is the pod as ADD left it?

use std::sync::Arc;

use super::{Endpoint, HostNet, Netns, link::check_pod};
use crate::engine::Engine;

/// What is wrong with a pod, or nothing.
pub(crate) async fn check(
    endpoint: &Endpoint,
    netns: &str,
    host: &HostNet,
    engine: &Engine,
) -> Result<(), String> {
    let opened = Netns::open(netns).map_err(|error| error.to_string())?;
    if opened.id() != endpoint.netns_id {
        return Err(format!("{netns} is another network namespace than the one that ADD was given"));
    }
    let name = &endpoint.host_interface;
    let up = host.is_up(name, endpoint.ifindex).await.map_err(|error| error.to_string())?;
    if !up {
        return Err(format!("the host's interface {name} is missing, down or another one"));
    }
    let (opened, ifname, addresses) = (Arc::new(opened), endpoint.ifname.clone(), endpoint.addresses());
    let inside = tokio::task::spawn_blocking(move || opened.run(move || check_pod(&ifname, addresses)));
    let found = inside.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    if let Some(wrong) = found.map_err(|error| error.to_string())? {
        return Err(wrong);
    }
    if engine.enforced(&endpoint.workload).is_none() {
        return Err("the pod's policy is not in the kernel; it has no traffic".to_owned());
    }
    Ok(())
}
