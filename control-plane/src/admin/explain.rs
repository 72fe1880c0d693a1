//! What policy does to a connection: the reference evaluator is asked, which reads the objects themselves. What data planes
//! are sent is tested to decide the same.

use std::sync::Arc;

use mesh_model::{
    compile::{Action as Verdict, FlowProtocol},
    policy::{Decision, Flow, FlowPeer, World, verdict},
    resource::{Kind, NamespacedName, ObjectKey},
};
use mesh_store::State;
use tonic::{Request, Response, Status};
use xds_proto::isthmus::admin::v1::{
    ExplainFlowRequest, ExplainFlowResponse, ExplainedSide, explain_server::Explain,
};

use crate::{
    app::{App, read_status},
    authz::Action,
};

/// Characters of a name that an error repeats.
const SHOWN: usize = 64;

/// The service.
#[derive(Debug, Clone)]
pub struct ExplainService(pub Arc<App>);

#[tonic::async_trait]
impl Explain for ExplainService {
    async fn flow(
        &self,
        request: Request<ExplainFlowRequest>,
    ) -> Result<Response<ExplainFlowResponse>, Status> {
        self.0.admit(request.extensions(), Action::Read)?;
        let request = request.into_inner();
        let state = self.0.replica.linearizable().await.map_err(read_status)?;
        // It looks at every policy.
        let answer = tokio::task::spawn_blocking(move || explain(&state, &request)).await;
        answer.map_err(|_| Status::internal("the question could not be worked on"))?.map(Response::new)
    }
}

fn explain(state: &State, request: &ExplainFlowRequest) -> Result<ExplainFlowResponse, Status> {
    let Some(cluster) = state.cluster.as_deref() else {
        return Err(Status::failed_precondition("the cluster is not initialized"));
    };
    let world = World { objects: &state.objects, bindings: &state.bindings, nodes: &state.nodes, cluster };
    let protocol = protocol(&request.protocol)?;
    let flow = Flow {
        source: peer("source", &request.source, state)?,
        destination: peer("destination", &request.destination, state)?,
        protocol,
        port: port(protocol, request.port)?,
    };
    let said = verdict(world, &flow);
    let at = |peer: &FlowPeer, decision: Decision| ExplainedSide {
        verdict: word(decision.action).to_owned(),
        provenance: decision.provenance,
        outside: world.workload(peer).is_none(),
        audit: decision.audit,
        read: decision.redirect,
    };
    Ok(ExplainFlowResponse {
        revision: state.revision,
        verdict: word(said.action).to_owned(),
        egress: Some(at(&flow.source, said.egress)),
        ingress: Some(at(&flow.destination, said.ingress)),
    })
}

/// What stands in the place of the port, by protocol.
fn port(protocol: FlowProtocol, number: u32) -> Result<u16, Status> {
    let echo = match protocol {
        FlowProtocol::Icmp => 8,
        FlowProtocol::Icmpv6 => 128,
        FlowProtocol::Tcp | FlowProtocol::Udp | FlowProtocol::Sctp => {
            let bad = |_| Status::invalid_argument(format!("port: {number} is more than 65535"));
            return u16::try_from(number).map_err(bad);
        }
    };
    let bad = |_| Status::invalid_argument(format!("port: {number} is no type of ICMP, which is 0 to 255"));
    let kind = u8::try_from(number).map_err(bad)?;
    Ok(u16::from(if kind == 0 { echo } else { kind }) << 8)
}

fn word(action: Verdict) -> &'static str {
    match action {
        Verdict::Allow => "FORWARDED",
        Verdict::Deny => "DROPPED",
    }
}

fn protocol(text: &str) -> Result<FlowProtocol, Status> {
    FlowProtocol::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let known = FlowProtocol::ALL.map(FlowProtocol::as_str).join(", ");
        Status::invalid_argument(format!("protocol: {:?} is none of {known}", shown(text)))
    })
}

fn peer(field: &str, text: &str, state: &State) -> Result<FlowPeer, Status> {
    if let Ok(address) = text.parse() {
        return Ok(FlowPeer::Address(address));
    }
    let Some(name) = NamespacedName::parse(text) else {
        return Err(Status::invalid_argument(format!(
            "{field}: {:?} is neither <namespace>/<workload> nor an address",
            shown(text)
        )));
    };
    let key = ObjectKey { kind: Kind::Workload, name };
    match state.objects.contains_key(&key) {
        true => Ok(FlowPeer::Workload(key.name)),
        false => Err(Status::not_found(format!("{field}: there is no {key}"))),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use mesh_model::resource::Object;
    use serde_json::json;

    use super::*;

    fn state() -> State {
        let mut state = State::default();
        state.cluster = Some(Arc::new(mesh_model::records::ClusterInfo {
            name: "west".to_owned(),
            trust_domain: mesh_model::identity::TrustDomain::parse("west.example").unwrap(),
            mesh_domain: "mesh.local".to_owned(),
            pod_cidr: "10.1.0.0/16".parse().unwrap(),
            pod_cidr6: None,
            service_cidr6: None,
            service_cidr: "10.101.0.0/16".parse().unwrap(),
            roots: Vec::new(),
            trust: Default::default(),
        }));
        let workload = |name: &str| {
            json!({"apiVersion": "isthmus.io/v1", "kind": "Workload",
                "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}}})
        };
        let policy = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "guard", "namespace": "shop"},
            "spec": {"endpointSelector": {"matchLabels": {"app": "pay"}},
                "ingress": [{"fromEndpoints": [{}]}],
                "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"app": "web"}}]}]}});
        for value in [workload("web"), workload("pay"), policy] {
            let object = Object::parse(&value).unwrap();
            state.objects.insert(object.key(), Arc::new(object));
        }
        state
    }

    fn ask(source: &str, destination: &str, protocol: &str, port: u32) -> ExplainFlowRequest {
        ExplainFlowRequest {
            source: source.to_owned(),
            destination: destination.to_owned(),
            protocol: protocol.to_owned(),
            port,
        }
    }

    #[test]
    fn the_rule_that_decides_is_named_on_its_side() {
        let said = explain(&state(), &ask("shop/web", "shop/pay", "tcp", 80)).unwrap();
        assert_eq!(said.verdict, "DROPPED");
        let (egress, ingress) = (said.egress.unwrap(), said.ingress.unwrap());
        assert_eq!((egress.verdict.as_str(), egress.provenance.len()), ("FORWARDED", 0));
        assert_eq!(ingress.provenance, ["ciliumnetworkpolicy/shop/guard#ingressDeny[0]"]);
        let said = explain(&state(), &ask("203.0.113.9", "shop/pay", "ICMP", 0)).unwrap();
        assert!(said.egress.unwrap().outside);
        assert_eq!(said.ingress.unwrap().provenance, ["ciliumnetworkpolicy/shop/guard#default-deny-ingress"]);
    }

    #[test]
    fn a_type_of_icmp_and_what_is_only_told_of_are_explained() {
        let mut state = state();
        let mut policy = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "guard", "namespace": "shop"},
            "spec": {"endpointSelector": {"matchLabels": {"app": "pay"}},
                "ingress": [{"icmps": [{"fields": [{"type": "EchoRequest"}]}]}]}});
        let mut put = |value: &serde_json::Value| {
            let object = Object::parse(value).unwrap();
            state.objects.insert(object.key(), Arc::new(object));
            [0, 13].map(|kind| explain(&state, &ask("shop/web", "shop/pay", "ICMP", kind)).unwrap())
        };
        let [echo, timestamp] = put(&policy);
        assert_eq!((echo.verdict.as_str(), timestamp.verdict.as_str()), ("FORWARDED", "DROPPED"));
        policy["metadata"]["annotations"] = json!({"isthmus.io/audit": "true"});
        let [_, timestamp] = put(&policy);
        assert_eq!(timestamp.verdict, "FORWARDED");
        assert_eq!(timestamp.ingress.unwrap().audit, ["ciliumnetworkpolicy/shop/guard#default-deny-ingress"]);
    }

    #[test]
    fn a_question_that_makes_no_sense_is_refused_by_its_field() {
        let refused =
            |request: ExplainFlowRequest| explain(&state(), &request).unwrap_err().message().to_owned();
        assert!(refused(ask("web", "shop/pay", "tcp", 80)).starts_with("source: \"web\" is neither"));
        assert!(refused(ask("shop/web", "shop/none", "tcp", 80)).ends_with("there is no workload/shop/none"));
        assert!(refused(ask("shop/web", "shop/pay", "tls", 80)).contains("none of TCP, UDP"));
        assert!(refused(ask("shop/web", "shop/pay", "tcp", 70_000)).starts_with("port: 70000"));
        assert!(
            refused(ask("shop/web", "shop/pay", "icmp", 256)).starts_with("port: 256 is no type of ICMP")
        );
    }
}
