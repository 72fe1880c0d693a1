//! Objects as people read them: what they wrote, what the store knows of it, and the status.

use std::{collections::BTreeSet, sync::Arc};

use mesh_model::{
    compile::{MeshModel, MeshService, MeshWorkload},
    policy::{Namespaces, NormalPolicy},
    records::{NodePort, NodeRecord},
    resource::{HttpRoute, NamespacedName, Object, ServiceExport, Sidecar, Workload},
};
use mesh_store::{State, StoredMeta};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// One object as JSON, with `resourceVersion`, `uid`, `creationTimestamp` and, where there is one, `status`.
pub fn object(object: &Object, stored: &StoredMeta, status: Option<Value>) -> Value {
    let mut json = object.to_json();
    if let Value::Object(root) = &mut json {
        if let Some(Value::Object(metadata)) = root.get_mut("metadata") {
            metadata.insert("uid".to_owned(), json!(stored.uid));
            metadata.insert("resourceVersion".to_owned(), json!(stored.revision.to_string()));
            metadata.insert("creationTimestamp".to_owned(), json!(timestamp(stored.created_unix)));
        }
        if let Some(status) = status {
            // The addresses of load balancers are the user's own words.
            let said = root.remove("status");
            let mut status = status;
            if let (Some(Value::Object(said)), Value::Object(status)) = (said, &mut status) {
                status.extend(said);
            }
            root.insert("status".to_owned(), status);
        }
    }
    json
}

/// What has become of an object, at the revision of `model`.
pub fn status(object: &Object, state: &State, model: &MeshModel) -> Option<Value> {
    match object {
        Object::Workload(o) => workload(o, model),
        Object::Service(o) => service(&o.meta.name, model),
        Object::NetworkPolicy(_)
        | Object::CiliumNetworkPolicy(_)
        | Object::CiliumClusterwideNetworkPolicy(_)
        | Object::ClusterNetworkPolicy(_) => Some(policy(object, state)),
        Object::HttpRoute(o) => Some(http_route(o, model)),
        Object::ServiceExport(o) => Some(service_export(o, model)),
        Object::Sidecar(o) => Some(sidecar(o, model)),
        Object::EndpointSlice(_) | Object::Namespace(_) => None,
    }
}

fn workload(o: &Workload, model: &MeshModel) -> Option<Value> {
    let compiled = model.workloads.get(&o.meta.name)?;
    let mut status = Map::new();
    status.insert("identity".to_owned(), json!(compiled.identity));
    status.insert("spiffeId".to_owned(), json!(compiled.spiffe_id.to_string()));
    status.insert("policyClass".to_owned(), json!(compiled.policy_class));
    status.insert("ready".to_owned(), json!(compiled.binding.as_ref().is_some_and(|b| b.ready)));
    if let Some(sidecar) = &compiled.egress_scope {
        status.insert("sidecar".to_owned(), json!(sidecar.to_string()));
    }
    if let Some(binding) = &compiled.binding {
        let addresses: Vec<String> = binding.addresses.iter().map(ToString::to_string).collect();
        status.insert("node".to_owned(), json!(binding.node));
        status.insert("addresses".to_owned(), json!(addresses));
    }
    Some(Value::Object(status))
}

/// A service that only peers have, in the form of the others, so that people see what they can call.
///
/// It is no object: it has no uid, no revision, and applying it would make a local service of that name.
pub fn imported(name: &NamespacedName, compiled: &MeshService, model: &MeshModel) -> Value {
    let ports: Vec<Value> = compiled
        .ports
        .iter()
        .map(|p| json!({ "name": p.name, "port": p.port, "protocol": p.protocol, "appProtocol": p.app_protocol }))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name.name,
            "namespace": name.namespace,
            "annotations": { "isthmus.io/imported": "true" },
        },
        "spec": { "ports": ports },
        "status": service(name, model),
    })
}

fn service(name: &NamespacedName, model: &MeshModel) -> Option<Value> {
    let compiled = model.services.get(name)?;
    let endpoints: Vec<Value> = compiled
        .ports
        .iter()
        .flat_map(|port| port.endpoints.iter().map(move |e| (port, e)))
        .map(|(port, e)| {
            json!({
                "port": port.port,
                "address": e.address.to_string(),
                "cluster": e.cluster,
                "priority": e.priority,
                "ready": e.ready,
                "mtls": e.mtls,
            })
        })
        .collect();
    let imported: BTreeSet<&String> = model
        .peers
        .values()
        .filter(|peer| peer.imports.contains_key(name))
        .map(|peer| &peer.cluster)
        .collect();
    let mut status = json!({
        "virtualIP": compiled.virtual_ip.map(|ip| ip.to_string()),
        "exported": compiled.exported,
        "importedFrom": imported,
        "endpoints": endpoints,
    });
    let delivery = &compiled.delivery;
    if let Some(ip) = compiled.second_ip {
        status["virtualIPs"] = compiled.virtual_ip.iter().chain([&ip]).map(ToString::to_string).collect();
    }
    if !delivery.node_ports.is_empty() {
        let port = |held: &NodePort| json!({ "port": held.port, "protocol": held.protocol, "nodePort": held.node_port });
        status["nodePorts"] = delivery.node_ports.iter().map(port).collect();
    }
    if let Some(port) = delivery.health_check_port {
        status["healthCheckNodePort"] = json!(port);
    }
    if !compiled.visibility.is_everywhere() {
        status["visibleTo"] = compiled.visibility.only().collect();
    }
    Some(status)
}

/// How many workloads a policy of any language selects.
fn policy(object: &Object, state: &State) -> Value {
    let policies = NormalPolicy::all_of(object, Namespaces::of(&state.objects));
    let selects =
        |w: &Workload| policies.iter().any(|p| p.subject.matches(&w.meta.name.namespace, &w.meta.labels));
    let workloads = state.objects.values().filter_map(|object| match object.as_ref() {
        Object::Workload(workload) => Some(workload),
        _ => None,
    });
    let mut status = json!({ "selectedWorkloads": workloads.filter(|w| selects(w)).count() });
    if policies.iter().any(|policy| policy.subject.nodes.is_some()) {
        let selects = |node: &NodeRecord| policies.iter().any(|p| p.subject.selects_node(&node.labels()));
        status["selectedNodes"] = json!(state.nodes.values().filter(|node| selects(node)).count());
    }
    status
}

/// Gateway API: per parent, whether the route was taken and whether what it refers to exists.
fn http_route(o: &HttpRoute, model: &MeshModel) -> Value {
    let missing: BTreeSet<String> = o
        .rules
        .iter()
        .flat_map(|rule| &rule.backends)
        .filter(|backend| {
            !model
                .services
                .get(&backend.service)
                .is_some_and(|service| service.ports.iter().any(|p| p.port == backend.port))
        })
        .map(|backend| format!("service/{} port {}", backend.service, backend.port))
        .collect();
    let parents: Vec<Value> = o
        .parents
        .iter()
        .map(|parent| {
            let known = model.services.get(&parent.service).is_some_and(|service| {
                parent.port.is_none_or(|port| service.ports.iter().any(|p| p.port == port))
            });
            let accepted = if known {
                condition("Accepted", true, "Accepted", String::new())
            } else {
                condition(
                    "Accepted",
                    false,
                    "NoMatchingParent",
                    format!("there is no service/{}", parent.service),
                )
            };
            let resolved = if missing.is_empty() {
                condition("ResolvedRefs", true, "ResolvedRefs", String::new())
            } else {
                let names: Vec<&str> = missing.iter().map(String::as_str).collect();
                condition(
                    "ResolvedRefs",
                    false,
                    "BackendNotFound",
                    format!("not found: {}", names.join(", ")),
                )
            };
            json!({
                "parentRef": {
                    "kind": "Service",
                    "namespace": parent.service.namespace,
                    "name": parent.service.name,
                    "port": parent.port,
                },
                "controllerName": "isthmus.io/control-plane",
                "conditions": [accepted, resolved],
            })
        })
        .collect();
    json!({ "parents": parents })
}

/// KEP-1645: whether the export takes effect.
fn service_export(o: &ServiceExport, model: &MeshModel) -> Value {
    let exported = model.services.get(&o.meta.name).is_some_and(|service| service.exported);
    let message =
        if exported { String::new() } else { format!("there is no service/{} to export", o.meta.name) };
    let reason = if exported { "Exported" } else { "NoService" };
    json!({ "conditions": [condition("Valid", exported, reason, message)] })
}

/// How many workloads it holds for: those that it selects and no other goes before.
fn sidecar(o: &Sidecar, model: &MeshModel) -> Value {
    let under = |workload: &&Arc<MeshWorkload>| workload.egress_scope.as_ref() == Some(&o.meta.name);
    json!({ "workloads": model.workloads.values().filter(under).count() })
}

fn condition(kind: &str, holds: bool, reason: &str, message: String) -> Value {
    json!({
        "type": kind,
        "status": if holds { "True" } else { "False" },
        "reason": reason,
        "message": message,
    })
}

fn timestamp(unix: u64) -> String {
    i64::try_from(unix)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}
