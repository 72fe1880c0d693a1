//! The flows of the whole cluster through Hubble's API: what every replica was told by the agents, named with what only the
//! control plane knows.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Instant,
};

use futures::StreamExt;
use mesh_hubble::{
    About, Labels, Live, LiveStream, Naming, Observer, Opened, Order, Source, names, translate,
};
use mesh_model::{
    records::NodeRecord,
    resource::{Kind, NamespacedName, Object, ObjectKey},
};
use mesh_store::State;
use tonic::{Extensions, Status};
use xds_proto::{
    hubble::{
        flow::LostEventSource,
        observer::{Node, Tls, observer_server::ObserverServer},
        relay::{NodeState, NodeStatusEvent},
    },
    isthmus::{
        admin::v1::ObserveRequest,
        bootstrap::v1::{Flow, FlowBatch, FlowSource},
    },
};

use crate::{
    admin::{observe::observe, outlet::Answers, while_allowed},
    app::App,
    authz::Action,
    telemetry::flows::KEPT,
};

/// Bytes of one request: filters and times.
const MAX_REQUEST: usize = 256 * 1_024;
/// A flow is told by the agent within this long: those of the past that may come again to whoever follows.
const RECENT_NANOS: u64 = 60_000_000_000;

/// The service, ready to be added to a tonic server.
pub fn server(app: Arc<App>) -> ObserverServer<Observer<ClusterFlows>> {
    let flows = ClusterFlows { app, started: Instant::now() };
    ObserverServer::new(Observer::new(flows)).max_decoding_message_size(MAX_REQUEST)
}

/// The flows of all nodes.
#[derive(Debug)]
pub struct ClusterFlows {
    app: Arc<App>,
    started: Instant,
}

/// What the state says of a flow, as of one moment.
#[derive(Clone)]
struct Known {
    cluster: String,
    state: Arc<State>,
}

impl Naming for Known {
    fn cluster(&self) -> &str {
        &self.cluster
    }

    fn labels(&self, workload: &NamespacedName, _: u32) -> Labels {
        let key = ObjectKey { kind: Kind::Workload, name: workload.clone() };
        match self.state.objects.get(&key).map(AsRef::as_ref) {
            Some(Object::Workload(workload)) => {
                workload.meta.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
            }
            _ => Labels::new(),
        }
    }
}

impl ClusterFlows {
    fn known(&self) -> Known {
        Known { cluster: self.app.ca.replica().cluster.clone(), state: self.app.replica.applied() }
    }

    /// What all replicas tell, past or coming.
    fn batches(
        &self,
        extensions: &Extensions,
        request: ObserveRequest,
    ) -> Result<Answers<FlowBatch>, Status> {
        let caller = self.app.admit(extensions, Action::Observe)?;
        let slots = self.app.gate.watch(&caller)?;
        let stream = observe(self.app.clone(), request, slots);
        Ok(while_allowed(self.app.clone(), extensions.clone(), Action::Observe, stream))
    }
}

#[tonic::async_trait]
impl Source for ClusterFlows {
    async fn open(&self, extensions: Extensions, order: Order, follow: bool) -> Result<Opened, Status> {
        // What comes is listened to before the past is asked for, so that nothing falls between.
        let coming = match follow {
            true => Some(self.batches(&extensions, ObserveRequest { follow: true, ..Default::default() })?),
            false => None,
        };
        let last = u32::try_from(KEPT).unwrap_or(u32::MAX);
        let mut batches = self.batches(&extensions, ObserveRequest { last, ..Default::default() })?;
        let (mut flows, mut remarks) = (Vec::new(), Vec::new());
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            flows.extend(batch.flows);
            remarks.extend(batch.sources.iter().map(remark));
        }
        drop(batches);
        flows.sort_by_key(|flow| flow.time_unix_nanos);
        let known = self.known();
        let newest = flows.last().map_or(0, |flow| flow.time_unix_nanos);
        let recent: HashSet<String> = flows
            .iter()
            .rev()
            .take_while(|flow| coming.is_some() && flow.time_unix_nanos + RECENT_NANOS > newest)
            .map(|flow| translate(flow, &known).uuid)
            .collect();
        if order == Order::Newest {
            flows.reverse();
        }
        let past = flows.into_iter().map(move |flow| Live::Flow(Box::new(translate(&flow, &known))));
        let live = coming.map(|batches| live(batches, recent, self.known(), self.app.clone()));
        // Whoever asks for the newest has them turned round: in the end the remarks stand first.
        let past: Box<dyn Iterator<Item = Live> + Send> = match order {
            Order::Oldest => Box::new(remarks.into_iter().chain(past)),
            Order::Newest => Box::new(past.chain(remarks)),
        };
        Ok(Opened { past, live })
    }

    async fn about(&self) -> Result<About, Status> {
        let known = self.known();
        let agents: BTreeSet<String> = self.app.subscribers.agents().into_iter().collect();
        let level = self.app.flows.level();
        let cluster = known.state.cluster.as_deref();
        let server_name = |node: &NodeRecord| {
            cluster.and_then(|cluster| names::of_node(&node.name, &cluster.name, &cluster.mesh_domain))
        };
        let nodes = known.state.nodes.values().map(|node| Node {
            name: format!("{}/{}", known.cluster, node.name),
            address: node.address.to_string(),
            // Others may be connected to another replica.
            state: if agents.contains(&node.name) {
                NodeState::NodeConnected
            } else {
                NodeState::UnknownNodeState
            }
            .into(),
            tls: Some(Tls { enabled: true, server_name: server_name(node).unwrap_or_default() }),
            ..Node::default()
        });
        let nodes: Vec<Node> = nodes.collect();
        Ok(About {
            name: format!("{}/replica-{}", known.cluster, self.app.ca.replica().id),
            cluster: known.cluster,
            kept: level.kept,
            capacity: KEPT as u64,
            seen: level.seen,
            uptime: self.started.elapsed(),
            rate: level.seen as f64 / self.started.elapsed().as_secs_f64().max(1.0),
            nodes,
            namespaces: self.app.flows.namespaces(),
            unavailable: Vec::new(),
        })
    }

    fn admit(&self, extensions: &Extensions) -> Result<(), Status> {
        self.app.admit(extensions, Action::Observe).map(drop)
    }
}

/// Flows as they come, without those that were told already.
fn live(batches: Answers<FlowBatch>, recent: HashSet<String>, known: Known, app: Arc<App>) -> LiveStream {
    let items = batches.scan((recent, known), move |(recent, known), batch| {
        known.state = app.replica.applied();
        let items: Vec<Result<Live, Status>> = match batch {
            Ok(batch) => told(batch, recent, known).map(Ok).collect(),
            Err(status) => vec![Err(status)],
        };
        std::future::ready(Some(futures::stream::iter(items)))
    });
    Box::pin(items.flatten())
}

fn told(batch: FlowBatch, recent: &mut HashSet<String>, known: &Known) -> impl Iterator<Item = Live> {
    let mut items: Vec<Live> = batch.sources.iter().map(remark).collect();
    if batch.lost > 0 {
        items.push(Live::Lost(LostEventSource::HubbleRingBuffer, batch.lost));
    }
    let flows = batch.flows.iter().map(|flow: &Flow| translate(flow, known));
    items.extend(flows.filter(|flow| !recent.remove(&flow.uuid)).map(|flow| Live::Flow(Box::new(flow))));
    items.into_iter()
}

/// A replica whose flows are missing, or are there again.
fn remark(source: &FlowSource) -> Live {
    let state = if source.silent.is_empty() { NodeState::NodeConnected } else { NodeState::NodeUnavailable };
    Live::Nodes(NodeStatusEvent {
        state_change: state.into(),
        node_names: vec![format!("replica-{} at {}", source.replica, source.address)],
        message: source.silent.clone(),
    })
}
