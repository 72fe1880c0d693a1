//! What every client is to have, from the newest state: compiled once per revision, translated once for all
//! who share it, kept per client while it does not change.

#[cfg(test)]
mod interleavings;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError},
};

use arc_swap::ArcSwap;
use clustermesh::export::{ExportFacts, describe_cluster};
use imbl::{OrdMap, ordmap::DiffItem};
use mesh_model::{
    compile::{Compiler, MeshModel},
    identity::TrustDomain,
    resource::{Kind, NamespacedName, ObjectKey, ProxyMode},
    view::gateway_addresses,
};
use mesh_store::{State, StoredMeta};
use tokio::sync::watch;
use tonic::Status;
use xds_proto::isthmus::federation::v1::ClusterDescription;

use crate::{
    authz::{self, Action, Caller},
    shown,
    xds::{
        Client, PeerIdentity, ProxyKind, ResourceSet, Subscribers, Views,
        translate::{
            peer::Exports,
            sets::{Made, Translation},
        },
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
    /// The last registration of a node, or of an administrator: both are of one row.
    registration: u64,
    /// When each object changed, for what peers are told of exported services.
    object_meta: OrdMap<ObjectKey, Arc<StoredMeta>>,
    exports: Exports,
    translation: Translation,
}

/// What one client has, for all of its streams.
type Entry = Arc<Mutex<Option<Made>>>;

/// A revision that is served from now on, and of which nobody was told yet.
struct Step {
    compiled: Arc<Compiled>,
    /// The revision that was served until then.
    before: u64,
    /// It may be that some lose their rights.
    everybody: bool,
}

/// Sets of clients that have gone are looked for once in so many revisions.
const REVISIONS_BETWEEN_CLEANINGS: u64 = 64;

/// The views of all clients of this replica.
#[derive(Debug)]
pub struct ModelViews {
    own: TrustDomain,
    /// From the command line, beside those that are declared as workloads.
    gateways: Vec<String>,
    compiled: ArcSwap<Compiled>,
    /// Each with a lock of its own: clients don't wait for each other's translation.
    clients: Mutex<HashMap<Client, Entry>>,
    changed: watch::Sender<u64>,
    /// None: it has to begin anew.
    compiler: Mutex<Option<Compiler>>,
    /// Who is told whom a revision concerns.
    subscribers: OnceLock<Arc<Subscribers>>,
}

impl ModelViews {
    /// Views of a state.
    pub fn new(own: TrustDomain, gateways: Vec<String>, state: &State) -> Self {
        let mut compiler = Compiler::default();
        let (compiled, _) = compile(&mut compiler, state, None);
        let (changed, _) = watch::channel(compiled.revision);
        Self {
            own,
            gateways,
            compiled: ArcSwap::from_pointee(compiled),
            clients: Mutex::default(),
            changed,
            compiler: Mutex::new(Some(compiler)),
            subscribers: OnceLock::new(),
        }
    }

    /// From now on streams are told of what concerns them, and sleep through the rest. To be called before there are any.
    pub fn tell(&self, subscribers: Arc<Subscribers>) {
        subscribers.reached(self.compiled.load().revision);
        // A second registry would be a mistake in the start of the replica; the first one stays.
        let _ = self.subscribers.set(subscribers);
    }

    /// Takes over a newer state, whatever number of revisions newer: under a burst of writes only the newest is
    /// compiled. Compiles and translates what changed, which is not for a thread that serves.
    ///
    /// A panic in the compiler is a bug, after which the views are as they were, and the next state is compiled from the
    /// beginning.
    pub fn update(&self, state: Arc<State>) {
        // Held to the end, so that revisions are told of in their order.
        let mut compiler = self.compiler();
        let Some(step) = self.take_over(&mut compiler, &state) else { return };
        drop(state);
        if let Some(subscribers) = self.subscribers.get() {
            self.tell_of(&step, subscribers, |client, entry| step.compiled.stands(client, entry));
        }
        self.changed.send_replace(step.compiled.revision);
        drop(compiler);
        let cleaned = |revision| revision / REVISIONS_BETWEEN_CLEANINGS;
        if cleaned(step.before) != cleaned(step.compiled.revision) {
            self.forget_the_gone();
        }
    }

    fn compiler(&self) -> MutexGuard<'_, Option<Compiler>> {
        self.compiler.lock().unwrap_or_else(|poisoned| {
            self.compiler.clear_poison();
            let mut compiler = poisoned.into_inner();
            // It may have stopped anywhere.
            *compiler = None;
            compiler
        })
    }

    /// From now on a newer state is what is served. None if it is not newer.
    fn take_over(&self, compiler: &mut Option<Compiler>, state: &State) -> Option<Step> {
        let last = self.compiled.load_full();
        if state.revision <= last.revision {
            return None;
        }
        let anew = compiler.is_none();
        let (compiled, rights) =
            compile(compiler.get_or_insert_default(), state, Some(&*last).filter(|_| !anew));
        let compiled = Arc::new(compiled);
        self.compiled.store(compiled.clone());
        Some(Step { compiled, before: last.revision, everybody: rights || anew })
    }

    /// Wakes the streams of clients that a revision concerns: all but those of which `stands` says that what they have is
    /// right. A panic there is a bug, and the client looks for itself: the others are to be told all the same.
    ///
    /// Whoever is not listed here yet looks at what there is after it is, so at this revision.
    fn tell_of(&self, step: &Step, subscribers: &Subscribers, stands: impl Fn(&Client, &Entry) -> bool) {
        let clients: Vec<(Client, Entry)> = {
            let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.iter().map(|(client, entry)| (client.clone(), entry.clone())).collect()
        };
        let revision = step.compiled.revision;
        for (client, entry) in clients {
            let judged = catch_unwind(AssertUnwindSafe(|| !step.everybody && stands(&client, &entry)));
            if judged.is_err() {
                tracing::error!(%client, revision, "whether a revision concerns this client could not be told");
            }
            if !judged.unwrap_or(false) {
                subscribers.concern(&client, step.before, revision);
            }
        }
        subscribers.reached(revision);
    }

    /// The newest compiled mesh; None until the cluster is initialised.
    pub fn model(&self) -> Option<Arc<MeshModel>> {
        self.compiled.load().model.clone()
    }

    /// This cluster, as its peers may know it; None until it is initialised. Equal on every replica, so that a
    /// peer that moves between replicas sees no change.
    pub fn description(&self) -> Option<ClusterDescription> {
        let compiled = self.compiled.load();
        Some(self.describe(&compiled, compiled.model.as_ref()?))
    }

    fn describe(&self, compiled: &Compiled, model: &MeshModel) -> ClusterDescription {
        let declared = gateway_addresses(model).into_iter().map(|address| address.to_string());
        let mut gateways: Vec<String> = self.gateways.iter().cloned().chain(declared).collect();
        gateways.sort_unstable();
        gateways.dedup();
        describe_cluster(&model.cluster, compiled.doors.clone(), gateways)
    }

    fn make(&self, compiled: &Compiled, client: &Client, before: Option<&Made>) -> Made {
        match (&compiled.model, client) {
            (None, _) => Made::alone(ResourceSet::new(compiled.revision)),
            (Some(model), Client::Peer { cluster }) => {
                let description = self.describe(compiled, model);
                let mut set = compiled.exports.view(model, cluster, description);
                // A peer tells our replicas apart by the revision: it must not stay behind, so the set is a new one.
                if let Some(before) = before {
                    set.share_with(&before.set);
                }
                Made::alone(set)
            }
            (Some(model), _) => compiled.translation.view(model, client, before),
        }
    }

    /// What a client has at a revision, or at a newer one.
    fn look(&self, client: &Client, entry: &mut Option<Made>, compiled: &Compiled) -> Arc<ResourceSet> {
        match &*entry {
            // Another stream of the same client was faster, or saw a newer revision.
            Some(made) if made.at >= compiled.revision => made.set.clone(),
            before => {
                let made = self.make(compiled, client, before.as_ref());
                let set = made.set.clone();
                *entry = Some(made);
                set
            }
        }
    }

    fn entry(&self, client: &Client) -> Entry {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        match clients.get(client) {
            Some(entry) => entry.clone(),
            None => clients.entry(client.clone()).or_default().clone(),
        }
    }

    /// A client without streams, whose set nobody holds, has gone. An entry that somebody has a handle to is just
    /// being looked up: handles are made under the lock that is held here.
    fn forget_the_gone(&self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = self.subscribers.get();
        clients.retain(|client, entry| {
            Arc::strong_count(entry) > 1
                || streams.is_some_and(|streams| streams.has(client))
                || entry
                    .try_lock()
                    .map_or(true, |made| made.as_ref().is_some_and(|made| Arc::strong_count(&made.set) > 1))
        });
    }
}

impl Compiled {
    /// Whether what a client has is right at this revision too. It is not waited for a stream that is just looking: that
    /// one may have begun before this revision, and looks again.
    fn stands(&self, client: &Client, entry: &Entry) -> bool {
        let mut made = match entry.try_lock() {
            Ok(made) => made,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        match (&self.model, &mut *made) {
            (Some(model), Some(made)) => {
                // Made by one of the client's streams at this revision already: the others know nothing of it.
                made.at < self.revision && self.translation.stands(model, client, made)
            }
            _ => false,
        }
    }
}

/// Also whether the change is one that rights depend on, beyond what the client itself is made of.
fn compile(compiler: &mut Compiler, state: &State, before: Option<&Compiled>) -> (Compiled, bool) {
    let compiled = state.input().map(|input| compiler.compile(input));
    let mut exports = before.map(|before| before.exports.clone()).unwrap_or_default();
    let mut translation = Translation::default();
    let rights = compiled
        .as_ref()
        .is_none_or(|(_, changes)| changes.cluster || !changes.peers.is_empty() || !changes.nodes.is_empty());
    if let Some((model, changes)) = &compiled {
        let old_meta = before.map(|before| before.object_meta.clone()).unwrap_or_default();
        let moved = old_meta.diff(&state.object_meta).map(|item| match item {
            DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key,
        });
        let moved = moved.filter(|key| matches!(key.kind, Kind::Service | Kind::ServiceExport));
        exports.update(model, changes, moved.map(|key| key.name.clone()), |name| export_facts(state, name));
        if let Some((before, old)) = before.and_then(|before| Some((before, before.model.as_ref()?))) {
            translation = before.translation.after(old, model, changes);
        }
    }
    let compiled = Compiled {
        revision: state.revision,
        model: compiled.map(|(model, _)| model),
        doors: state.replicas.values().map(|replica| replica.address.clone()).collect(),
        registration: state.cursors.registration,
        object_meta: state.object_meta.clone(),
        exports,
        translation,
    };
    (compiled, rights)
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
        let entry = self.entry(client);
        let mut entry = entry.lock().unwrap_or_else(PoisonError::into_inner);
        // After the client is listed: a revision that comes after this one finds it there.
        let compiled = self.compiled.load_full();
        self.look(client, &mut entry, &compiled)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn at_hand(&self, client: &Client) -> bool {
        let compiled = self.compiled.load();
        compiled.model.as_ref().is_none_or(|model| compiled.translation.has_shared(model, client))
    }

    fn tells(&self) -> bool {
        self.subscribers.get().is_some()
    }

    fn authorize(
        &self,
        peer: &PeerIdentity,
        node_id: &str,
        workload: Option<&str>,
    ) -> Result<Client, Status> {
        let compiled = self.compiled.load();
        let no_state = || Status::unavailable("this replica has no state yet");
        let model = compiled.model.as_ref().ok_or_else(no_state)?;
        let is_peer = |domain: &TrustDomain| model.peers.values().any(|p| &p.trust_domain == domain);
        let caller = authz::caller(peer.spiffe_id.as_ref(), &self.own, is_peer);
        let caller = caller.unless_revoked(peer.registration, compiled.registration, |name| {
            model.nodes.get(name).map(|node| node.registration)
        });
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
            Some(workload) if let Some(proxy) = workload.strip_prefix(NODE_PROXY) => {
                node_proxy(model, node, proxy)
            }
            Some(workload) => workload_client(model, &node, node_id, workload),
        }
    }
}

/// How an agent names a proxy of its node, for all pods there, instead of a workload: no namespace may be called so.
const NODE_PROXY: &str = "~/";

/// Whoever speaks for the node says which of its processes its proxy is; what one is given is no secret of any workload.
fn node_proxy(model: &MeshModel, node: String, proxy: &str) -> Result<Client, Status> {
    if !model.nodes.contains_key(&node) {
        return Err(Status::unavailable(format!("node {node} is not registered here, or not yet")));
    }
    if !is_proxy_name(proxy) {
        let proxy = shown::word(proxy);
        return Err(Status::invalid_argument(format!(
            "{proxy:?} is no name of a node's proxy: no DNS label"
        )));
    }
    Ok(Client::NodeProxy { node, proxy: proxy.to_owned() })
}

fn is_proxy_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The proxy of a workload, if the workload runs on the node that relays the stream.
fn workload_client(model: &MeshModel, node: &str, node_id: &str, workload: &str) -> Result<Client, Status> {
    let bad = || {
        let workload = shown::word(workload);
        Status::invalid_argument(format!("x-isthmus-workload: {workload:?} is not <namespace>/<name>"))
    };
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
