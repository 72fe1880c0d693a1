//! What every client is to have, from the newest state: compiled once per revision, translated once for all
//! who share it, kept per client while it does not change.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use clustermesh::export::{ExportFacts, describe_cluster};
use mesh_model::{
    compile::{Compiler, MeshModel},
    identity::TrustDomain,
    resource::{Kind, NamespacedName, ObjectKey, ProxyMode},
    view::gateway_addresses,
};
use mesh_store::State;
use tokio::sync::watch;
use tonic::Status;
use xds_proto::isthmus::federation::v1::ClusterDescription;

use crate::{
    authz::{self, Action, Caller},
    xds::{
        Client, PeerIdentity, ProxyKind, ResourceSet, Views,
        translate::sets::{self, Translation},
    },
};

/// One revision, compiled.
#[derive(Debug)]
struct Compiled {
    revision: u64,
    /// None until the cluster is initialised.
    model: Option<Arc<MeshModel>>,
    /// Mesh doors of the replicas, in the order of their numbers.
    doors: Vec<String>,
    /// Of the services that have a ServiceExport.
    exports: BTreeMap<NamespacedName, ExportFacts>,
    translation: Translation,
}

/// The views of all clients of this replica.
#[derive(Debug)]
pub struct ModelViews {
    own: TrustDomain,
    /// From the command line, beside those that are declared as workloads.
    gateways: Vec<String>,
    compiled: ArcSwap<Compiled>,
    /// The last set of each client, with the revision at which it was found to be right.
    sets: Mutex<BTreeMap<Client, (u64, Arc<ResourceSet>)>>,
    changed: watch::Sender<u64>,
    compiler: Mutex<Compiler>,
}

impl ModelViews {
    /// Views of a state.
    pub fn new(own: TrustDomain, gateways: Vec<String>, state: &State) -> Self {
        let mut compiler = Compiler::default();
        let compiled = compile(&mut compiler, state, None);
        let (changed, _) = watch::channel(compiled.revision);
        Self {
            own,
            gateways,
            compiled: ArcSwap::from_pointee(compiled),
            sets: Mutex::new(BTreeMap::new()),
            changed,
            compiler: Mutex::new(compiler),
        }
    }

    /// Takes over a newer state. Costs what compiling costs: not for a thread that serves.
    pub fn update(&self, state: Arc<State>) {
        let last = self.compiled.load_full();
        let (before, revision) = (last.revision, state.revision);
        if revision <= before {
            return;
        }
        let mut compiler = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compile(&mut compiler, &state, Some(&last));
        drop(compiler);
        drop(state);
        self.compiled.store(Arc::new(compiled));
        // Clients that did not ask since the revision before have gone; a slow one costs one translation more.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, (at, _)| *at >= before);
        self.changed.send_replace(revision);
    }

    /// The newest compiled mesh; None until the cluster is initialised.
    pub fn model(&self) -> Option<Arc<MeshModel>> {
        self.compiled.load().model.clone()
    }

    /// This cluster, as its peers may know it; None until it is initialised. Equal on every replica, so that a
    /// peer that moves between replicas sees no change.
    pub fn description(&self) -> Option<ClusterDescription> {
        let compiled = self.compiled.load();
        let model = compiled.model.as_ref()?;
        let declared = gateway_addresses(model).into_iter().map(|address| address.to_string());
        let mut gateways: Vec<String> = self.gateways.iter().cloned().chain(declared).collect();
        gateways.sort_unstable();
        gateways.dedup();
        Some(describe_cluster(&model.cluster, compiled.doors.clone(), gateways))
    }

    fn make(&self, compiled: &Compiled, client: &Client) -> ResourceSet {
        let empty = || ResourceSet::new(compiled.revision);
        let Some(model) = &compiled.model else { return empty() };
        let named = |text: &str| NamespacedName::parse(text);
        match client {
            Client::Agent { node } => compiled.translation.agent(model, node),
            Client::Proxy { workload, kind } => {
                named(workload).map_or_else(empty, |name| compiled.translation.sidecar(model, &name, *kind))
            }
            Client::Grpc { workload } => {
                named(workload).map_or_else(empty, |name| compiled.translation.grpc(model, &name))
            }
            Client::Gateway { workload } => {
                named(workload).map_or_else(empty, |name| sets::gateway(model, &name))
            }
            Client::Peer { cluster } => match self.description() {
                Some(description) => sets::peer(model, cluster, description, |name| {
                    compiled.exports.get(name).copied().unwrap_or_default()
                }),
                None => empty(),
            },
        }
    }
}

fn compile(compiler: &mut Compiler, state: &State, before: Option<&Compiled>) -> Compiled {
    let exports = state.objects.keys().filter(|key| key.kind == Kind::ServiceExport);
    Compiled {
        revision: state.revision,
        model: state.input().map(|input| compiler.compile(input).0),
        doors: state.replicas.values().map(|replica| replica.address.clone()).collect(),
        exports: exports.map(|key| (key.name.clone(), export_facts(state, &key.name))).collect(),
        translation: before
            .and_then(|b| Some(Translation::after(b.model.clone()?, &b.translation)))
            .unwrap_or_default(),
    }
}

fn export_facts(state: &State, name: &NamespacedName) -> ExportFacts {
    let meta = |kind| state.object_meta.get(&ObjectKey { kind, name: name.clone() });
    let revision = |kind| meta(kind).map_or(0, |stored| stored.revision);
    ExportFacts {
        exported_at_unix: meta(Kind::ServiceExport).map_or(0, |stored| stored.created_unix),
        origin_revision: revision(Kind::Service).max(revision(Kind::ServiceExport)),
    }
}

impl Views for ModelViews {
    fn resources(&self, client: &Client) -> Arc<ResourceSet> {
        let compiled = self.compiled.load_full();
        let revision = compiled.revision;
        let before = {
            let sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
            sets.get(client).cloned()
        };
        if let Some((at, set)) = &before
            && *at >= revision
        {
            return set.clone();
        }
        // Not under the lock: clients don't wait for each other's translation.
        let new = self.make(&compiled, client);
        let set = match &before {
            // A peer tells our replicas apart by the revision: it must not stay behind.
            Some((_, before)) if matches!(client, Client::Peer { .. }) => {
                let mut new = new;
                new.share_with(before);
                Arc::new(new)
            }
            Some((_, before)) => sets::keep_equal(new, before),
            None => Arc::new(new),
        };
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        match sets.get(client) {
            // Another stream of the same client was faster, or saw a newer revision.
            Some((at, newer)) if *at >= revision => newer.clone(),
            _ => {
                sets.insert(client.clone(), (revision, set.clone()));
                set
            }
        }
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn authorize(
        &self,
        peer: &PeerIdentity,
        node_id: &str,
        workload: Option<&str>,
    ) -> Result<Client, Status> {
        let model = self.model().ok_or_else(|| Status::unavailable("this replica has no state yet"))?;
        let is_peer = |domain: &TrustDomain| model.peers.values().any(|p| &p.trust_domain == domain);
        let caller = authz::caller(peer.spiffe_id.as_ref(), &self.own, is_peer);
        let revoked = |number| model.cluster.trust.revoked.contains(&number);
        let caller = caller.unless_revoked(peer.registration, |name| model.nodes.get(name).map(|node| node.registration), revoked);
        if let Caller::Peer(domain) = &caller {
            authz::check(&caller, Action::SubscribeAsPeer)?;
            let record = model.peers.values().find(|p| &p.trust_domain == domain);
            let record = record.ok_or_else(|| Status::permission_denied(format!("{domain} is no peer")))?;
            return Ok(Client::Peer { cluster: record.cluster.clone() });
        }
        authz::check(&caller, Action::SubscribeAsNode)?;
        let Caller::Node(node) = caller else {
            return Err(Status::permission_denied("only nodes and peers subscribe"));
        };
        match workload {
            None if model.nodes.contains_key(&node) => Ok(Client::Agent { node }),
            None => Err(Status::unavailable(format!("node {node} is not registered here, or not yet"))),
            Some(workload) => workload_client(&model, &node, node_id, workload),
        }
    }
}

/// The proxy of a workload, if the workload runs on the node that relays the stream.
fn workload_client(model: &MeshModel, node: &str, node_id: &str, workload: &str) -> Result<Client, Status> {
    let bad =
        || Status::invalid_argument(format!("x-isthmus-workload: {workload:?} is not <namespace>/<name>"));
    let name = NamespacedName::parse(workload).ok_or_else(bad)?;
    let here =
        model.workloads.get(&name).filter(|w| w.binding.as_ref().is_some_and(|binding| binding.node == node));
    let Some(found) = here else {
        return Err(Status::permission_denied(format!("workload {name} is not bound to node {node}")));
    };
    let grpc = node_id.starts_with("grpc~");
    match found.proxy {
        ProxyMode::Sidecar | ProxyMode::None if grpc => Ok(Client::Grpc { workload: name.to_string() }),
        ProxyMode::Sidecar => {
            let kind = if node_id.starts_with("envoy~") { ProxyKind::Envoy } else { ProxyKind::Proxy };
            Ok(Client::Proxy { workload: name.to_string(), kind })
        }
        ProxyMode::Gateway => Ok(Client::Gateway { workload: name.to_string() }),
        ProxyMode::None => Err(Status::failed_precondition(format!(
            "workload {name} is declared without a proxy: set spec.proxy to sidecar (gRPC's own client needs \
             none; its node id begins with grpc~)"
        ))),
    }
}
