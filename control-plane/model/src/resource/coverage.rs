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

use Kind::{
    CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy, ClusterNetworkPolicy, EndpointSlice, HttpRoute,
    Namespace, NetworkPolicy, Service, ServiceExport, Sidecar, Workload,
};
use Support::{Ignored, Partly, Refused, Yes};

/// Every field of every kind.
#[rustfmt::skip]
pub const COVERAGE: &[Coverage] = &[
    row(Workload, "metadata.name", Yes, r#""x""#, ""),
    row(Workload, "metadata.namespace", Yes, r#""shop""#, ""),
    row(Workload, "metadata.labels", Yes, r#"{"app":"x"}"#, ""),
    row(Workload, "metadata.annotations", Yes, r#"{"isthmus.io/audit":"true"}"#, "isthmus.io/audit, isthmus.io/drain: true or false; the rest is kept"),
    row(Workload, "metadata.resourceVersion", Yes, r#""7""#, "compare-and-set"),
    row(Workload, "metadata.uid", Ignored, r#""x""#, ""),
    row(Workload, "metadata.creationTimestamp", Ignored, r#""x""#, ""),
    row(Workload, "metadata.deletionTimestamp", Ignored, r#""x""#, "what Kubernetes tells with it drains, as by isthmus.io/drain"),
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
    row(Workload, "spec.readinessProbe", Yes, r#"{"httpGet":{"path":"/ready","port":8080},"periodSeconds":5}"#, "httpGet or tcpSocket, periodSeconds, failureThreshold; its node asks"),
    row(Workload, "spec.ports[].name", Yes, r#""http""#, ""),
    row(Workload, "spec.ports[].port", Yes, "8080", ""),
    row(Workload, "spec.ports[].protocol", Yes, r#""TCP""#, ""),
    row(Workload, "spec.ports[].appProtocol", Yes, r#""grpc""#, ""),
    row(Workload, "spec.ports[].hostPort", Yes, "8080", "a port of the node that leads here"),
    row(Workload, "spec.ports[].hostIP", Yes, r#""192.0.2.7""#, "with hostPort; absent: every address of the node"),
    row(Workload, "status", Ignored, "{}", ""),

    row(Service, "metadata.annotations", Yes, r#"{"networking.istio.io/exportTo":".,pay"}"#, "exportTo: who may know of it; isthmus.io/overflow: on or off; isthmus.io/forwarding: snat or dsr; isthmus.io/redirect: a proxy of the node; the rest is kept"),
    row(Service, "spec.selector", Yes, r#"{"app":"x"}"#, ""),
    row(Service, "spec.ports[].name", Yes, r#""http""#, ""),
    row(Service, "spec.ports[].port", Yes, "80", ""),
    row(Service, "spec.ports[].targetPort", Yes, r#""http""#, ""),
    row(Service, "spec.ports[].protocol", Yes, r#""TCP""#, ""),
    row(Service, "spec.ports[].appProtocol", Partly, r#""kubernetes.io/h2c""#, "HTTP, gRPC, or opaque TCP"),
    row(Service, "spec.ports[].nodePort", Yes, "30000", "30000 to 32767; 0 or absent: allocated"),
    row(Service, "spec.clusterIP", Yes, r#""10.0.0.9""#, "or None"),
    row(Service, "spec.clusterIPs", Yes, r#"["10.0.0.9","fd00::9"]"#, "one of each family at most"),
    row(Service, "spec.type", Partly, r#""NodePort""#, "ClusterIP, NodePort, LoadBalancer; not ExternalName"),
    row(Service, "spec.sessionAffinity", Yes, r#""ClientIP""#, ""),
    row(Service, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", Yes, "60", "1 to 86400; 10800 unless given"),
    row(Service, "spec.internalTrafficPolicy", Yes, r#""Local""#, ""),
    row(Service, "spec.publishNotReadyAddresses", Yes, "true", ""),
    row(Service, "spec.ipFamilies", Yes, r#"["IPv6"]"#, "the cluster must have a service CIDR of each"),
    row(Service, "spec.ipFamilyPolicy", Yes, r#""PreferDualStack""#, "RequireDualStack is refused where the cluster has one family"),
    row(Service, "spec.externalName", Refused, r#""a.example""#, ""),
    row(Service, "spec.externalIPs", Yes, r#"["192.0.2.1"]"#, "not of the cluster's own ranges"),
    row(Service, "spec.externalTrafficPolicy", Yes, r#""Local""#, "of services with a way in from outside"),
    row(Service, "spec.healthCheckNodePort", Yes, "32000", "of load balancers with externalTrafficPolicy Local"),
    row(Service, "spec.loadBalancerIP", Yes, r#""192.0.2.1""#, "of type LoadBalancer; nobody announces it for you"),
    row(Service, "spec.loadBalancerClass", Refused, r#""x""#, ""),
    row(Service, "spec.loadBalancerSourceRanges", Yes, r#"["198.51.100.0/24"]"#, "of type LoadBalancer"),
    row(Service, "spec.allocateLoadBalancerNodePorts", Yes, "false", "of type LoadBalancer"),
    row(Service, "spec.trafficDistribution", Yes, r#""PreferSameNode""#, ""),
    row(Service, "status.loadBalancer.ingress", Yes, r#"[{"ip":"192.0.2.9"}]"#, "ip alone; of type LoadBalancer"),

    row(EndpointSlice, "addressType", Partly, r#""IPv4""#, "not FQDN"),
    row(EndpointSlice, "endpoints[].addresses", Yes, r#"["10.0.0.1"]"#, ""),
    row(EndpointSlice, "endpoints[].conditions.ready", Yes, "false", ""),
    row(EndpointSlice, "metadata.annotations", Yes, r#"{"isthmus.io/priority":"1"}"#, "isthmus.io/priority: 0 to 7, the greater for when none of the smaller is ready; the rest is kept"),
    row(EndpointSlice, "endpoints[].conditions.serving", Yes, "true", ""),
    row(EndpointSlice, "endpoints[].conditions.terminating", Yes, "true", "not ready and serving: keeps the connections that it has"),
    row(EndpointSlice, "endpoints[].hostname", Yes, r#""x""#, "below the name of a headless service"),
    row(EndpointSlice, "endpoints[].nodeName", Yes, r#""x""#, ""),
    row(EndpointSlice, "endpoints[].zone", Yes, r#""x""#, ""),
    row(EndpointSlice, "endpoints[].targetRef", Ignored, "{}", "workloads are recognised by address"),
    row(EndpointSlice, "endpoints[].hints.forZones", Yes, r#"[{"name":"a"}]"#, ""),
    row(EndpointSlice, "endpoints[].hints.forNodes", Yes, r#"[{"name":"a"}]"#, ""),
    row(EndpointSlice, "endpoints[].deprecatedTopology", Ignored, "{}", ""),
    row(EndpointSlice, "ports[].name", Yes, r#""http""#, ""),
    row(EndpointSlice, "ports[].port", Yes, "80", "required"),
    row(EndpointSlice, "ports[].protocol", Yes, r#""TCP""#, ""),
    row(EndpointSlice, "ports[].appProtocol", Ignored, r#""http""#, "the service port's counts"),

    row(NetworkPolicy, "spec.podSelector.matchLabels", Yes, r#"{"app":"x"}"#, ""),
    row(NetworkPolicy, "spec.podSelector.matchExpressions", Yes, r#"[{"key":"a","operator":"Exists"}]"#, ""),
    row(NetworkPolicy, "spec.policyTypes", Yes, r#"["Ingress","Egress"]"#, ""),
    row(NetworkPolicy, "spec.ingress[].from[].podSelector", Yes, "{}", "this cluster's workloads"),
    row(NetworkPolicy, "spec.ingress[].from[].namespaceSelector", Yes, r#"{"matchExpressions":[{"key":"team","operator":"NotIn","values":["red"]}]}"#, "by the labels of Namespace objects; every namespace has kubernetes.io/metadata.name"),
    row(NetworkPolicy, "spec.ingress[].from[].ipBlock", Yes, r#"{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}"#, "addresses outside the mesh"),
    row(NetworkPolicy, "spec.ingress[].ports[].protocol", Yes, r#""UDP""#, ""),
    row(NetworkPolicy, "spec.ingress[].ports[].port", Yes, r#""http""#, ""),
    row(NetworkPolicy, "spec.egress[].to[].podSelector", Yes, "{}", "this cluster's workloads"),
    row(NetworkPolicy, "spec.egress[].to[].namespaceSelector", Yes, r#"{"matchExpressions":[{"key":"team","operator":"NotIn","values":["red"]}]}"#, "by the labels of Namespace objects; every namespace has kubernetes.io/metadata.name"),
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

    row(CiliumNetworkPolicy, "metadata.annotations", Yes, r#"{"isthmus.io/audit":"true"}"#, "isthmus.io/audit: true or false, on policies of every kind; the rest is kept"),
    row(CiliumNetworkPolicy, "spec.endpointSelector", Yes, r#"{"matchLabels":{"k8s:app":"x"},"matchExpressions":[{"key":"any:tier","operator":"Exists"}]}"#, "labels of workloads; k8s:, any: and nothing before a key are the same"),
    row(CiliumNetworkPolicy, "spec.nodeSelector", Refused, r#"{}"#, "only a CiliumClusterwideNetworkPolicy selects nodes"),
    row(CiliumNetworkPolicy, "spec.description", Ignored, r#""x""#, ""),
    row(CiliumNetworkPolicy, "spec.labels", Ignored, r#"[]"#, ""),
    row(CiliumNetworkPolicy, "spec.log", Ignored, r#"{"value":"x"}"#, ""),
    row(CiliumNetworkPolicy, "spec.enableDefaultDeny.ingress", Yes, r#"false"#, "absent: denied by default where there are entries"),
    row(CiliumNetworkPolicy, "spec.enableDefaultDeny.egress", Yes, r#"true"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress", Yes, r#"[{},{}]"#, "[{}] allows nobody, and denies by default"),
    row(CiliumNetworkPolicy, "spec.ingress[].fromEndpoints", Yes, r#"[{"matchLabels":{"io.kubernetes.pod.namespace":"pay"}}]"#, "of the policy's namespace unless it names others"),
    row(CiliumNetworkPolicy, "spec.ingress[].fromCIDR", Yes, r#"["10.0.0.0/8","192.0.2.7"]"#, "addresses outside the mesh"),
    row(CiliumNetworkPolicy, "spec.ingress[].fromCIDRSet[].cidr", Yes, r#""192.0.2.0/24""#, "addresses outside the mesh"),
    row(CiliumNetworkPolicy, "spec.ingress[].fromCIDRSet[].except", Yes, r#"["10.1.0.0/16"]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].fromCIDRSet[].cidrGroupRef", Refused, r#""x""#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].fromCIDRSet[].cidrGroupSelector", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].fromEntities", Yes, r#"["all","world","world-ipv4","world-ipv6","cluster","mesh","host","remote-node","health","unmanaged","ingress","kube-apiserver","init","none"]"#, "mesh: every workload; init: nobody"),
    row(CiliumNetworkPolicy, "spec.ingress[].fromNodes", Refused, r#"[]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].fromGroups", Refused, r#"[]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].fromRequires", Refused, r#"[]"#, "write it into the selectors"),
    row(CiliumNetworkPolicy, "spec.ingress[].icmps", Yes, r#"[{"fields":[{"type":8},{"family":"IPv6","type":"PacketTooBig"}]}]"#, "by number or name; not beside toPorts"),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].ports[].port", Yes, r#""http""#, "a number from 1, a name, or 0 for all"),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].ports[].endPort", Yes, r#"81"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].ports[].protocol", Partly, r#""UDP""#, "TCP, UDP, SCTP, ANY"),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].rules.dns", Refused, r#"[{"matchPattern":"*.a.example"}]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].rules.http", Refused, r#"[{}]"#, "no HTTP policy"),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].rules.kafka", Refused, r#"[{}]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].rules.l7proto", Refused, r#""x""#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].rules.l7", Refused, r#"[{}]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].listener", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].terminatingTLS", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].originatingTLS", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].toPorts[].serverNames", Refused, r#"["a"]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingress[].authentication.mode", Refused, r#""required""#, "disabled is accepted"),
    row(CiliumNetworkPolicy, "spec.ingressDeny", Yes, r#"[{},{}]"#, "beats whatever is allowed"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromEndpoints", Yes, r#"[{"matchLabels":{"io.kubernetes.pod.namespace":"pay"}}]"#, "of the policy's namespace unless it names others"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromCIDR", Yes, r#"["10.0.0.0/8","192.0.2.7"]"#, "addresses outside the mesh"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromCIDRSet[].cidr", Yes, r#""192.0.2.0/24""#, "addresses outside the mesh"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromCIDRSet[].except", Yes, r#"["10.1.0.0/16"]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromCIDRSet[].cidrGroupRef", Refused, r#""x""#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromCIDRSet[].cidrGroupSelector", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromEntities", Partly, r#"["all","world","world-ipv4","world-ipv6","cluster","mesh","host","remote-node","health","ingress","kube-apiserver","init","none"]"#, "not unmanaged"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromNodes", Refused, r#"[]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromGroups", Refused, r#"[]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].fromRequires", Refused, r#"[]"#, "write it into the selectors"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].icmps", Yes, r#"[{"fields":[{"type":8},{"family":"IPv6","type":"PacketTooBig"}]}]"#, "by number or name; not beside toPorts"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].ports[].port", Yes, r#""http""#, "a number from 1, a name, or 0 for all"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].ports[].endPort", Yes, r#"81"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].ports[].protocol", Partly, r#""UDP""#, "TCP, UDP, SCTP, ANY"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].rules.dns", Refused, r#"[{"matchPattern":"*.a.example"}]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].rules.http", Refused, r#"[{}]"#, "no HTTP policy"),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].rules.kafka", Refused, r#"[{}]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].rules.l7proto", Refused, r#""x""#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].rules.l7", Refused, r#"[{}]"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].listener", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].terminatingTLS", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].originatingTLS", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.ingressDeny[].toPorts[].serverNames", Refused, r#"["a"]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress", Yes, r#"[{},{}]"#, "[{}] allows nobody, and denies by default"),
    row(CiliumNetworkPolicy, "spec.egress[].toEndpoints", Yes, r#"[{"matchLabels":{"io.kubernetes.pod.namespace":"pay"}}]"#, "of the policy's namespace unless it names others"),
    row(CiliumNetworkPolicy, "spec.egress[].toCIDR", Yes, r#"["10.0.0.0/8","192.0.2.7"]"#, "addresses outside the mesh"),
    row(CiliumNetworkPolicy, "spec.egress[].toCIDRSet[].cidr", Yes, r#""192.0.2.0/24""#, "addresses outside the mesh"),
    row(CiliumNetworkPolicy, "spec.egress[].toCIDRSet[].except", Yes, r#"["10.1.0.0/16"]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toCIDRSet[].cidrGroupRef", Refused, r#""x""#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toCIDRSet[].cidrGroupSelector", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toEntities", Yes, r#"["all","world","world-ipv4","world-ipv6","cluster","mesh","host","remote-node","health","unmanaged","ingress","kube-apiserver","init","none"]"#, "mesh: every workload; init: nobody"),
    row(CiliumNetworkPolicy, "spec.egress[].toNodes", Refused, r#"[]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toGroups", Refused, r#"[]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toRequires", Refused, r#"[]"#, "write it into the selectors"),
    row(CiliumNetworkPolicy, "spec.egress[].toServices", Yes, r#"[{"k8sService":{"serviceName":"a"}},{"k8sServiceSelector":{"selector":{"matchLabels":{"a":"b"}},"namespace":"pay"}}]"#, "not beside toPorts; without a namespace: the policy's own"),
    row(CiliumNetworkPolicy, "spec.egress[].toFQDNs", Yes, r#"[{"matchName":"a.example"},{"matchPattern":"*.b.example"}]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].icmps", Yes, r#"[{"fields":[{"type":8},{"family":"IPv6","type":"PacketTooBig"}]}]"#, "by number or name; not beside toPorts"),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].ports[].port", Yes, r#""http""#, "a number from 1, a name, or 0 for all"),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].ports[].endPort", Yes, r#"81"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].ports[].protocol", Partly, r#""UDP""#, "TCP, UDP, SCTP, ANY"),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.dns", Yes, r#"[{"matchPattern":"*.a.example"}]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.http", Yes, r#"[{}]"#, "what the node's proxy lets through, of TCP; alone in its entry"),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.http[].method", Yes, r#""GET""#, "a regular expression for the whole"),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.http[].path", Yes, r#""/v1/.*""#, "the same, of the path with its query"),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.http[].host", Yes, r#""pay.shop""#, "the same"),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.http[].headers", Yes, r#"["X-Team: web"]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.http[].headerMatches[].name", Yes, r#""X-Team""#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.http[].headerMatches[].value", Yes, r#""web""#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.http[].headerMatches[].mismatch", Refused, r#""LOG""#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.http[].headerMatches[].secret", Refused, r#"{"name": "x"}"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.kafka", Refused, r#"[{}]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.l7proto", Refused, r#""x""#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].rules.l7", Refused, r#"[{}]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].listener.name", Yes, r#""l7""#, "a proxy that registers at agents by this name"),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].listener.envoyConfig", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].listener.priority", Refused, "1", ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].terminatingTLS", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].originatingTLS", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].toPorts[].serverNames", Refused, r#"["a"]"#, ""),
    row(CiliumNetworkPolicy, "spec.egress[].authentication.mode", Refused, r#""required""#, "disabled is accepted"),
    row(CiliumNetworkPolicy, "spec.egressDeny", Yes, r#"[{},{}]"#, "beats whatever is allowed"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toEndpoints", Yes, r#"[{"matchLabels":{"io.kubernetes.pod.namespace":"pay"}}]"#, "of the policy's namespace unless it names others"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toCIDR", Yes, r#"["10.0.0.0/8","192.0.2.7"]"#, "addresses outside the mesh"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toCIDRSet[].cidr", Yes, r#""192.0.2.0/24""#, "addresses outside the mesh"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toCIDRSet[].except", Yes, r#"["10.1.0.0/16"]"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toCIDRSet[].cidrGroupRef", Refused, r#""x""#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toCIDRSet[].cidrGroupSelector", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toEntities", Partly, r#"["all","world","world-ipv4","world-ipv6","cluster","mesh","host","remote-node","health","ingress","kube-apiserver","init","none"]"#, "not unmanaged"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toNodes", Refused, r#"[]"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toGroups", Refused, r#"[]"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toRequires", Refused, r#"[]"#, "write it into the selectors"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toServices", Yes, r#"[{"k8sService":{"serviceName":"a"}},{"k8sServiceSelector":{"selector":{"matchLabels":{"a":"b"}},"namespace":"pay"}}]"#, "not beside toPorts; without a namespace: the policy's own"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toFQDNs", Refused, r#"[{"matchName":"a.example"}]"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].icmps", Yes, r#"[{"fields":[{"type":8},{"family":"IPv6","type":"PacketTooBig"}]}]"#, "by number or name; not beside toPorts"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].ports[].port", Yes, r#""http""#, "a number from 1, a name, or 0 for all"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].ports[].endPort", Yes, r#"81"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].ports[].protocol", Partly, r#""UDP""#, "TCP, UDP, SCTP, ANY"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].rules.dns", Refused, r#"[{"matchPattern":"*.a.example"}]"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].rules.http", Refused, r#"[{}]"#, "no HTTP policy"),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].rules.kafka", Refused, r#"[{}]"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].rules.l7proto", Refused, r#""x""#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].rules.l7", Refused, r#"[{}]"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].listener", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].terminatingTLS", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].originatingTLS", Refused, r#"{}"#, ""),
    row(CiliumNetworkPolicy, "spec.egressDeny[].toPorts[].serverNames", Refused, r#"["a"]"#, ""),
    row(CiliumNetworkPolicy, "specs", Yes, r#"[{"endpointSelector":{},"egress":[{}]}]"#, "at most 16"),
    row(CiliumNetworkPolicy, "status", Ignored, r#"{}"#, ""),

    row(CiliumClusterwideNetworkPolicy, "metadata.namespace", Refused, r#""shop""#, "it is of the whole cluster"),
    row(CiliumClusterwideNetworkPolicy, "spec.endpointSelector", Yes, r#"{"matchLabels":{"io.kubernetes.pod.namespace":"shop"}}"#, "workloads of all namespaces"),
    row(CiliumClusterwideNetworkPolicy, "spec.nodeSelector", Yes, r#"{"matchLabels":{"rack":"7"}}"#, "the nodes themselves; not beside endpointSelector, nor with names or rules.dns"),
    row(CiliumClusterwideNetworkPolicy, "spec.ingress[].fromEndpoints", Yes, r#"[{}]"#, "of all namespaces unless it names some; all else as in a CiliumNetworkPolicy"),
    row(CiliumClusterwideNetworkPolicy, "specs", Yes, r#"[{"endpointSelector":{},"egress":[{}]}]"#, ""),

    row(ClusterNetworkPolicy, "metadata.namespace", Refused, r#""shop""#, "it is of the whole cluster"),
    row(ClusterNetworkPolicy, "spec.tier", Yes, r#""Baseline""#, ""),
    row(ClusterNetworkPolicy, "spec.priority", Yes, r#"1000"#, ""),
    row(ClusterNetworkPolicy, "spec.subject.namespaces", Yes, r#"{"matchLabels":{"team":"red"}}"#, "by the labels of Namespace objects"),
    row(ClusterNetworkPolicy, "spec.subject", Yes, r#"{"pods":{"podSelector":{"matchLabels":{"app":"x"}}}}"#, ""),
    row(ClusterNetworkPolicy, "spec.ingress[].name", Yes, r#""x""#, ""),
    row(ClusterNetworkPolicy, "spec.ingress[].action", Yes, r#""Pass""#, ""),
    row(ClusterNetworkPolicy, "spec.ingress[].from", Yes, r#"[{"pods":{"namespaceSelector":{},"podSelector":{"matchLabels":{"app":"x"}}}}]"#, ""),
    row(ClusterNetworkPolicy, "spec.ingress[].protocols[].tcp.destinationPort.number", Yes, r#"80"#, ""),
    row(ClusterNetworkPolicy, "spec.ingress[].protocols[].udp.destinationPort.range", Yes, r#"{"start":80,"end":90}"#, ""),
    row(ClusterNetworkPolicy, "spec.ingress[].protocols[].sctp.destinationPort.number", Yes, r#"80"#, ""),
    row(ClusterNetworkPolicy, "spec.ingress[].protocols[].destinationNamedPort", Yes, r#""http""#, ""),
    row(ClusterNetworkPolicy, "spec.egress[].name", Yes, r#""x""#, ""),
    row(ClusterNetworkPolicy, "spec.egress[].action", Yes, r#""Pass""#, ""),
    row(ClusterNetworkPolicy, "spec.egress[].to", Partly, r#"[{"pods":{"namespaceSelector":{},"podSelector":{"matchLabels":{"app":"x"}}}}]"#, "namespaces, pods, networks; nodes and domainNames are refused"),
    row(ClusterNetworkPolicy, "spec.egress[].to[].networks", Partly, r#"["0.0.0.0/0"]"#, "addresses outside the mesh; every workload if it holds the range of all pods (of two: Deny needs one, Accept both)"),
    row(ClusterNetworkPolicy, "spec.egress[].to[].nodes", Refused, r#"{}"#, ""),
    row(ClusterNetworkPolicy, "spec.egress[].to[].domainNames", Refused, r#"["a.example"]"#, "write toFQDNs in a CiliumNetworkPolicy"),
    row(ClusterNetworkPolicy, "spec.egress[].protocols[].tcp.destinationPort.number", Yes, r#"80"#, ""),
    row(ClusterNetworkPolicy, "spec.egress[].protocols[].udp.destinationPort.range", Yes, r#"{"start":80,"end":90}"#, ""),
    row(ClusterNetworkPolicy, "spec.egress[].protocols[].sctp.destinationPort.number", Yes, r#"80"#, ""),
    row(ClusterNetworkPolicy, "spec.egress[].protocols[].destinationNamedPort", Yes, r#""http""#, ""),
    row(ClusterNetworkPolicy, "status", Ignored, r#"{}"#, ""),

    row(Namespace, "metadata.namespace", Refused, r#""shop""#, "it is of the whole cluster"),
    row(Namespace, "metadata.labels", Yes, r#"{"team":"red"}"#, "for policies to select by; kubernetes.io/metadata.name is its name"),
    row(Namespace, "spec.finalizers", Ignored, r#"["kubernetes"]"#, "what is of a namespace needs no Namespace, and stays when it goes"),
    row(Namespace, "status", Ignored, r#"{"phase":"Active"}"#, ""),
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
            Kind::Workload | Kind::ServiceExport | Kind::Namespace => json!({}),
            Kind::Service => json!({"spec": {"ports": [{"port": 1}]}}),
            Kind::EndpointSlice => json!({
                "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.7"]}], "ports": [{"port": 1}],
            }),
            Kind::NetworkPolicy => json!({"spec": {}}),
            Kind::Sidecar => json!({"spec": {"egress": [{"hosts": ["*/*"]}]}}),
            Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
                json!({"spec": {"endpointSelector": {}, "ingress": [{}]}})
            }
            Kind::ClusterNetworkPolicy => {
                json!({"spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}})
            }
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
        if field == "spec.nodeSelector"
            && value["metadata"]["namespace"].is_null()
            && value["kind"] != "CiliumNetworkPolicy"
            && value.pointer("/spec/nodeSelector").is_some()
        {
            value["spec"].as_object_mut().unwrap().remove("endpointSelector");
        }
        let beside: &[(&str, &str, Value)] = &[
            ("spec.ports[].hostIP", "spec.ports[].hostPort", json!(80)),
            ("spec.ports[].nodePort", "spec.type", json!("NodePort")),
            ("spec.sessionAffinityConfig", "spec.sessionAffinity", json!("ClientIP")),
            ("spec.externalTrafficPolicy", "spec.type", json!("NodePort")),
            ("spec.healthCheckNodePort", "spec.externalTrafficPolicy", json!("Local")),
            ("spec.healthCheckNodePort", "spec.type", json!("LoadBalancer")),
            ("spec.loadBalancerIP", "spec.type", json!("LoadBalancer")),
            ("spec.loadBalancerSourceRanges", "spec.type", json!("LoadBalancer")),
            ("spec.allocateLoadBalancerNodePorts", "spec.type", json!("LoadBalancer")),
            ("status.loadBalancer", "spec.type", json!("LoadBalancer")),
        ];
        for (of, needs, least) in beside.iter().filter(|(of, ..)| field.starts_with(of)) {
            if !(*of == "status.loadBalancer" && value["kind"] != "Service") {
                put(value, needs, least.clone());
            }
        }
        for (list, peers) in [("spec.ingress[]", "from"), ("spec.egress[]", "to")] {
            if value["kind"] != "ClusterNetworkPolicy" || !field.starts_with(list) {
                continue;
            }
            if value.pointer(&format!("/{}/0/action", &list[..list.len() - 2].replace('.', "/"))).is_none() {
                put(value, &format!("{list}.action"), json!("Accept"));
            }
            let entry = value.pointer(&format!("/{}/0/{peers}", &list[..list.len() - 2].replace('.', "/")));
            if entry.is_none() {
                put(value, &format!("{list}.{peers}"), json!([{"namespaces": {}}]));
            }
        }
        let needs_ports = [".toPorts[].rules", ".toPorts[].listener"];
        if let Some((entry, _)) = needs_ports.iter().find_map(|field_of| field.split_once(field_of)) {
            let mut port = json!({"port": "53"});
            if field.contains(".rules.http") {
                port["protocol"] = json!("TCP");
            }
            put(value, &format!("{entry}.toPorts[].ports"), json!([port]));
        }
        for (list, least) in [
            (".toPorts[].ports[]", ("port", json!("80"))),
            (".fromCIDRSet[]", ("cidr", json!("10.0.0.0/8"))),
            (".toCIDRSet[]", ("cidr", json!("10.0.0.0/8"))),
            (".headerMatches[]", ("name", json!("x-a"))),
        ] {
            let (name, least) = least;
            let Some((entry, _)) = field.split_once(list) else { continue };
            let pointer = format!("/{}{}/{name}", entry, list).replace("[]", "/0").replace('.', "/");
            if value.pointer(&pointer.replace("//", "/")).is_none() {
                put(value, &format!("{entry}{list}.{name}"), least);
            }
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
