//! Pods that went away without a DEL: whoever destroys a network namespace destroys the link with it.

use std::{net::IpAddr, time::Duration};

use xds_proto::isthmus::agent::v1::LocalEndpoint;

use super::{
    CniService, Endpoint,
    report::{report, withdraw},
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// A pod that the control plane does not know is told of again after so many looks.
const REPORT_EVERY: u32 = 5;

/// Removes pods whose link is gone, and tells the control plane until it has heard it. For ever: stop it by dropping
/// the future.
pub async fn watch_for_ever(service: CniService) {
    let mut look = 0u32;
    loop {
        tokio::time::sleep(INTERVAL).await;
        look = look.wrapping_add(1);
        let known: Vec<_> = service.creator.registry.lock().iter().cloned().collect();
        // A workload that has come back here is told of by its own ADD.
        service.untold().retain(|workload| !known.iter().any(|endpoint| endpoint.workload == *workload));
        for endpoint in known {
            match service.creator.host.index(&endpoint.host_interface).await {
                Ok(Some(index)) if endpoint.ready && index == endpoint.ifindex => {
                    if look.is_multiple_of(REPORT_EVERY) {
                        remind(&service, &endpoint).await;
                    }
                }
                // Not ready, and no call works on it: an agent died half-way, or something could not be removed.
                Ok(_) => {
                    let Some(_busy) = service.occupy_as_it_is(&endpoint) else { continue };
                    tracing::warn!(workload = %endpoint.workload, "the pod is gone without a DEL");
                    service.creator.remove(&endpoint).await;
                    service.secrets.forget(&endpoint.workload);
                    service.untold().insert(endpoint.workload);
                }
                Err(error) => tracing::warn!(%error, "cannot look after a pod"),
            }
        }
        if let Err(error) = service.creator.sweep_programs().await {
            tracing::warn!(%error, "programs of interfaces that are gone are still pinned");
        }
        announce(&service).await;
        let untold = service.untold().clone();
        for workload in untold {
            if withdraw(&service.upstream, &workload).await {
                service.untold().remove(&workload);
            }
        }
    }
}

/// Tells of pods that were made while nobody listened.
async fn announce(service: &CniService) {
    if !service.is_connected() {
        return;
    }
    let unannounced = service.unannounced().clone();
    for workload in unannounced {
        let pod = service.creator.registry.lock().by_workload(&workload).filter(|pod| pod.ready).cloned();
        // Being made, or gone.
        let Some(pod) = pod else { continue };
        // With a probe it is told to be ready when that has succeeded.
        let readiness = service.readiness(&workload);
        match report(&service.upstream, &workload, pod.addresses(), readiness == Some(None)).await {
            Ok(()) if readiness.is_some() => drop(service.unannounced().remove(&workload)),
            // Whether it is probed is yet to be heard.
            Ok(()) => {}
            Err(status) => {
                tracing::warn!(%workload, reason = status.message(), "the control plane has not heard of the pod");
            }
        }
    }
}

/// A Workload that was deleted and applied anew has lost where it runs.
async fn remind(service: &CniService, endpoint: &Endpoint) {
    let address = IpAddr::V4(endpoint.address);
    let is_unknown = service.creator.engine.resources(|resources| {
        let is_elsewhere = |known: &crate::subscribe::Address| !known.addresses.contains(&address);
        (resources.heard::<LocalEndpoint>() && !resources.locals.contains_key(&endpoint.workload))
            // Made while nobody listened, by an agent that is gone.
            || resources.addresses.get(&endpoint.workload).is_some_and(is_elsewhere)
    });
    if is_unknown && service.is_connected() {
        let (workload, is_probed) = (&endpoint.workload, service.readiness(&endpoint.workload));
        let told =
            report(&service.upstream, workload, endpoint.addresses(), service.is_ready(workload)).await;
        // Whatever a probe finds is news from now on.
        service.told_ready().remove(workload);
        match told {
            Err(status) => {
                tracing::warn!(%workload, reason = status.message(), "the pod has no traffic");
            }
            Ok(()) if is_probed.is_none() => drop(service.unannounced().insert(workload.clone())),
            Ok(()) => {}
        }
    }
}
