//! Which fields of the Kubernetes kinds have an effect, which are taken without one, and which are refused: as
//! data, so that the documents and a test read the same table.

use super::Kind;

/// What happens to a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It does what Kubernetes says.
    Yes,
    /// It does, within the limit that the note of its row names.
    Partly,
    /// Accepted and dropped: it has no effect here, or servers fill it in.
    Ignored,
    /// Refused: it would have an effect that this mesh does not have.
    Refused,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coverage {
    #[allow(missing_docs)]
    pub kind: Kind,
    /// Dotted path; `[]` is a list's element.
    pub field: &'static str,
    #[allow(missing_docs)]
    pub support: Support,
    /// A value that tries the field, as JSON.
    pub example: &'static str,
    /// What a person should know; may be empty.
    pub note: &'static str,
}

const fn row(
    kind: Kind,
    field: &'static str,
    support: Support,
    example: &'static str,
    note: &'static str,
) -> Coverage {
    Coverage { kind, field, support, example, note }
}

use Kind::{EndpointSlice, HttpRoute, NetworkPolicy, Service, ServiceExport, Sidecar, Workload};
use Support::{Ignored, Partly, Refused, Yes};

/// Every field of every kind.
#[rustfmt::skip]
pub const COVERAGE: &[Coverage] = &[
    row(Workload, "metadata.name", Yes, r#""x""#, ""),
    row(Workload, "metadata.namespace", Yes, r#""shop""#, ""),
    row(Workload, "metadata.labels", Yes, r#"{"app":"x"}"#, ""),
    row(Workload, "metadata.annotations", Yes, r#"{"note":"x"}"#, "kept"),
    row(Workload, "metadata.resourceVersion", Yes, r#""7""#, "compare-and-set"),
    row(Workload, "metadata.uid", Ignored, r#""x""#, ""),
    row(Workload, "metadata.creationTimestamp", Ignored, r#""x""#, ""),
    row(Workload, "metadata.deletionTimestamp", Ignored, r#""x""#, ""),
    row(Workload, "metadata.deletionGracePeriodSeconds", Ignored, "1", ""),
    row(Workload, "metadata.generation", Ignored, "1", ""),
    row(Workload, "metadata.generateName", Ignored, r#""x-""#, "a name is required"),
    row(Workload, "metadata.managedFields", Ignored, "[]", ""),
    row(Workload, "metadata.ownerReferences", Ignored, "[]", ""),
    row(Workload, "metadata.finalizers", Ignored, "[]", ""),
    row(Workload, "metadata.selfLink", Ignored, r#""x""#, ""),
    row(Workload, "spec.serviceAccount", Yes, r#""pay""#, ""),
    row(Workload, "spec.proxy", Yes, r#""sidecar""#, ""),
    row(Workload, "spec.address", Yes, r#""192.0.2.7""#, ""),
    row(Workload, "spec.ports[].name", Yes, r#""http""#, ""),
    row(Workload, "spec.ports[].port", Yes, "8080", ""),
    row(Workload, "spec.ports[].protocol", Yes, r#""TCP""#, ""),
    row(Workload, "spec.ports[].appProtocol", Yes, r#""grpc""#, ""),
    row(Workload, "status", Ignored, "{}", ""),

    row(Service, "metadata.annotations", Yes, r#"{"networking.istio.io/exportTo":".,pay"}"#, "exportTo: who may know of it; isthmus.io/overflow: on or off; the rest is kept"),
    row(Service, "spec.selector", Yes, r#"{"app":"x"}"#, ""),
    row(Service, "spec.ports[].name", Yes, r#""http""#, ""),
    row(Service, "spec.ports[].port", Yes, "80", ""),
    row(Service, "spec.ports[].targetPort", Yes, r#""http""#, ""),
    row(Service, "spec.ports[].protocol", Yes, r#""TCP""#, ""),
    row(Service, "spec.ports[].appProtocol", Partly, r#""kubernetes.io/h2c""#, "HTTP, gRPC, or opaque TCP"),
    row(Service, "spec.ports[].nodePort", Refused, "30000", ""),
    row(Service, "spec.clusterIP", Yes, r#""10.0.0.9""#, "or None"),
    row(Service, "spec.clusterIPs", Partly, r#"["10.0.0.9"]"#, "one address"),
    row(Service, "spec.type", Refused, r#""NodePort""#, "ClusterIP is accepted"),
    row(Service, "spec.sessionAffinity", Refused, r#""ClientIP""#, "None is accepted"),
    row(Service, "spec.sessionAffinityConfig", Refused, "{}", ""),
    row(Service, "spec.internalTrafficPolicy", Refused, r#""Local""#, "Cluster is accepted"),
    row(Service, "spec.publishNotReadyAddresses", Refused, "true", "false is accepted"),
    row(Service, "spec.ipFamilies", Ignored, r#"["IPv4"]"#, "the service CIDR decides"),
    row(Service, "spec.ipFamilyPolicy", Ignored, r#""SingleStack""#, "the service CIDR decides"),
    row(Service, "spec.externalName", Refused, r#""a.example""#, ""),
    row(Service, "spec.externalIPs", Refused, "[]", ""),
    row(Service, "spec.externalTrafficPolicy", Refused, r#""Local""#, ""),
    row(Service, "spec.healthCheckNodePort", Refused, "1", ""),
    row(Service, "spec.loadBalancerIP", Refused, r#""192.0.2.1""#, ""),
    row(Service, "spec.loadBalancerClass", Refused, r#""x""#, ""),
    row(Service, "spec.loadBalancerSourceRanges", Refused, "[]", ""),
    row(Service, "spec.allocateLoadBalancerNodePorts", Refused, "true", ""),
    row(Service, "spec.trafficDistribution", Refused, r#""PreferClose""#, ""),

    row(EndpointSlice, "addressType", Partly, r#""IPv4""#, "not FQDN"),
    row(EndpointSlice, "endpoints[].addresses", Yes, r#"["10.0.0.1"]"#, ""),
    row(EndpointSlice, "endpoints[].conditions.ready", Yes, "false", ""),
    row(EndpointSlice, "endpoints[].conditions.serving", Ignored, "true", ""),
    row(EndpointSlice, "endpoints[].conditions.terminating", Ignored, "true", ""),
    row(EndpointSlice, "endpoints[].hostname", Ignored, r#""x""#, ""),
    row(EndpointSlice, "endpoints[].nodeName", Ignored, r#""x""#, ""),
    row(EndpointSlice, "endpoints[].zone", Ignored, r#""x""#, ""),
    row(EndpointSlice, "endpoints[].targetRef", Ignored, "{}", "workloads are recognised by address"),
    row(EndpointSlice, "endpoints[].hints", Ignored, "{}", ""),
    row(EndpointSlice, "endpoints[].deprecatedTopology", Ignored, "{}", ""),
    row(EndpointSlice, "ports[].name", Yes, r#""http""#, ""),
    row(EndpointSlice, "ports[].port", Yes, "80", "required"),
    row(EndpointSlice, "ports[].protocol", Yes, r#""TCP""#, ""),
    row(EndpointSlice, "ports[].appProtocol", Ignored, r#""http""#, "the service port's counts"),

    row(NetworkPolicy, "spec.podSelector.matchLabels", Yes, r#"{"app":"x"}"#, ""),
    row(NetworkPolicy, "spec.podSelector.matchExpressions", Yes, r#"[{"key":"a","operator":"Exists"}]"#, ""),
    row(NetworkPolicy, "spec.policyTypes", Yes, r#"["Ingress","Egress"]"#, ""),
    row(NetworkPolicy, "spec.ingress[].from[].podSelector", Yes, "{}", "this cluster's workloads"),
    row(NetworkPolicy, "spec.ingress[].from[].namespaceSelector", Partly, "{}", "by kubernetes.io/metadata.name"),
    row(NetworkPolicy, "spec.ingress[].from[].ipBlock", Yes, r#"{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}"#, "addresses outside the mesh"),
    row(NetworkPolicy, "spec.ingress[].ports[].protocol", Yes, r#""UDP""#, ""),
    row(NetworkPolicy, "spec.ingress[].ports[].port", Yes, r#""http""#, ""),
    row(NetworkPolicy, "spec.egress[].to[].podSelector", Yes, "{}", "this cluster's workloads"),
    row(NetworkPolicy, "spec.egress[].to[].namespaceSelector", Partly, "{}", "by kubernetes.io/metadata.name"),
    row(NetworkPolicy, "spec.egress[].to[].ipBlock", Yes, r#"{"cidr":"10.0.0.0/8"}"#, "addresses outside the mesh"),
    row(NetworkPolicy, "spec.egress[].ports[].protocol", Yes, r#""SCTP""#, ""),
    row(NetworkPolicy, "spec.egress[].ports[].port", Yes, r#""http""#, "by the destination's identity"),

    row(HttpRoute, "spec.parentRefs", Partly, r#"[{"group":"","kind":"Service","name":"a","port":80}]"#, "Services of the same namespace"),
    row(HttpRoute, "spec.parentRefs[].sectionName", Refused, r#""http""#, ""),
    row(HttpRoute, "spec.hostnames", Yes, r#"["*.a.example"]"#, ""),
    row(HttpRoute, "spec.rules[].name", Ignored, r#""x""#, ""),
    row(HttpRoute, "spec.rules[].matches[].path", Yes, r#"{"type":"Exact","value":"/a"}"#, ""),
    row(HttpRoute, "spec.rules[].matches[].headers", Yes, r#"[{"name":"a","value":"b"}]"#, ""),
    row(HttpRoute, "spec.rules[].matches[].queryParams", Yes, r#"[{"name":"a","value":"b"}]"#, ""),
    row(HttpRoute, "spec.rules[].matches[].method", Yes, r#""GET""#, ""),
    row(HttpRoute, "spec.rules[].filters", Partly, r#"[{"type":"RequestHeaderModifier","requestHeaderModifier":{"remove":["a"]}}]"#, "header modifiers"),
    row(HttpRoute, "spec.rules[].backendRefs", Partly, r#"[{"name":"a","port":80,"weight":9}]"#, "Services of the same namespace"),
    row(HttpRoute, "spec.rules[].timeouts.request", Yes, r#""10s""#, ""),
    row(HttpRoute, "spec.rules[].timeouts.backendRequest", Yes, r#""1s""#, ""),
    row(HttpRoute, "spec.rules[].retry", Refused, "{}", ""),
    row(HttpRoute, "spec.rules[].sessionPersistence", Refused, "{}", ""),

    row(ServiceExport, "spec.exportedLabels", Refused, r#"{"a":"b"}"#, ""),
    row(ServiceExport, "spec.exportedAnnotations", Refused, r#"{"a":"b"}"#, ""),
    row(ServiceExport, "status", Ignored, "{}", ""),

    row(Sidecar, "spec.workloadSelector.labels", Yes, r#"{"app":"x"}"#, "required with workloadSelector"),
    row(Sidecar, "spec.egress", Partly, r#"[{"hosts":["./*"]}]"#, "one entry, required"),
    row(Sidecar, "spec.egress[].hosts", Yes, r#"["./*","*/*.pay.svc.mesh.local","shop/a.b"]"#, ""),
    row(Sidecar, "spec.egress[].port", Refused, r#"{"number":80,"protocol":"HTTP","name":"http"}"#, ""),
    row(Sidecar, "spec.egress[].bind", Refused, r#""127.0.0.1""#, ""),
    row(Sidecar, "spec.egress[].captureMode", Refused, r#""NONE""#, "DEFAULT is accepted"),
    row(Sidecar, "spec.ingress", Refused, "[]", "a workload's ports are captured as it declares them"),
    row(Sidecar, "spec.inboundConnectionPool", Refused, "{}", ""),
    row(Sidecar, "spec.outboundTrafficPolicy.mode", Refused, r#""REGISTRY_ONLY""#, "ALLOW_ANY is accepted"),
    row(Sidecar, "spec.outboundTrafficPolicy.egressProxy", Refused, "{}", ""),
    row(Sidecar, "status", Ignored, "{}", ""),
];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::Object;

    /// The least that is accepted of a kind.
    fn least(kind: Kind) -> Value {
        let mut out =
            json!({"apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": {"name": "x"}});
        let rest = match kind {
            Kind::Workload | Kind::ServiceExport => json!({}),
            Kind::Service => json!({"spec": {"ports": [{"port": 1}]}}),
            Kind::EndpointSlice => json!({
                "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.7"]}], "ports": [{"port": 1}],
            }),
            Kind::NetworkPolicy => json!({"spec": {}}),
            Kind::Sidecar => json!({"spec": {"egress": [{"hosts": ["*/*"]}]}}),
            Kind::HttpRoute => json!({"spec": {"parentRefs": [{"kind": "Service", "name": "a"}]}}),
        };
        out.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        if kind == Kind::EndpointSlice {
            out["metadata"]["labels"] = json!({"kubernetes.io/service-name": "a"});
        }
        out
    }

    fn put(at: &mut Value, path: &str, value: Value) {
        let (head, rest) = path.split_once('.').unwrap_or((path, ""));
        let slot = match head.strip_suffix("[]") {
            None => &mut at[head],
            Some(list) => {
                if !at[list].is_array() {
                    at[list] = json!([{}]);
                }
                &mut at[list][0]
            }
        };
        if rest.is_empty() {
            *slot = value;
            return;
        }
        if slot.is_null() {
            *slot = json!({});
        }
        put(slot, rest, value);
    }

    /// What a list element cannot be without.
    fn complete(value: &mut Value, field: &str) {
        if field.starts_with("spec.ports[]") && value.pointer("/spec/ports/0/port").is_none() {
            put(value, "spec.ports[].port", json!(1));
        }
    }

    #[test]
    fn every_row_of_the_coverage_table_is_true() {
        for row in COVERAGE {
            let example: Value = serde_json::from_str(row.example).unwrap();
            let mut value = least(row.kind);
            put(&mut value, row.field, example);
            complete(&mut value, row.field);
            let context = format!("{} {}", row.kind, row.field);
            let parsed = Object::parse(&value);
            if row.support == Support::Refused {
                let error = parsed.expect_err(&context);
                let list_index = row.field.replace("[]", "[0]");
                assert_eq!(error.path, list_index, "{error}");
                assert!(error.reason.contains("not supported"), "{error}");
                continue;
            }
            let parsed = parsed.unwrap_or_else(|error| panic!("{context}: {error}"));
            let mut without = least(row.kind);
            complete(&mut without, row.field);
            let unchanged = Object::parse(&without).unwrap() == parsed;
            let is_default = ["metadata.name", "spec.ports[].protocol", "ports[].protocol"]
                .contains(&row.field)
                || row.field == "addressType";
            if !is_default {
                assert_eq!(unchanged, row.support == Support::Ignored, "{context}");
            }
        }
    }
}
