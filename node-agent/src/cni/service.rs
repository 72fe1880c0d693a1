//! The agent's half of the CNI plugin, on its socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_model::resource::NamespacedName;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tonic::{Code, Request, Response, Status};
use xds_proto::isthmus::local::v1::{
    CniAddResponse, CniEmpty, CniGcRequest, CniGcResponse, CniRequest, cni_server::Cni,
};

use super::{
    Endpoint, EndpointKey, RegistryError,
    chained::Found,
    check::check,
    create::{CreateError, Creator, PodNetns},
    host_ports,
    refuse::{answer, key, refuse, refuse_create, workload},
    report::{report, withdraw},
};
use crate::{
    bootstrap::Upstream,
    cni_plugin::code,
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
    unannounced: Arc<StdMutex<BTreeSet<NamespacedName>>>,
    /// What the control plane was last told of pods that are probed.
    told_ready: Arc<StdMutex<BTreeMap<NamespacedName, bool>>>,
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
        let (busy, untold, unannounced) = (Arc::default(), Arc::default(), Arc::default());
        let told_ready = Arc::default();
        Self { creator, upstream, callers, secrets, stream, slots, busy, untold, unannounced, told_ready }
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
                Again::Answer => return Ok(answer(&known, self.creator.names.as_ref())),
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
        if let Err(error) = self.creator.registry.finish(ready.clone()).await {
            self.release(&ready).await;
            return Err(refuse(code::IO, Code::Internal, error.to_string()));
        }
        tracing::info!(workload = %ready.workload, address = %ready.address, "pod created");
        Ok(answer(&ready, self.creator.names.as_ref()))
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
        self.announce(reserved).await?;
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
        if self.readiness(&endpoint.workload) == Some(None)
            && !self.unannounced().contains(&endpoint.workload)
        {
            report(&self.upstream, &endpoint.workload, endpoint.addresses(), true).await?;
        }
        Ok(endpoint)
    }

    /// Tells the control plane of a pod that is about to be. If it cannot be reached, and this node was told of the workload
    /// before, the pod is made all the same: its policy is known, and the [watcher](super::watch_for_ever) tells of it as
    /// soon as somebody listens.
    async fn announce(&self, pod: &Endpoint) -> Result<(), Status> {
        self.unannounced().remove(&pod.workload);
        let is_known =
            self.creator.engine.resources(|resources| resources.locals.contains_key(&pod.workload));
        if is_known && !self.is_connected() {
            self.unannounced().insert(pod.workload.clone());
            return Ok(());
        }
        match report(&self.upstream, &pod.workload, pod.addresses(), false).await {
            Err(status) if is_known && status.code() == Code::Unavailable => {
                self.unannounced().insert(pod.workload.clone());
                Ok(())
            }
            told => told,
        }
    }

    /// Pods that the control plane has not heard of yet.
    pub(super) fn unannounced(&self) -> MutexGuard<'_, BTreeSet<NamespacedName>> {
        self.unannounced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a workload is probed; the outer `None`: it was not told of.
    pub(super) fn readiness(&self, workload: &NamespacedName) -> Option<Option<Readiness>> {
        let of = |resources: &Resources| resources.locals.get(workload).map(|local| local.readiness.clone());
        self.creator.engine.resources(of)
    }

    /// What the control plane was last told of pods that are probed.
    pub(super) fn told_ready(&self) -> MutexGuard<'_, BTreeMap<NamespacedName, bool>> {
        self.told_ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the control plane is to be told of a pod that it has lost.
    pub(super) fn is_ready(&self, workload: &NamespacedName) -> bool {
        let told = self.told_ready().get(workload).copied();
        ready_again(self.readiness(workload).as_ref().map(Option::as_ref), told)
    }

    async fn is_there(&self, endpoint: &Endpoint) -> Result<bool, Status> {
        self.creator.is_there(endpoint).await.map_err(|error| refuse_create(&error.into()))
    }

    /// Unmakes a pod and tells the control plane. That it can't be told, or that something of the pod can't be removed, is
    /// only logged here: the [watcher](super::watch_for_ever) sees to it later. False: something is left.
    pub(super) async fn release(&self, endpoint: &Endpoint) -> bool {
        let all_gone = self.creator.remove(endpoint).await;
        self.unannounced().remove(&endpoint.workload);
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
            unready(pods.len(), &closed.collect::<Vec<_>>(), engine.is_policy_behind(), self.is_connected());
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
    let what = "the control plane is not connected; no pod can be added whose workload was not here before";
    (!is_connected).then(|| (code::NOT_AVAILABLE, what.to_owned()))
}

/// A pod that is probed is as the last probe left it, and one that is not known yet waits until it is known whether it is
/// probed. PURE.
fn ready_again(how: Option<Option<&Readiness>>, told: Option<bool>) -> bool {
    match how {
        Some(None) => true,
        Some(Some(_)) => told == Some(true),
        None => false,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_is_told_of_again_is_no_readier_than_its_probe_says() {
        let probe = Readiness {
            asked: crate::subscribe::Asked::Tcp,
            port: 80,
            period: Duration::from_secs(1),
            failures: 1,
        };
        assert!(ready_again(Some(None), None));
        assert_eq!(
            [None, Some(false), Some(true)].map(|told| ready_again(Some(Some(&probe)), told)),
            [false, false, true]
        );
        assert!(!ready_again(None, Some(true)));
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
}
