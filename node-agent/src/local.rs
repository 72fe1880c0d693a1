//! What the agent says of itself on its socket.

use std::{collections::BTreeMap, path::PathBuf};

use mesh_tls::{CertificateDer, fingerprint};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use xds_proto::isthmus::local::v1::{
    AgentEndpoint, AgentStatusRequest, AgentStatusResponse, AgentTrust, Connectivity, MapDifference, MapFill,
    ShortCut, StopRequest, StopResponse, VerifiedMap, VerifyMapsRequest, VerifyMapsResponse,
    agent_server::Agent,
};

use crate::{
    bootstrap::{Upstream, hex},
    cni::SharedRegistry,
    engine::Engine,
    flows::{Queue, Ring},
    identity::{Callers, Secrets},
    maps::{Verified, fill},
    names::Answering,
    stop::stays,
    subscribe::Progress,
    tunnel,
};

/// Differences of one map that are named; the others are counted.
const NAMED: usize = 100;

/// Serves the status.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct StatusService {
    pub node: String,
    pub upstream: Upstream,
    pub engine: Engine,
    pub registry: SharedRegistry,
    pub secrets: Secrets,
    pub callers: Callers,
    pub flows: Queue,
    pub ring: Ring,
    pub progress: Progress,
    /// The agent's directory of pins.
    pub bpffs: PathBuf,
    /// How packets get to other nodes, and the MTU of pods made from now on.
    pub way: (tunnel::Mode, u32),
    /// Of the node's interfaces, and by which way each.
    pub short_cuts: BTreeMap<String, &'static str>,
    /// Names of services.
    pub answering: Answering,
    /// Ends the agent.
    pub stop: CancellationToken,
}

impl StatusService {
    /// The replica answers.
    pub fn connected(&self) -> bool {
        *self.progress.status().borrow() == xds_client::Status::Connected
    }

    /// Whose roots are trusted.
    fn trust(&self) -> Vec<AgentTrust> {
        let shown = |root: &Vec<u8>| hex::encode(&fingerprint(&CertificateDer::from(root.as_slice())));
        self.engine.resources(|resources| {
            let bundles = resources.bundles.iter();
            bundles
                .map(|(domain, bundle)| AgentTrust {
                    trust_domain: domain.to_string(),
                    roots_sha256: bundle.roots.iter().map(shown).collect(),
                    revoked: u32::try_from(bundle.revoked.len()).unwrap_or(u32::MAX),
                })
                .collect()
        })
    }

    /// How packets get to other nodes.
    fn connectivity(&self) -> Connectivity {
        let (mode, mtu) = self.way;
        let nodes = self.engine.resources(|resources| tunnel::connectivity(resources, &self.node, mode, mtu));
        let cut = |(interface, way): (&String, &&str)| ShortCut {
            interface: interface.clone(),
            way: (*way).to_owned(),
        };
        Connectivity { short_cuts: self.short_cuts.iter().map(cut).collect(), ..nodes }
    }

    /// News that were counted by the kernel and not told one by one, ever.
    pub fn suppressed(&self) -> u64 {
        self.engine.suppressed().iter().map(|(_, _, metric)| metric.packets).sum()
    }

    /// Pods without traffic, because their policy is not in the kernel.
    pub fn closed(&self) -> usize {
        let known: Vec<_> = self.registry.lock().iter().map(|endpoint| endpoint.workload.clone()).collect();
        known.iter().filter(|workload| self.engine.enforced(workload).is_none()).count()
    }

    /// How full the kernel's maps are: name, entries, the most that fit.
    pub fn fill(&self) -> Vec<(&'static str, usize, u32)> {
        self.engine.kernel(|kernel, _| fill(kernel))
    }

    /// The pods of this node.
    pub fn endpoints(&self) -> Vec<AgentEndpoint> {
        let known: Vec<_> = self.registry.lock().iter().cloned().collect();
        known
            .into_iter()
            .map(|endpoint| {
                let enforced = self.engine.enforced(&endpoint.workload);
                let state = match (enforced, endpoint.ready) {
                    (Some(_), true) => "ready",
                    (Some(_), false) => "starting",
                    (None, _) => "waiting-for-policy",
                };
                AgentEndpoint {
                    name: endpoint.workload.to_string(),
                    address: addresses(&endpoint),
                    identity: enforced.map_or(0, |entry| entry.identity),
                    policy_class: enforced.map_or(0, |entry| entry.class),
                    state: state.to_owned(),
                    certificate_not_after: self
                        .secrets
                        .not_after(&endpoint.workload)
                        .map(rfc3339)
                        .unwrap_or_default(),
                }
            })
            .collect()
    }
}

#[tonic::async_trait]
impl Agent for StatusService {
    async fn status(
        &self,
        request: Request<AgentStatusRequest>,
    ) -> Result<Response<AgentStatusResponse>, Status> {
        self.callers.operator(&request)?;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (classes, services, identities) = self.engine.kernel(|kernel, _| {
            (count(kernel.classes.len()), count(kernel.services.len()), count(kernel.identities.len()))
        });
        let away = self.progress.away();
        let fill = self.fill().into_iter().map(|(map, entries, limit)| MapFill {
            map: map.to_owned(),
            entries: entries as u64,
            limit: limit.into(),
        });
        Ok(Response::new(AgentStatusResponse {
            node: self.node.clone(),
            replica: self.upstream.replica().to_owned(),
            connected: self.connected(),
            revision: *self.progress.revision().borrow(),
            endpoints: self.endpoints(),
            policy_classes: classes,
            services,
            ipcache: identities,
            flows_lost: self.flows.lost_ever(),
            trust: self.trust(),
            flows_seen: self.ring.level().seen,
            flows_suppressed: self.suppressed(),
            behind: self.engine.behind().unwrap_or_default(),
            away_since_unix: away.as_ref().map_or(0, |(since, _)| *since),
            away_reason: away.map(|(_, reason)| reason).unwrap_or_default(),
            maps: fill.collect(),
            pods_closed: count(self.closed()),
            connectivity: Some(self.connectivity()),
            cluster_dns: self.answering.status(),
        }))
    }

    async fn verify_maps(
        &self,
        request: Request<VerifyMapsRequest>,
    ) -> Result<Response<VerifyMapsResponse>, Status> {
        self.callers.operator(&request)?;
        let (engine, bpffs) = (self.engine.clone(), self.bpffs.clone());
        // Nothing is written meanwhile: what is compared is one moment.
        let look = move || engine.verify(&bpffs);
        let verified = tokio::task::spawn_blocking(look).await;
        let verified = verified.map_err(|error| Status::internal(error.to_string()))?;
        let verified = verified.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(VerifyMapsResponse { maps: verified.into_iter().map(told).collect() }))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        self.callers.operator(&request)?;
        let closed = self.closed();
        let enforced = self.engine.kernel(|kernel, _| stays(kernel, closed));
        tracing::info!("asked to stop");
        self.stop.cancel();
        Ok(Response::new(StopResponse { enforced }))
    }
}

/// As it travels: the first differences are named.
pub(crate) fn told(verified: Verified) -> VerifiedMap {
    let first = verified.differences.iter().take(NAMED).map(|difference| MapDifference {
        key: difference.key.clone(),
        found: difference.found.clone(),
        wanted: difference.wanted.clone(),
    });
    VerifiedMap {
        map: verified.map.to_owned(),
        entries: verified.entries as u64,
        differences: verified.differences.len() as u64,
        first: first.collect(),
    }
}

fn addresses(endpoint: &crate::cni::Endpoint) -> String {
    endpoint.addresses().iter().map(|address| address.to_string()).collect::<Vec<_>>().join(", ")
}

pub(crate) fn rfc3339(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|unix| time::OffsetDateTime::from_unix_timestamp(unix).ok());
    let format = &time::format_description::well_known::Rfc3339;
    time.and_then(|time| time.format(format).ok()).unwrap_or_default()
}
