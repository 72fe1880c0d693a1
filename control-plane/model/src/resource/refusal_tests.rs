//! What is refused, and with which words.

use serde_json::{Value, json};

use super::{MAX_OBJECT_BYTES, Object};

fn object(api_version: &str, kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"namespace": "shop", "name": "x"}, "spec": spec,
    })
}

fn workload(spec: Value) -> Value {
    object("isthmus.io/v1", "Workload", spec)
}

fn service(spec: Value) -> Value {
    object("v1", "Service", spec)
}

fn policy(spec: Value) -> Value {
    object("networking.k8s.io/v1", "NetworkPolicy", spec)
}

fn route(rule: Value) -> Value {
    object(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        json!({"parentRefs": [{"group": "", "kind": "Service", "name": "pay"}], "rules": [rule]}),
    )
}

/// Path, and a part of the reason.
fn refused(value: &Value, path: &str, reason: &str) {
    let error = Object::parse(value).expect_err(&format!("must be refused: {value}"));
    assert_eq!(error.path, path, "{error}");
    assert!(error.reason.contains(reason), "{error}");
}

#[test]
fn a_namespace_is_labelled_with_its_own_name() {
    let namespace = |labels: Value| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
    };
    let other = namespace(json!({"kubernetes.io/metadata.name": "pay"}));
    refused(&other, "metadata.labels[kubernetes.io/metadata.name]", "must be the namespace's name, shop");
    let parsed = Object::parse(&namespace(json!({"team": "red"}))).unwrap();
    assert_eq!(parsed.meta().labels["kubernetes.io/metadata.name"], "shop");
    assert_eq!(Object::parse(&parsed.to_json()), Ok(parsed));
}

#[test]
fn an_error_is_one_sentence_with_object_path_value_and_reason() {
    let bad = policy(json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}, {"port": 70000}]}]}));
    assert_eq!(
        Object::parse(&bad).unwrap_err().to_string(),
        "networkpolicy/shop/x: spec.ingress[0].ports[1].port = 70000: must be 1 to 65535"
    );
}

#[test]
fn unknown_kinds_are_refused_with_a_hint() {
    let unknown = |api: &str, kind: &str| json!({"apiVersion": api, "kind": kind, "metadata": {"name": "x"}});
    refused(&unknown("networking.k8s.io/v1", "NetworkPolcy"), "kind", "did you mean NetworkPolicy?");
    refused(&unknown("v1", "services"), "kind", "did you mean Service?");
    refused(&unknown("apps/v1", "Deployment"), "kind", "supported are isthmus.io/v1 Workload, v1 Service");
    let old = unknown("gateway.networking.k8s.io/v1beta1", "HTTPRoute");
    refused(&old, "apiVersion", "write gateway.networking.k8s.io/v1");
    refused(&json!({"kind": "Service"}), "apiVersion", "required");
    refused(&json!([1]), "", "must be an object");
}

#[test]
fn unknown_fields_are_refused_wherever_they_stand() {
    refused(&workload(json!({"serviceAcount": "x"})), "spec.serviceAcount", "unknown field");
    refused(
        &policy(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabel": {}}}]}]})),
        "spec.ingress[0].from[0].podSelector.matchLabel",
        "unknown field",
    );
    refused(
        &policy(json!({"podSelector": {}, "ingress": [{"to": []}]})),
        "spec.ingress[0].to",
        "unknown field",
    );
    let mut stray = workload(json!({}));
    stray["metadata"]["label"] = json!({});
    refused(&stray, "metadata.label", "unknown field");
    let mut stray = workload(json!({}));
    stray["data"] = json!({});
    refused(&stray, "data", "unknown field");
}

#[test]
fn names_and_labels_follow_kubernetes() {
    let named = |namespace: &str, name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
               "spec": {"ports": [{"port": 1}]}})
    };
    refused(&named("shop", "Pay"), "metadata.name", "must be");
    refused(&named("shop", "a.b"), "metadata.name", "must be");
    refused(&named("sh/op", "pay"), "metadata.namespace", "must be");
    refused(&named("shop", ""), "metadata.name", "must be");
    let mut labelled = workload(json!({}));
    labelled["metadata"]["labels"] = json!({"a b": "x"});
    refused(&labelled, "metadata.labels[a b]", "must be");
    labelled["metadata"]["labels"] = json!({"app": "-x"});
    refused(&labelled, "metadata.labels[app]", "must be");
    labelled["metadata"]["labels"] = json!({"app": 7});
    refused(&labelled, "metadata.labels.app", "expected a string");
    let mut versioned = workload(json!({}));
    versioned["metadata"]["resourceVersion"] = json!("abc");
    refused(&versioned, "metadata.resourceVersion", "decimal");
}

#[test]
fn workloads_with_bad_values_are_refused() {
    refused(&workload(json!({"proxy": "envoy"})), "spec.proxy", "none, sidecar or gateway");
    refused(&workload(json!({"proxy": "gateway"})), "spec.address", "required");
    refused(&workload(json!({"address": "127.0.0.1"})), "spec.address", "unicast");
    refused(&workload(json!({"address": "pay.example"})), "spec.address", "IP address");
    refused(&workload(json!({"ports": [{"port": 0}]})), "spec.ports[0].port", "1 to 65535");
    refused(&workload(json!({"ports": [{"port": "http"}]})), "spec.ports[0].port", "expected a whole number");
    refused(
        &workload(json!({"ports": [{"port": 1, "name": "Too-Long-For-A-Port"}]})),
        "spec.ports[0].name",
        "1 to 15",
    );
    refused(
        &workload(json!({"ports": [{"port": 1, "protocol": "tcp"}]})),
        "spec.ports[0].protocol",
        "TCP, UDP",
    );
    refused(&workload(json!({"ports": [{"port": 1}, {"port": 1}]})), "spec.ports[1].port", "twice");
    refused(
        &workload(json!({"ports": [{"port": 1, "hostPort": 70_000}]})),
        "spec.ports[0].hostPort",
        "65535",
    );
    refused(
        &workload(json!({"ports": [{"port": 1, "hostIP": "192.0.2.1"}]})),
        "spec.ports[0].hostIP",
        "hostPort",
    );
    let shared = json!({"ports": [{"port": 1, "hostPort": 9}, {"port": 2, "hostPort": 9}]});
    refused(&workload(shared), "spec.ports[1].hostPort", "twice");
    let probe =
        |probe: Value| workload(json!({"readinessProbe": probe, "ports": [{"port": 80, "name": "http"}]}));
    let at = |field: &str| format!("spec.readinessProbe{field}");
    refused(&probe(json!({})), &at(""), "must have httpGet or tcpSocket");
    refused(&probe(json!({"tcpSocket": {"port": "https"}})), &at(".tcpSocket.port"), "one of its TCP ports");
    refused(&probe(json!({"httpGet": {"port": "http", "path": "x"}})), &at(".httpGet.path"), "begin with /");
    refused(&probe(json!({"httpGet": {"port": 0}})), &at(".httpGet.port"), "1 to 65535");
    refused(
        &probe(json!({"tcpSocket": {"port": 80}, "periodSeconds": 0})),
        &at(".periodSeconds"),
        "1 to 3600",
    );
    let twice = json!({"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]});
    refused(&workload(twice), "spec.ports[1].name", "two ports");
}

#[test]
fn services_refuse_what_the_mesh_does_not_do() {
    let with = |field: &str, value: Value| {
        let mut spec = json!({"ports": [{"port": 80}]});
        spec[field] = value;
        service(spec)
    };
    refused(&with("type", json!("ExternalName")), "spec.type", "supported are ClusterIP, NodePort");
    refused(&with("externalName", json!("x.example")), "spec.externalName", "not supported");
    refused(&with("externalIPs", json!(["127.0.0.1"])), "spec.externalIPs[0]", "unicast");
    refused(&with("sessionAffinity", json!("Cookie")), "spec.sessionAffinity", "None or ClientIP");
    refused(&with("clusterIPs", json!(["10.0.0.1", "10.0.0.2"])), "spec.clusterIPs[1]", "same family");
    refused(&with("clusterIPs", json!(["10.0.0.1", "None"])), "spec.clusterIPs", "beside an address");
    refused(&with("ipFamilies", json!(["IPv5"])), "spec.ipFamilies[0]", "IPv4 or IPv6");
    refused(&with("ipFamilyPolicy", json!("Dual")), "spec.ipFamilyPolicy", "SingleStack, PreferDualStack");
    refused(
        &with("externalTrafficPolicy", json!("Local")),
        "spec.externalTrafficPolicy",
        "way in from outside",
    );
    refused(&with("internalTrafficPolicy", json!("Near")), "spec.internalTrafficPolicy", "Cluster or Local");
    refused(&with("loadBalancerIP", json!("192.0.2.1")), "spec.loadBalancerIP", "type LoadBalancer");
    refused(&with("loadBalancerSourceRanges", json!(["::/0"])), "spec.loadBalancerSourceRanges", "type Load");
    refused(&with("healthCheckNodePort", json!(30_000)), "spec.healthCheckNodePort", "externalTrafficPolicy");
    refused(
        &with("allocateLoadBalancerNodePorts", json!(true)),
        "spec.allocateLoadBalancerNodePorts",
        "type",
    );
    refused(
        &with("trafficDistribution", json!("PreferSameRack")),
        "spec.trafficDistribution",
        "must be PreferSameNode",
    );
    let affinity = |seconds: i64| {
        service(json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}))
    };
    for seconds in [0, 86_401] {
        refused(&affinity(seconds), "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "1 to 86400");
    }
    refused(
        &with("sessionAffinityConfig", json!({"clientIP": {}})),
        "spec.sessionAffinityConfig",
        "sessionAffinity ClientIP",
    );
    let at_nodes = |ports: Value| service(json!({"type": "NodePort", "ports": ports}));
    let ports = json!([{"port": 80, "nodePort": 80}]);
    refused(&at_nodes(ports), "spec.ports[0].nodePort", "30000 to 32767");
    let ports =
        json!([{"name": "a", "port": 80, "nodePort": 30_000}, {"name": "b", "port": 81, "nodePort": 30_000}]);
    refused(&at_nodes(ports), "spec.ports[1].nodePort", "twice");
    let headless = json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]});
    refused(&service(headless), "spec.clusterIP", "type NodePort");
    let mut direct = service(json!({"ports": [{"port": 80}]}));
    direct["metadata"]["annotations"] = json!({"isthmus.io/forwarding": "tunnel"});
    refused(&direct, "metadata.annotations[isthmus.io/forwarding]", "snat or dsr");
    for name in ["", "L7", "a.b", "dns"] {
        let mut led = service(json!({"ports": [{"port": 80}]}));
        led["metadata"]["annotations"] = json!({"isthmus.io/redirect": name});
        refused(&led, "metadata.annotations[isthmus.io/redirect]", "name of a proxy");
    }
    refused(&with("clusterIP", json!("x")), "spec.clusterIP", "IP address");
    refused(&with("ports", json!([])), "spec.ports", "required");
    refused(&with("ports", json!([{"port": 80}, {"port": 81}])), "spec.ports[0].name", "several ports");
    refused(&with("ports", json!([{"port": 80, "targetPort": "80"}])), "spec.ports[0].targetPort", "letter");
    refused(
        &with("ports", json!([{"port": 80, "nodePort": 30000}])),
        "spec.ports[0].nodePort",
        "type NodePort or LoadBalancer",
    );
    refused(
        &with("ports", json!([{"port": 80, "appProtocol": "smtp"}])),
        "spec.ports[0].appProtocol",
        "must be",
    );
    refused(&object("v1", "Service", Value::Null), "spec", "required");
}

#[test]
fn endpoint_slices_must_name_their_service_and_keep_to_their_address_type() {
    let slice = |address_type: &str, labels: Value, address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "x", "labels": labels}, "addressType": address_type,
            "endpoints": [{"addresses": [address]}], "ports": [{"port": 80}],
        })
    };
    let owner = || json!({"kubernetes.io/service-name": "pay"});
    refused(&slice("IPv4", json!({}), "10.0.0.1"), "metadata.labels[kubernetes.io/service-name]", "required");
    refused(&slice("FQDN", owner(), "a.example"), "addressType", "IPv4 or IPv6");
    let with = |field: &str, value: Value| {
        let mut slice = slice("IPv4", owner(), "10.0.0.1");
        slice["endpoints"][0][field] = value;
        slice
    };
    refused(&with("hostname", json!("A.b")), "endpoints[0].hostname", "must be");
    refused(&with("nodeName", json!("N1")), "endpoints[0].nodeName", "must be");
    refused(&with("zone", json!("-a")), "endpoints[0].zone", "must be");
    let hints = json!({"forZones": [{"name": "-"}]});
    refused(&with("hints", hints), "endpoints[0].hints.forZones[0].name", "must be");
    let hints = json!({"forNodes": [{"name": "N1"}]});
    refused(&with("hints", hints), "endpoints[0].hints.forNodes[0].name", "must be");
    let many: Vec<Value> = (0..9).map(|i| json!({"name": format!("n{i}")})).collect();
    refused(&with("hints", json!({"forNodes": many})), "endpoints[0].hints.forNodes", "8");
    let mut later = slice("IPv4", owner(), "10.0.0.1");
    later["metadata"]["annotations"] = json!({"isthmus.io/priority": "8"});
    refused(&later, "metadata.annotations[isthmus.io/priority]", "0 to 7");
    refused(&slice("IPv4", owner(), "fd00::1"), "endpoints[0].addresses[0]", "addressType");
    refused(&slice("IPv4", owner(), "169.254.1.1"), "endpoints[0].addresses[0]", "unicast");
}

#[test]
fn network_policies_with_bad_values_are_refused() {
    let ingress = |rule: Value| policy(json!({"podSelector": {}, "ingress": [rule]}));
    let block =
        |cidr: &str, except: Value| ingress(json!({"from": [{"ipBlock": {"cidr": cidr, "except": except}}]}));
    refused(&ingress(json!({"from": [{}]})), "spec.ingress[0].from[0]", "must have");
    refused(
        &ingress(json!({"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]})),
        "spec.ingress[0].from[0].ipBlock",
        "beside",
    );
    refused(&block("10.0.0.1/8", json!([])), "spec.ingress[0].from[0].ipBlock.cidr", "write 10.0.0.0/8");
    refused(&block("10.0.0.0/33", json!([])), "spec.ingress[0].from[0].ipBlock.cidr", "CIDR");
    refused(
        &block("10.0.0.0/8", json!(["11.0.0.0/16"])),
        "spec.ingress[0].from[0].ipBlock.except[0]",
        "inside",
    );
    refused(
        &block("10.0.0.0/8", json!(["10.0.0.0/8"])),
        "spec.ingress[0].from[0].ipBlock.except[0]",
        "inside",
    );
    let port = |port: Value| ingress(json!({"ports": [port]}));
    refused(
        &port(json!({"port": 80, "endPort": 79})),
        "spec.ingress[0].ports[0].endPort",
        "80 (port) or more",
    );
    refused(&port(json!({"port": "http", "endPort": 81})), "spec.ingress[0].ports[0].endPort", "named");
    refused(&port(json!({"endPort": 81})), "spec.ingress[0].ports[0].endPort", "needs a port");
    refused(&port(json!({"port": true})), "spec.ingress[0].ports[0].port", "port number or the name");
    refused(&policy(json!({"policyTypes": ["ingress"]})), "spec.policyTypes[0]", "Ingress or Egress");
    let holes: Vec<String> = (0..64).map(|i| format!("10.{i}.0.1/32")).collect();
    let ports: Vec<Value> = (1..=100).map(|p| json!({"port": p})).collect();
    let large = json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": holes}}], "ports": ports});
    refused(&ingress(large), "spec.ingress", "combinations of peers and ports");
    let expression = |e: Value| policy(json!({"podSelector": {"matchExpressions": [e]}}));
    refused(
        &expression(json!({"key": "a", "operator": "In"})),
        "spec.podSelector.matchExpressions[0].values",
        "required",
    );
    refused(
        &expression(json!({"key": "a", "operator": "Exists", "values": ["x"]})),
        "spec.podSelector.matchExpressions[0].values",
        "empty",
    );
    refused(
        &expression(json!({"key": "a", "operator": "Equals"})),
        "spec.podSelector.matchExpressions[0].operator",
        "In, NotIn",
    );
    refused(
        &policy(json!({"podSelector": {"matchLabels": {"pod-template-hash": "1"}}})),
        "spec.podSelector",
        "no part of its identity",
    );
}

#[test]
fn http_routes_with_bad_values_are_refused() {
    let path =
        |kind: &str, value: &str| route(json!({"matches": [{"path": {"type": kind, "value": value}}]}));
    let at = "spec.rules[0].matches[0].path.value";
    refused(&path("PathPrefix", "v1"), at, "begin with '/'");
    refused(&path("Exact", "/a/../b"), at, "must not contain");
    refused(&path("Exact", "/a%2Fb"), at, "must not contain");
    refused(&path("Exact", "/a b"), at, "percent-encode");
    refused(&path("Exact", "/a%zz"), at, "percent-encode");
    refused(&path("RegularExpression", "("), at, "unclosed group");
    refused(&path("RegularExpression", "a{1000}{1000}"), at, "size limit");
    // What RE2 would refuse, and with it every Envoy.
    refused(&path("RegularExpression", "/x{1001}"), at, "repeats more than 1000 times");
    refused(&path("RegularExpression", "/(x{40}){40}"), at, "nested repetitions multiplied");
    refused(&path("Glob", "/a"), "spec.rules[0].matches[0].path.type", "Exact, PathPrefix");
    let header =
        |name: &str, value: &str| route(json!({"matches": [{"headers": [{"name": name, "value": value}]}]}));
    refused(&header("a b", "x"), "spec.rules[0].matches[0].headers[0].name", "header name");
    refused(&header("a", "x\r\nb: c"), "spec.rules[0].matches[0].headers[0].value", "printable");
    let twice = json!({"matches": [{"headers": [{"name": "a", "value": "1"}, {"name": "A", "value": "2"}]}]});
    refused(&route(twice), "spec.rules[0].matches[0].headers[1].name", "twice");
    refused(&route(json!({"matches": [{"method": "get"}]})), "spec.rules[0].matches[0].method", "one of GET");
    refused(&route(json!({"timeouts": {"request": "1.5s"}})), "spec.rules[0].timeouts.request", "duration");
    refused(&route(json!({"timeouts": {"request": "0s"}})), "spec.rules[0].timeouts.request", "zero");
    let longer = json!({"timeouts": {"request": "1s", "backendRequest": "2s"}});
    refused(&route(longer), "spec.rules[0].timeouts.backendRequest", "exceed");
    let backend = |b: Value| route(json!({"backendRefs": [b]}));
    let at = |field: &str| format!("spec.rules[0].backendRefs[0].{field}");
    refused(&backend(json!({"name": "a"})), &at("port"), "required");
    refused(&backend(json!({"name": "a", "port": 1, "weight": 1_000_001})), &at("weight"), "1000000");
    refused(&backend(json!({"name": "a", "port": 1, "weight": -1})), &at("weight"), "1000000");
    refused(&backend(json!({"name": "a", "port": 1, "kind": "Pod"})), &at("kind"), "only Service");
    refused(&backend(json!({"name": "a", "port": 1, "namespace": "b"})), &at("namespace"), "ReferenceGrant");
    refused(&route(json!({"retry": {}})), "spec.rules[0].retry", "not supported");
}

#[test]
fn http_filters_that_no_data_plane_here_has_are_refused_by_name() {
    let filter = |f: Value| route(json!({"filters": [f]}));
    let at = |rest: &str| format!("spec.rules[0].filters[0].{rest}");
    for kind in ["RequestRedirect", "URLRewrite", "RequestMirror", "CORS", "ExtensionRef", "ExternalAuth"] {
        refused(&filter(json!({"type": kind})), &at("type"), "not supported");
    }
    let set = |name: &str, value: &str| {
        filter(json!({"type": "RequestHeaderModifier",
            "requestHeaderModifier": {"set": [{"name": name, "value": value}]}}))
    };
    refused(&set("Host", "x"), &at("requestHeaderModifier.set[0].name"), "can't be changed");
    refused(&set(":path", "x"), &at("requestHeaderModifier.set[0].name"), "header name");
    refused(
        &set("x-forwarded-client-cert", "x"),
        &at("requestHeaderModifier.set[0].name"),
        "can't be changed",
    );
    refused(&set("a", "\u{7}"), &at("requestHeaderModifier.set[0].value"), "printable");
    refused(&filter(json!({"type": "RequestHeaderModifier"})), &at("requestHeaderModifier"), "required");
    let mixed =
        json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {}, "responseHeaderModifier": {}});
    refused(&filter(mixed), &at("responseHeaderModifier"), "does not belong");
    let twice = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["a"]}});
    refused(&route(json!({"filters": [twice, twice]})), "spec.rules[0].filters[1].type", "once");
}

#[test]
fn routes_attach_to_services_of_their_own_namespace() {
    let parent = |p: Value| {
        object("gateway.networking.k8s.io/v1", "HTTPRoute", json!({"parentRefs": [p], "rules": []}))
    };
    refused(&parent(json!({"name": "gw"})), "spec.parentRefs[0].kind", "only Service");
    let other_group = json!({"group": "x.example", "kind": "Service", "name": "a"});
    refused(&parent(other_group), "spec.parentRefs[0].group", "must be");
    let elsewhere = json!({"kind": "Service", "name": "a", "namespace": "other"});
    refused(&parent(elsewhere), "spec.parentRefs[0].namespace", "in its Service's namespace");
    let section = json!({"kind": "Service", "name": "a", "sectionName": "http"});
    refused(&parent(section), "spec.parentRefs[0].sectionName", "not supported");
    let hosts = |h: &str| {
        object(
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            json!({"parentRefs": [{"kind": "Service", "name": "a"}], "hostnames": [h]}),
        )
    };
    for bad in ["A.example", "10.0.0.1", "a.example:80", "*", "a.*.example"] {
        refused(&hosts(bad), "spec.hostnames[0]", "DNS name");
    }
}

#[test]
fn a_sidecar_says_which_services_are_called_and_nothing_that_this_mesh_does_otherwise() {
    let sidecar = |spec: Value| object("networking.istio.io/v1", "Sidecar", spec);
    let with = |field: &str, value: Value| {
        let mut spec = json!({"egress": [{"hosts": ["./*"]}]});
        spec[field] = value;
        sidecar(spec)
    };
    refused(
        &object("networking.istio.io/v1alpha1", "Sidecar", json!({})),
        "apiVersion",
        "write networking.istio.io/v1",
    );
    refused(&sidecar(json!({})), "spec.egress", "required");
    refused(&with("egress", json!([])), "spec.egress", "required");
    refused(&with("ingress", json!([])), "spec.ingress", "not supported");
    refused(&with("inboundConnectionPool", json!({})), "spec.inboundConnectionPool", "not supported");
    refused(&with("workloadSelector", json!({})), "spec.workloadSelector.labels", "required");
    refused(
        &with("workloadSelector", json!({"labels": {"app": "*"}})),
        "spec.workloadSelector.labels[app]",
        "must be",
    );
    refused(
        &with("workloadSelector", json!({"matchLabels": {"app": "x"}})),
        "spec.workloadSelector.matchLabels",
        "unknown field",
    );
    let policy = |policy: Value| with("outboundTrafficPolicy", policy);
    let mode = "spec.outboundTrafficPolicy.mode";
    refused(&policy(json!({"mode": "REGISTRY_ONLY"})), mode, "only ALLOW_ANY is");
    let error = Object::parse(&policy(json!({}))).unwrap_err();
    assert_eq!(
        (error.path.as_str(), error.value.as_str()),
        (mode, "REGISTRY_ONLY"),
        "what Istio reads there"
    );
    refused(&policy(json!({"egressProxy": {}})), "spec.outboundTrafficPolicy.egressProxy", "not supported");
    let egress = |entry: Value| with("egress", json!([entry]));
    refused(
        &egress(json!({"hosts": ["./*"], "port": {"number": 80}})),
        "spec.egress[0].port",
        "not supported",
    );
    refused(&egress(json!({"hosts": ["./*"], "bind": "0.0.0.0"})), "spec.egress[0].bind", "not supported");
    refused(
        &egress(json!({"hosts": ["./*"], "captureMode": "NONE"})),
        "spec.egress[0].captureMode",
        "only DEFAULT is",
    );
    refused(&egress(json!({})), "spec.egress[0].hosts", "required");
    let two = json!([{"hosts": ["./*"]}, {"hosts": ["a/*"]}]);
    refused(&with("egress", two), "spec.egress[1]", "second entry");
    let hosts = |all: &[&str]| egress(json!({"hosts": all}));
    for bad in [
        "pay",
        "shop/",
        "/pay",
        "Shop/*",
        "a.b/*",
        "shop/Pay",
        "shop/*pay",
        "shop/*.",
        "shop/a.*",
        "shop/a/b",
        "shop/**",
    ] {
        refused(&hosts(&[bad]), "spec.egress[0].hosts[0]", "must be <namespace>/<DNS name>");
    }
    refused(&hosts(&["./*", "~/*"]), "spec.egress[0].hosts[1]", "no service at all");
    refused(&hosts(&["~/pay.shop"]), "spec.egress[0].hosts[0]", "no service at all");
    refused(&hosts(&["a/*", "b/*", "a/*"]), "spec.egress[0].hosts[2]", "twice");
    let many: Vec<String> = (0..=1000).map(|n| format!("ns{n}/*")).collect();
    refused(&egress(json!({"hosts": many})), "spec.egress[0].hosts", "at most 1000");
}

#[test]
fn an_annotation_that_says_who_may_know_of_a_service_must_make_sense() {
    let exported = |text: &str| {
        let mut value = service(json!({"ports": [{"port": 80}]}));
        value["metadata"]["annotations"] = json!({"networking.istio.io/exportTo": text});
        value
    };
    let at = "metadata.annotations[networking.istio.io/exportTo]";
    refused(&exported(""), at, "must be '.'");
    refused(&exported("a,"), at, "must be '.'");
    refused(&exported("Bank"), at, "must be '.'");
    refused(&exported("shop,."), at, "names namespace shop twice");
    refused(&exported("*,bank"), at, "beside others");
    refused(&exported("., ~"), at, "beside others");
    let many: Vec<String> = (0..=100).map(|n| format!("ns{n}")).collect();
    refused(&exported(&many.join(",")), at, "at most 100");
}

#[test]
fn an_annotation_that_says_whether_calls_may_overflow_must_make_sense() {
    let with = |text: &str| {
        let mut value = service(json!({"ports": [{"port": 80}]}));
        value["metadata"]["annotations"] = json!({"isthmus.io/overflow": text});
        value
    };
    for text in ["", "ON", "yes"] {
        refused(&with(text), "metadata.annotations[isthmus.io/overflow]", "must be 'on' or 'off'");
    }
    let may = |text: &str| match Object::parse(&with(text)) {
        Ok(Object::Service(service)) => service.meta.may_overflow(),
        other => panic!("{other:?}"),
    };
    assert_eq!((may("on"), may("off")), (true, false));
}

#[test]
fn objects_that_are_too_large_or_too_deep_are_refused() {
    let mut large = workload(json!({}));
    large["metadata"]["annotations"] = json!({"note": "x".repeat(MAX_OBJECT_BYTES)});
    refused(&large, "", "at most 262144");
    let mut deep = json!(1);
    for _ in 0..200 {
        deep = json!([deep]);
    }
    refused(&workload(json!({"ports": deep})), "", "nested deeper");
    let ports: Vec<Value> = (1..=65).map(|p| json!({"port": p})).collect();
    refused(&workload(json!({"ports": ports})), "spec.ports", "at most 64");
}

#[test]
fn control_characters_and_long_values_do_not_reach_the_terminal() {
    let error =
        Object::parse(&workload(json!({"proxy": format!("\u{1b}[31m{}", "x".repeat(500))}))).unwrap_err();
    assert!(!error.to_string().contains('\u{1b}'));
    assert!(error.value.chars().count() <= 65);
}
