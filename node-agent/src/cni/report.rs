//! What the control plane is told of a pod.

use mesh_model::resource::NamespacedName;
use tonic::{Code, Status};
use xds_proto::isthmus::bootstrap::v1::{
    RemoveEndpointRequest, ReportEndpointRequest, endpoints_client::EndpointsClient,
};

use super::refuse::refuse;
use crate::{bootstrap::Upstream, cni_plugin::code, desired::PodAddresses};

/// Tells the control plane where a workload runs. When it answers, that is durable.
pub(crate) async fn report(
    upstream: &Upstream,
    workload: &NamespacedName,
    addresses: PodAddresses,
    ready: bool,
) -> Result<(), Status> {
    let request = ReportEndpointRequest {
        namespace: workload.namespace.clone(),
        workload: workload.name.clone(),
        addresses: addresses.iter().map(|address| address.to_string()).collect(),
        ready,
    };
    let reported = upstream
        .call(|channel| {
            let request = request.clone();
            async move { EndpointsClient::new(channel).report(request).await }
        })
        .await;
    reported.map(drop).map_err(|status| match status.code() {
        Code::NotFound => undeclared(workload),
        // The store's refusals share one code, so this one is told by its words.
        Code::FailedPrecondition if status.message().starts_with("there is no workload") => {
            undeclared(workload)
        }
        Code::Unavailable | Code::DeadlineExceeded => {
            let what = format!("the control plane cannot be reached: {}", status.message());
            refuse(code::TRY_AGAIN, Code::Unavailable, what)
        }
        other => refuse(code::REFUSED, other, status.message().to_owned()),
    })
}

fn undeclared(workload: &NamespacedName) -> Status {
    let what =
        format!("Workload {workload} is not declared; apply it first: clustermesh apply -f <its file>");
    refuse(code::REFUSED, Code::FailedPrecondition, what)
}

/// Tells the control plane that a workload does not run here any more; false if it could not be told.
pub(crate) async fn withdraw(upstream: &Upstream, workload: &NamespacedName) -> bool {
    let request =
        RemoveEndpointRequest { namespace: workload.namespace.clone(), workload: workload.name.clone() };
    let removed = upstream
        .call(|channel| {
            let request = request.clone();
            async move { EndpointsClient::new(channel).remove(request).await }
        })
        .await;
    match removed {
        Ok(_) => true,
        Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => true,
        Err(status) => {
            let reason = status.message();
            tracing::debug!(%workload, reason, "the control plane still counts on a pod that is gone");
            false
        }
    }
}
