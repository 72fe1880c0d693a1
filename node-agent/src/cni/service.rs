//! The agent's half of the CNI plugin, on its socket.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_model::resource::NamespacedName;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tonic::{Code, Request, Response, Status};
use xds_proto::isthmus::{
    bootstrap::v1::{RemoveEndpointRequest, ReportEndpointRequest, endpoints_client::EndpointsClient},
    local::v1::{CniAddResponse, CniEmpty, CniGcRequest, CniGcResponse, CniRequest, cni_server::Cni},
};

use super::{
    Endpoint, EndpointKey, GATEWAY, GATEWAY6, NetnsError, RegistryError,
    chained::Found,
    check::check,
    create::{CreateError, Creator, PodNetns},
    host_ports,
};
use crate::{
    bootstrap::Upstream,
    cni_plugin::{PreviousError, code},
    config::dns_label,
    desired::PodAddresses,
    identity::{Callers, Secrets},
    subscribe::{Readiness, Resources},
};

/// ADD fails when the pod's policy is not in the kernel by then.
const ADD_DEADLINE: Duration = Duration::from_secs(30);
/// DEL does not wait longer for the control plane; it is told later.
const WITHDRAW_DEADLINE: Duration = Duration::from_secs(5);
/// Pods that are made or unmade at the same time; the others wait.
const MAX_CONCURRENT: usize = 16;

/// Serves the CNI plugin.
#[derive(Clone)]
pub struct CniService {
    pub(crate) creator: Creator,
    pub(crate) upstream: Upstream,
    pub(crate) callers: Callers,
    pub(crate) secrets: Secrets,
    /// Of the stream from the control plane.
    stream: watch::Receiver<xds_client::Status>,
    slots: Arc<Semaphore>,
    /// Endpoints that a call is working on: no two calls may work on one.
    busy: Arc<StdMutex<BTreeSet<EndpointKey>>>,
    untold: Arc<StdMutex<BTreeSet<NamespacedName>>>,
}

/// Marks an endpoint as being worked on, until dropped.
pub(super) struct Busy {
    key: EndpointKey,
    all: Arc<StdMutex<BTreeSet<EndpointKey>>>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl CniService {
    pub(crate) fn new(
        creator: Creator,
        upstream: Upstream,
        callers: Callers,
        secrets: Secrets,
        stream: watch::Receiver<xds_client::Status>,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(MAX_CONCURRENT));
        let (busy, untold) = (Arc::default(), Arc::default());
        Self { creator, upstream, callers, secrets, stream, slots, busy, untold }
    }

    /// Whether the control plane is there to be told something.
    pub(crate) fn is_connected(&self) -> bool {
        *self.stream.borrow() == xds_client::Status::Connected
    }

    pub(super) fn occupy(&self, key: &EndpointKey) -> Result<Busy, Status> {
        let all = self.busy.clone();
        if !all.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            let what = format!("another call is working on container {}", key.container_id);
            return Err(refuse(code::TRY_AGAIN, Code::Unavailable, what));
        }
        Ok(Busy { key: key.clone(), all })
    }

    async fn slot(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        self.slots.clone().acquire_owned().await.map_err(|_| Status::unavailable("the agent is stopping"))
    }

    async fn add_endpoint(&self, request: CniRequest) -> Result<CniAddResponse, Status> {
        let key = key(&request.container_id, &request.ifname)?;
        let workload = workload(&request)?;
        let host_ports = host_ports(&request.port_mappings)
            .map_err(|error| refuse(code::BAD_CONFIG, Code::InvalidArgument, error.to_string()))?;
        let _busy = self.occupy(&key)?;
        let _slot = self.slot().await?;
        let netns = PodNetns::open(&request.netns).await.map_err(|error| refuse_create(&error.into()))?;
        let found = if request.prev_result.is_empty() {
            None
        } else {
            let found = self.creator.find_chained(&key, &netns, &request.prev_result).await;
            Some(found.map_err(|error| refuse_create(&error))?)
        };
        let known = self.creator.registry.lock().get(&key).cloned();
        if let Some(known) = known {
            let same = found.as_ref().map_or(!known.chained, |found| found.is(&known))
                && known.host_ports == host_ports;
            match again(&known, &workload, &netns, same, self.is_there(&known).await?) {
                Again::Answer => return Ok(answer(&known)),
                Again::Refuse(error) => return Err(refuse_create(&error.into())),
                Again::Anew => self.released(&known).await?,
            }
        }
        self.release_vanished(&workload, &netns).await?;
        // Until here and in the reservation everything is asked that can be refused without touching the namespace,
        // and the control plane is the last to be asked.
        let reserved = match &found {
            Some(found) => {
                let pod = found.clone().endpoint(key.clone(), workload, &netns, request.network, host_ports);
                self.creator.registry.lock().begin(pod).map_err(CreateError::from)
            }
            None => self.creator.reserve(key.clone(), workload, &netns, request.network, host_ports).await,
        };
        let reserved = reserved.map_err(|error| refuse_create(&error))?;
        let brought_up = timeout(ADD_DEADLINE, self.bring_up(&reserved, &netns, found.as_ref())).await;
        let endpoint = match brought_up {
            Ok(Ok(endpoint)) => endpoint,
            failed => {
                // As far as it was made.
                let made = self.creator.registry.lock().get(&key).cloned().unwrap_or(reserved);
                self.release(&made).await;
                return Err(match failed {
                    Ok(Err(status)) => status,
                    Ok(Ok(_)) | Err(_) => {
                        let what = format!("no policy for {} within {ADD_DEADLINE:?}", made.workload);
                        refuse(code::TRY_AGAIN, Code::DeadlineExceeded, what)
                    }
                });
            }
        };
        let ready = Endpoint { ready: true, ..endpoint };
        let stored = self.creator.registry.lock().update(ready.clone());
        if let Err(error) = stored {
            self.release(&ready).await;
            return Err(refuse(code::IO, Code::Internal, error.to_string()));
        }
        tracing::info!(workload = %ready.workload, address = %ready.address, "pod created");
        Ok(answer(&ready))
    }

    /// Tells the control plane, which may refuse; makes the pod; and waits until what was answered is enforced.
    async fn bring_up(
        &self,
        reserved: &Endpoint,
        netns: &PodNetns,
        found: Option<&Found>,
    ) -> Result<Endpoint, Status> {
        let mut changes = self.creator.engine.changes();
        // Nobody is to call it before its policy is there.
        report(&self.upstream, &reserved.workload, reserved.addresses(), false).await?;
        let connected = match found {
            Some(found) => self.creator.guard(reserved.clone(), found).await,
            None => self.creator.connect(reserved.clone(), netns).await,
        };
        let endpoint = connected.map_err(|error| refuse_create(&error))?;
        loop {
            changes.borrow_and_update();
            if self.creator.engine.is_current(&endpoint.workload) {
                break;
            }
            changes.changed().await.map_err(|_| Status::unavailable("the agent is stopping"))?;
        }
        // With a probe it is not ready before that has succeeded, see `super::readiness`.
        if self.readiness(&endpoint.workload) == Some(None) {
            report(&self.upstream, &endpoint.workload, endpoint.addresses(), true).await?;
        }
        Ok(endpoint)
    }

    /// How a workload is probed; the outer `None`: it was not told of.
    pub(super) fn readiness(&self, workload: &NamespacedName) -> Option<Option<Readiness>> {
        let of = |resources: &Resources| resources.locals.get(workload).map(|local| local.readiness.clone());
        self.creator.engine.resources(of)
    }

    async fn is_there(&self, endpoint: &Endpoint) -> Result<bool, Status> {
        self.creator.is_there(endpoint).await.map_err(|error| refuse_create(&error.into()))
    }

    /// Unmakes a pod and tells the control plane. That it can't be told, or that something of the pod can't be removed, is
    /// only logged here: the [watcher](super::watch_for_ever) sees to it later. False: something is left.
    pub(super) async fn release(&self, endpoint: &Endpoint) -> bool {
        let all_gone = self.creator.remove(endpoint).await;
        self.secrets.forget(&endpoint.workload);
        let told = timeout(WITHDRAW_DEADLINE, withdraw(&self.upstream, &endpoint.workload)).await;
        if told != Ok(true) {
            tracing::warn!(workload = %endpoint.workload, "the control plane will be told later that the pod is gone");
            self.untold().insert(endpoint.workload.clone());
        }
        all_gone
    }

    async fn released(&self, endpoint: &Endpoint) -> Result<(), Status> {
        if self.release(endpoint).await {
            return Ok(());
        }
        let what = format!("what is left of container {} cannot be removed", endpoint.container_id);
        Err(refuse(code::TRY_AGAIN, Code::Unavailable, what))
    }

    /// A workload may come back in another container, or the number of a namespace in another one, before anyone has
    /// noticed that the pod that had it is gone.
    async fn release_vanished(&self, workload: &NamespacedName, netns: &PodNetns) -> Result<(), Status> {
        let known: Vec<_> = self.creator.registry.lock().iter().cloned().collect();
        for known in known {
            let reused = netns.has_number_of(&known) && !netns.is_of(&known);
            let concerned = known.workload == *workload || netns.is_of(&known);
            if !reused && (!concerned || (known.ready && self.is_there(&known).await?)) {
                continue;
            }
            // Someone who works on it already sees for himself that it is gone.
            if let Some(_busy) = self.occupy_as_it_is(&known) {
                self.release(&known).await;
            }
        }
        Ok(())
    }

    /// `None` if a call works on a pod, or has since it was looked at.
    pub(super) fn occupy_as_it_is(&self, seen: &Endpoint) -> Option<Busy> {
        let busy = self.occupy(&seen.key()).ok()?;
        (self.creator.registry.lock().get(&seen.key()) == Some(seen)).then_some(busy)
    }

    /// Workloads whose end the control plane has not heard of yet.
    pub(crate) fn untold(&self) -> MutexGuard<'_, BTreeSet<NamespacedName>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn del_endpoint(&self, request: CniRequest) -> Result<(), Status> {
        let key = key(&request.container_id, &request.ifname)?;
        let _busy = self.occupy(&key)?;
        let _slot = self.slot().await?;
        let known = self.creator.registry.lock().get(&key).cloned();
        let Some(known) = known else {
            // "A plugin should return success if a resource is missing". A link of its name may be there.
            let name = super::host_interface(&key);
            let removed = self.creator.host.remove(&name).await;
            return removed.map_err(|error| refuse(code::IO, Code::Internal, error.to_string()));
        };
        self.released(&known).await?;
        tracing::info!(workload = %known.workload, address = %known.address, "pod removed");
        Ok(())
    }

    async fn check_endpoint(&self, request: CniRequest) -> Result<(), Status> {
        let key = key(&request.container_id, &request.ifname)?;
        let known = self.creator.registry.lock().get(&key).cloned();
        let Some(known) = known.filter(|known| known.ready) else {
            let what = format!("container {} has no pod here", key.container_id);
            return Err(refuse(code::UNKNOWN_CONTAINER, Code::NotFound, what));
        };
        check(&known, &request.netns, &request.prev_result, &self.creator.host, &self.creator.engine)
            .await
            .map_err(|wrong| refuse(code::CHECK_FAILED, Code::FailedPrecondition, wrong))
    }

    fn ready_for_pods(&self) -> Result<(), Status> {
        let pods: Vec<_> = self
            .creator
            .registry
            .lock()
            .iter()
            .filter(|pod| pod.ready)
            .map(|pod| pod.workload.clone())
            .collect();
        let engine = &self.creator.engine;
        let closed = pods.iter().filter(|workload| engine.enforced(workload).is_none());
        let unready =
            unready(pods.len(), &closed.collect::<Vec<_>>(), engine.is_behind(), self.is_connected());
        unready.map_or(Ok(()), |(code, what)| Err(refuse(code, Code::Unavailable, what)))
    }
}

/// Why no pod can be made, or those that are there may lack traffic, by STATUS's code; `None`: all is well. PURE.
fn unready(
    pods: usize,
    closed: &[&NamespacedName],
    is_behind: bool,
    is_connected: bool,
) -> Option<(u32, String)> {
    if let Some(first) = closed.first() {
        let what = format!("{} of {pods} pods have no traffic, {first} first", closed.len());
        return Some((code::LIMITED, what));
    }
    if is_behind {
        let what = "the kernel has refused a write, which is tried again: pods have an older policy";
        return Some((code::LIMITED, what.to_owned()));
    }
    // Pods that exist are not touched by this, but no new one gets its policy.
    let what = "the control plane is not connected; no pod can be added";
    (!is_connected).then(|| (code::NOT_AVAILABLE, what.to_owned()))
}

/// What an ADD means for a container that is known on this interface.
enum Again {
    /// It is the same call once more.
    Answer,
    /// The pod is there, and is another one than that which is asked for.
    Refuse(RegistryError),
    /// What is known is gone, or was never finished.
    Anew,
}

fn again(known: &Endpoint, workload: &NamespacedName, netns: &PodNetns, same: bool, is_there: bool) -> Again {
    // The path leads to another namespace now: the runtime has made the one of this container anew.
    let replaced = known.netns == netns.path() && !netns.is_of(known);
    if !known.ready || !is_there || replaced {
        Again::Anew
    } else if known.workload == *workload && netns.is_of(known) && same {
        Again::Answer
    } else {
        Again::Refuse(RegistryError::Mismatch {
            container_id: known.container_id.clone(),
            ifname: known.ifname.clone(),
            workload: known.workload.clone(),
        })
    }
}

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

#[tonic::async_trait]
impl Cni for CniService {
    async fn add(&self, request: Request<CniRequest>) -> Result<Response<CniAddResponse>, Status> {
        self.callers.operator(&request)?;
        // In a task of its own: a plugin that is killed must not leave half a pod.
        let (service, request) = (self.clone(), request.into_inner());
        joined(tokio::spawn(async move { service.add_endpoint(request).await })).await
    }

    async fn del(&self, request: Request<CniRequest>) -> Result<Response<CniEmpty>, Status> {
        self.callers.operator(&request)?;
        let (service, request) = (self.clone(), request.into_inner());
        joined(tokio::spawn(async move { service.del_endpoint(request).await.map(|()| CniEmpty {}) })).await
    }

    async fn check(&self, request: Request<CniRequest>) -> Result<Response<CniEmpty>, Status> {
        self.callers.operator(&request)?;
        self.check_endpoint(request.into_inner()).await.map(|()| Response::new(CniEmpty {}))
    }

    async fn status(&self, request: Request<CniEmpty>) -> Result<Response<CniEmpty>, Status> {
        self.callers.operator(&request)?;
        self.ready_for_pods().map(|()| Response::new(CniEmpty {}))
    }

    async fn gc(&self, request: Request<CniGcRequest>) -> Result<Response<CniGcResponse>, Status> {
        self.callers.operator(&request)?;
        let (service, request) = (self.clone(), request.into_inner());
        joined(tokio::spawn(async move {
            service.collect_garbage(&request).await.map(|removed| CniGcResponse { removed })
        }))
        .await
    }
}

async fn joined<T>(task: tokio::task::JoinHandle<Result<T, Status>>) -> Result<Response<T>, Status> {
    match task.await {
        Ok(result) => result.map(Response::new),
        Err(error) => Err(refuse(code::IO, Code::Internal, format!("the call failed: {error}"))),
    }
}

/// A status whose metadata carries the CNI error code.
pub(super) fn refuse(cni_code: u32, code: Code, what: impl Into<String>) -> Status {
    let mut status = Status::new(code, what);
    status.metadata_mut().insert("isthmus-cni-code", tonic::metadata::MetadataValue::from(cni_code));
    status
}

fn refuse_create(error: &CreateError) -> Status {
    let text = error.to_string();
    match error {
        CreateError::Netns(NetnsError::Open { .. } | NetnsError::Own { .. }) => {
            refuse(code::BAD_ENVIRONMENT, Code::InvalidArgument, format!("CNI_NETNS: {text}"))
        }
        CreateError::Registry(RegistryError::Ipam(_)) => {
            refuse(code::TRY_AGAIN, Code::ResourceExhausted, text)
        }
        CreateError::Registry(
            RegistryError::Taken { .. }
            | RegistryError::Mismatch { .. }
            | RegistryError::Occupied { .. }
            | RegistryError::AddressTaken { .. }
            | RegistryError::HostPortTaken { .. }
            | RegistryError::InterfaceTaken { .. },
        )
        | CreateError::NotFree { .. } => refuse(code::REFUSED, Code::AlreadyExists, text),
        CreateError::Previous(PreviousError::Json(_)) => refuse(code::DECODE, Code::InvalidArgument, text),
        CreateError::Previous(_) | CreateError::Foreign { .. } => {
            refuse(code::REFUSED, Code::FailedPrecondition, text)
        }
        CreateError::Netns(_)
        | CreateError::Link(_)
        | CreateError::Registry(_)
        | CreateError::Sysctl(_)
        | CreateError::Map(_) => refuse(code::IO, Code::Internal, text),
    }
}

pub(super) fn key(container_id: &str, ifname: &str) -> Result<EndpointKey, Status> {
    // The plugin has checked them; whoever else speaks to the socket is checked here.
    let fine = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
    };
    if !fine(container_id, 255) {
        let what = format!("container_id is {container_id:?}");
        return Err(refuse(code::BAD_ENVIRONMENT, Code::InvalidArgument, what));
    }
    if !fine(ifname, 15) || matches!(ifname, "." | ".." | "lo") {
        let what = format!("ifname is {ifname:?}");
        return Err(refuse(code::BAD_ENVIRONMENT, Code::InvalidArgument, what));
    }
    Ok(EndpointKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

fn workload(request: &CniRequest) -> Result<NamespacedName, Status> {
    for (field, text) in [("namespace", &request.namespace), ("pod", &request.pod)] {
        dns_label(text).map_err(|reason| {
            refuse(code::BAD_ENVIRONMENT, Code::InvalidArgument, format!("{field}: {reason}"))
        })?;
    }
    Ok(NamespacedName::new(&request.namespace, &request.pod))
}

fn answer(endpoint: &Endpoint) -> CniAddResponse {
    CniAddResponse {
        address: format!("{}/32", endpoint.address),
        gateway: GATEWAY.to_string(),
        address6: endpoint.address6.map(|address| format!("{address}/128")).unwrap_or_default(),
        gateway6: endpoint.address6.map(|_| GATEWAY6.to_string()).unwrap_or_default(),
        host_interface: endpoint.host_interface.clone(),
        mac: mac_text(endpoint.host_mac),
        mtu: endpoint.mtu,
        sandbox_mac: mac_text(endpoint.pod_mac),
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni_plugin::CniError;

    #[test]
    fn the_plugin_prints_the_code_that_the_agent_chose() {
        let status = refuse(code::CHECK_FAILED, Code::FailedPrecondition, "no default route");
        assert_eq!(CniError::from_status(&status).code, code::CHECK_FAILED);
        assert_eq!(CniError::from_status(&Status::unavailable("x")).code, code::TRY_AGAIN);
    }

    #[test]
    fn a_namespace_that_is_not_free_is_a_refusal_of_the_plugin() {
        let what = "has a default route already".to_owned();
        let error = CreateError::NotFree { netns: "/run/netns/a".into(), what };
        assert_eq!(CniError::from_status(&refuse_create(&error)).code, code::REFUSED);
        let occupied = RegistryError::Occupied {
            netns: "/run/netns/a".into(),
            workload: NamespacedName::new("shop", "pay"),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        };
        let shown = CniError::from_status(&refuse_create(&occupied.into()));
        assert!(shown.code == code::REFUSED && shown.msg.contains("shop/pay"), "{shown:?}");
    }

    #[test]
    fn status_tells_what_keeps_new_pods_out_from_what_concerns_those_that_are_there() {
        let pod = NamespacedName::new("shop", "pay");
        let code_of = |closed: &[&NamespacedName], is_behind, is_connected| {
            unready(3, closed, is_behind, is_connected).map(|(code, _)| code)
        };
        assert_eq!(code_of(&[], false, true), None);
        assert_eq!(code_of(&[], false, false), Some(code::NOT_AVAILABLE));
        assert_eq!(code_of(&[], true, true), Some(code::LIMITED));
        assert_eq!(code_of(&[&pod], false, false), Some(code::LIMITED));
        let (_, what) = unready(3, &[&pod], false, true).unwrap();
        assert_eq!(what, "1 of 3 pods have no traffic, shop/pay first");
    }

    #[test]
    fn names_are_checked_again_by_the_agent() {
        assert!(key("c", "eth0").is_ok());
        assert!(key("c", "../x").is_err());
        assert!(key("", "eth0").is_err());
        let request = CniRequest { namespace: "a/b".into(), pod: "p".into(), ..Default::default() };
        assert!(workload(&request).is_err());
    }
}
