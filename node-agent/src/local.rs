//! What the agent says of itself on its socket.

use mesh_tls::{CertificateDer, fingerprint};
use tonic::{Request, Response, Status};
use xds_proto::isthmus::local::v1::{
    AgentEndpoint, AgentStatusRequest, AgentStatusResponse, AgentTrust, agent_server::Agent,
};

use crate::{
    bootstrap::{Upstream, hex},
    cni::SharedRegistry,
    engine::Engine,
    flows::{Queue, Ring},
    identity::{Callers, Secrets},
    subscribe::Progress,
};

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

    /// News that were counted by the kernel and not told one by one, ever.
    pub fn suppressed(&self) -> u64 {
        self.engine.suppressed().iter().map(|(_, _, metric)| metric.packets).sum()
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
        }))
    }
}

fn addresses(endpoint: &crate::cni::Endpoint) -> String {
    endpoint.addresses().iter().map(|address| address.to_string()).collect::<Vec<_>>().join(", ")
}

fn rfc3339(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|unix| time::OffsetDateTime::from_unix_timestamp(unix).ok());
    let format = &time::format_description::well_known::Rfc3339;
    time.and_then(|time| time.format(format).ok()).unwrap_or_default()
}
