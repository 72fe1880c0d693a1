//! CHECK: is the pod as ADD left it?

use std::sync::Arc;

use super::{Endpoint, HostNet, Netns, link::check_pod};
use crate::{cni_plugin::PreviousResult, engine::Engine};

/// What is wrong with a pod, or nothing. `previous` is the result of ADD as the runtime has kept it, if it gives one.
pub(crate) async fn check(
    endpoint: &Endpoint,
    netns: &str,
    previous: &[u8],
    host: &HostNet,
    engine: &Engine,
) -> Result<(), String> {
    let opened = Netns::open(netns).map_err(|error| error.to_string())?;
    if opened.id() != endpoint.netns_id {
        return Err(format!("{netns} is another network namespace than the one that ADD was given"));
    }
    if !previous.is_empty() {
        let previous =
            PreviousResult::parse(previous, &endpoint.ifname).map_err(|error| error.to_string())?;
        if previous.addresses != endpoint.addresses() {
            let known: Vec<_> = endpoint.addresses().iter().map(|address| address.to_string()).collect();
            return Err(format!(
                "prevResult has other addresses than the pod, which has {}",
                known.join(", ")
            ));
        }
    }
    let name = &endpoint.host_interface;
    let up = host.is_up(name, endpoint.ifindex).await.map_err(|error| error.to_string())?;
    if !up {
        return Err(format!("the host's interface {name} is missing, down or another one"));
    }
    let (opened, ifname, addresses) = (Arc::new(opened), endpoint.ifname.clone(), endpoint.addresses());
    let is_chained = endpoint.chained;
    let inside =
        tokio::task::spawn_blocking(move || opened.run(move || check_pod(&ifname, addresses, is_chained)));
    let found = inside.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    if let Some(wrong) = found.map_err(|error| error.to_string())? {
        return Err(wrong);
    }
    if engine.enforced(&endpoint.workload).is_none() {
        return Err("the pod's policy is not in the kernel; it has no traffic".to_owned());
    }
    Ok(())
}
