//! Pods that went away without a DEL: whoever destroys a network namespace destroys the link with it.

use std::time::Duration;

use super::{CniService, service::withdraw};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Removes pods whose link is gone, and tells the control plane until it has heard it. For ever: stop it by dropping
/// the future.
pub async fn watch_for_ever(service: CniService) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let known: Vec<_> = service.creator.registry.lock().iter().cloned().collect();
        // A workload that has come back here is told of by its own ADD.
        service.untold().retain(|workload| !known.iter().any(|endpoint| endpoint.workload == *workload));
        for endpoint in known.into_iter().filter(|endpoint| endpoint.ready) {
            match service.creator.host.index(&endpoint.host_interface).await {
                Ok(Some(index)) if index == endpoint.ifindex => {}
                Ok(_) => {
                    tracing::warn!(workload = %endpoint.workload, "the pod is gone without a DEL");
                    service.creator.remove(&endpoint).await;
                    service.secrets.forget(&endpoint.workload);
                    service.untold().insert(endpoint.workload);
                }
                Err(error) => tracing::warn!(%error, "cannot look after a pod"),
            }
        }
        let untold = service.untold().clone();
        for workload in untold {
            if withdraw(&service.upstream, &workload).await {
                service.untold().remove(&workload);
            }
        }
    }
}
