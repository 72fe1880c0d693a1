//! What is printed can be applied again.

use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn round_trips(value: &Value) -> Object {
    let object = Object::parse(value).unwrap_or_else(|error| panic!("{error}\n{value:#}"));
    let printed = object.to_json();
    assert_eq!(Object::parse(&printed).unwrap_or_else(|error| panic!("{error}\n{printed:#}")), object);
    // The store keeps objects in serde's own form.
    let stored = serde_json::to_string(&object).unwrap();
    assert_eq!(serde_json::from_str::<Object>(&stored).unwrap(), object);
    object
}

#[test]
fn what_kubernetes_prints_is_accepted() {
    let printed = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "pay", "namespace": "shop", "uid": "6c2…", "creationTimestamp": "2026-01-01T00:00:00Z",
            "resourceVersion": "42", "generation": 3, "managedFields": [{"manager": "kubectl"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}\n"},
            "ownerReferences": [], "finalizers": null,
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.101.0.9", "clusterIPs": ["10.101.0.9"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None", "selector": {"app": "pay"},
            "ports": [{"name": "grpc", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    });
    let Object::Service(service) = round_trips(&printed) else { panic!() };
    assert_eq!(service.meta.resource_version, Some(42));
    assert_eq!(service.ports[0].app_protocol, AppProtocol::Grpc, "from the port's name");
    assert_eq!(service.cluster_ip, Some("10.101.0.9".parse().unwrap()));
    let Object::Service(balanced) = round_trips(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "pay", "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.101.0.9", "clusterIPs": ["10.101.0.9", "fd00::9"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "allocateLoadBalancerNodePorts": true, "externalTrafficPolicy": "Local", "healthCheckNodePort": 31_000,
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10_800}},
            "ports": [{"name": "http", "port": 80, "nodePort": 30_080, "protocol": "TCP", "targetPort": 8080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.4", "ipMode": "VIP"}, {"hostname": "a.example"}]}},
    })) else {
        panic!()
    };
    let exposure = &balanced.exposure;
    assert_eq!((exposure.kind, exposure.affinity_seconds), (ServiceType::LoadBalancer, Some(10_800)));
    assert_eq!(exposure.load_balancer_ips().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["203.0.113.4"]);
    assert!(exposure.wants_node_ports() && exposure.wants_health_port());
    round_trips(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "pay-1", "generateName": "pay-", "labels": {"kubernetes.io/service-name": "pay"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
                       "nodeName": "n1", "zone": "a", "targetRef": {"kind": "Pod"}, "hostname": null}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}],
    }));
    round_trips(&json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport",
        "metadata": {"name": "pay", "namespace": "shop"}, "status": {"conditions": []},
    }));
}

#[test]
fn a_sidecar_as_istio_documents_it_is_accepted_in_all_its_versions() {
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let object = round_trips(&json!({
            "apiVersion": format!("networking.istio.io/{version}"), "kind": "Sidecar",
            "metadata": {"name": "ratings", "namespace": "prod-us1"},
            "spec": {
                "workloadSelector": {"labels": {"app": "ratings"}},
                "outboundTrafficPolicy": {"mode": "ALLOW_ANY"},
                "egress": [{"captureMode": "DEFAULT",
                            "hosts": ["./*", "istio-system/*", "*/*.example.com", "prod-apis/api.prod-apis.svc.mesh.local"]}],
            },
        }));
        assert_eq!(object.to_json()["apiVersion"], "networking.istio.io/v1");
        let Object::Sidecar(sidecar) = object else { panic!() };
        assert_eq!(sidecar.hosts.len(), 4);
        assert_eq!(sidecar.hosts[2].pattern, HostPattern::Suffix(".example.com".to_owned()));
    }
    let nothing = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "default"},
        "spec": {"egress": [{"hosts": ["~/*"]}]},
    });
    let Object::Sidecar(sidecar) = round_trips(&nothing) else { panic!() };
    assert!(sidecar.hosts.is_empty() && sidecar.workloads.is_empty());
}

#[test]
fn who_may_know_of_a_service_is_read_from_istios_annotation() {
    let visibility = |text: &str| {
        let Object::Service(service) = round_trips(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "pay", "namespace": "shop", "annotations": {EXPORT_TO_ANNOTATION: text}},
            "spec": {"ports": [{"port": 80}]},
        })) else {
            panic!()
        };
        service.visibility
    };
    let only = |names: &[&str]| Visibility::Only(names.iter().map(ToString::to_string).collect());
    assert_eq!(visibility("*"), Visibility::Everywhere);
    assert_eq!(visibility("~"), only(&[]));
    assert_eq!(visibility(".,bank , audit"), only(&["audit", "bank", "shop"]));
    assert!(visibility(".").includes("shop") && !visibility(".").includes("bank"));
}

#[test]
fn a_service_that_was_stored_before_it_could_be_hidden_is_visible_everywhere() {
    let service = json!({"kind": "Service", "meta": {"name": "shop/pay", "labels": {}, "annotations": {}, "resource_version": null},
        "selector": {}, "ports": [], "cluster_ip": null, "headless": false});
    let Object::Service(service) = serde_json::from_value(service).unwrap() else { panic!() };
    assert!(service.visibility.is_everywhere());
    assert!(service.exposure.is_default());
    let slice = json!({"kind": "EndpointSlice", "meta": {"name": "shop/pay-1", "labels": {}, "annotations": {}, "resource_version": null},
        "service": "pay", "ports": [], "endpoints": [{"addresses": ["10.0.0.1"], "ready": true}]});
    let Object::EndpointSlice(slice) = serde_json::from_value(slice).unwrap() else { panic!() };
    assert_eq!(slice.endpoints, [SliceEndpoint::plain(vec!["10.0.0.1".parse().unwrap()], true)]);
}

#[test]
fn defaults_are_kubernetes_defaults() {
    let Object::Workload(workload) =
        round_trips(&json!({"apiVersion": "isthmus.io/v1", "kind": "Workload", "metadata": {"name": "a"}}))
    else {
        panic!()
    };
    assert_eq!(workload.meta.name.to_string(), "default/a");
    assert_eq!((workload.service_account.as_str(), workload.proxy), ("default", ProxyMode::None));
    let policy = |spec: Value| {
        let value = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                           "metadata": {"name": "a"}, "spec": spec});
        let Object::NetworkPolicy(policy) = round_trips(&value) else { panic!() };
        (policy.ingress_selected, policy.egress_selected)
    };
    assert_eq!(policy(json!({"podSelector": {}})), (true, false));
    assert_eq!(policy(json!({"podSelector": {}, "egress": [{}]})), (true, true));
    assert_eq!(policy(json!({"policyTypes": ["Egress"]})), (false, true));
    let Object::HttpRoute(route) = round_trips(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "a"},
        "spec": {"parentRefs": [{"group": "core", "kind": "Service", "name": "pay"}],
                 "rules": [{"matches": [{"path": {"value": "/v1/"}}], "backendRefs": [{"name": "pay", "port": 80}]}]},
    })) else {
        panic!()
    };
    assert_eq!(route.rules[0].matches[0].path, PathMatch::Prefix("/v1".to_owned()));
    assert_eq!(route.rules[0].backends[0].weight, 1);
}

// ---- generated objects ------------------------------------------------------------------------------------

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([-a-z0-9]{0,6}[a-z0-9])?"
}

fn labels() -> impl Strategy<Value = Labels> {
    let key = prop_oneof!["[a-z]{1,6}", "[a-z]{1,4}\\.example/[A-Za-z0-9]([-_.A-Za-z0-9]{0,4}[A-Za-z0-9])?"];
    prop::collection::btree_map(key, "([A-Za-z0-9]([-_.A-Za-z0-9]{0,4}[A-Za-z0-9])?)?", 0..4)
}

fn meta() -> impl Strategy<Value = Meta> {
    let annotations = prop::collection::btree_map("[a-z]{1,6}", "\\PC{0,8}", 0..3);
    (name(), name(), labels(), annotations, any::<Option<u64>>()).prop_map(
        |(namespace, name, labels, annotations, resource_version)| Meta {
            name: NamespacedName::new(namespace, name),
            labels,
            annotations,
            resource_version,
        },
    )
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn app_protocol() -> impl Strategy<Value = AppProtocol> {
    prop::sample::select(vec![AppProtocol::Http, AppProtocol::Http2, AppProtocol::Grpc, AppProtocol::Tcp])
}

fn port_ref() -> impl Strategy<Value = PortRef> {
    prop_oneof![(1..=u16::MAX).prop_map(PortRef::Number), "[a-z]{1,15}".prop_map(PortRef::Name)]
}

fn workload() -> impl Strategy<Value = Object> {
    let port = (1..=u16::MAX, protocol(), prop::option::of(app_protocol()));
    let ports = prop::collection::vec(port, 0..4).prop_map(|ports| {
        let mut out: Vec<WorkloadPort> = Vec::new();
        for (i, (port, protocol, app_protocol)) in ports.into_iter().enumerate() {
            if !out.iter().any(|p| (p.port, p.protocol) == (port, protocol)) {
                let name = (i % 2 == 0).then(|| format!("p{i}"));
                let host_port = (port % 3 == 0)
                    .then(|| HostPort { port, ip: (port % 2 == 0).then(|| [10, 0, 0, 7].into()) });
                out.push(WorkloadPort { name, port, protocol, app_protocol, host_port });
            }
        }
        out
    });
    let proxy = prop::sample::select(vec![ProxyMode::None, ProxyMode::Sidecar, ProxyMode::Gateway]);
    (meta(), name(), proxy, ports, any::<[u8; 3]>()).prop_map(|(meta, service_account, proxy, ports, ip)| {
        let address =
            (proxy == ProxyMode::Gateway || ip[0] % 2 == 0).then(|| [10, ip[0], ip[1], ip[2]].into());
        let probe = |http_path: Option<&str>| Readiness {
            http_path: http_path.map(ToOwned::to_owned),
            port: PortRef::Number(1 + u16::from(ip[1])),
            period_seconds: 1 + u32::from(ip[2]),
            failures: 3,
        };
        let readiness =
            [None, Some(probe(None)), Some(probe(Some("/ready?full")))][usize::from(ip[0]) % 3].clone();
        Object::Workload(Workload { meta, service_account, proxy, ports, address, readiness })
    })
}

fn service() -> impl Strategy<Value = Object> {
    let ports = prop::collection::btree_map(1..=u16::MAX, (port_ref(), protocol(), app_protocol()), 1..4);
    let told = prop::option::of(prop::collection::btree_set(name(), 0..3));
    let seed = any::<[u8; 4]>();
    (meta(), labels(), ports, any::<Option<u8>>(), any::<bool>(), told, seed).prop_map(
        |(mut meta, selector, ports, ip, headless, told, seed)| {
            let visibility = told.map_or(Visibility::Everywhere, Visibility::Only);
            if !visibility.is_everywhere() {
                let words: Vec<&str> = visibility.only().collect();
                let text = if words.is_empty() { "~".to_owned() } else { words.join(", ") };
                meta.annotations.insert(EXPORT_TO_ANNOTATION.to_owned(), text);
            }
            let mut ports: Vec<ServicePort> = ports
                .into_iter()
                .map(|(port, (target_port, protocol, app_protocol))| ServicePort {
                    name: format!("p{port}"),
                    port,
                    target_port,
                    protocol,
                    app_protocol,
                    node_port: None,
                })
                .collect();
            let cluster_ip = ip.filter(|_| !headless).map(|ip| [10, 0, 0, ip].into());
            let exposure = exposure(&mut ports, cluster_ip, headless, seed);
            if exposure.dsr {
                meta.annotations.insert(FORWARDING_ANNOTATION.to_owned(), "dsr".to_owned());
            }
            if let Some(proxy) = &exposure.redirect {
                meta.annotations.insert(REDIRECT_ANNOTATION.to_owned(), proxy.clone());
            }
            Object::Service(Service { meta, selector, ports, cluster_ip, headless, visibility, exposure })
        },
    )
}

/// Whatever the seed makes of it that a service may say.
fn exposure(ports: &mut [ServicePort], ip: Option<IpAddr>, headless: bool, seed: [u8; 4]) -> Exposure {
    let bit = |i: usize| seed[i / 8] >> (i % 8) & 1 == 1;
    let kinds = [ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer];
    let kind = if headless { ServiceType::ClusterIp } else { kinds[usize::from(seed[3]) % 3] };
    let balanced = kind == ServiceType::LoadBalancer;
    let external_ips: Vec<IpAddr> = if bit(0) { vec!["203.0.113.9".parse().unwrap()] } else { Vec::new() };
    let outside = kind != ServiceType::ClusterIp || !external_ips.is_empty();
    let external_local = outside && bit(1);
    if kind != ServiceType::ClusterIp && bit(2) {
        ports.iter_mut().zip(30_000..).for_each(|(port, number)| port.node_port = Some(number));
    }
    let second_ip = ip.filter(|_| bit(3)).map(|_| "fd00::9".parse().unwrap());
    Exposure {
        kind,
        external_ips,
        load_balancer_ip: (balanced && bit(4)).then(|| "203.0.113.10".parse().unwrap()),
        ingress_ips: if balanced && bit(5) { vec!["203.0.113.11".parse().unwrap()] } else { Vec::new() },
        source_ranges: if balanced && bit(6) { vec!["198.51.100.0/24".parse().unwrap()] } else { Vec::new() },
        without_node_ports: balanced && bit(7),
        affinity_seconds: bit(8).then(|| 1 + u32::from(seed[2])),
        internal_local: bit(9),
        external_local,
        health_check_node_port: (balanced && external_local && bit(10)).then_some(32_000),
        families: Families {
            listed: if bit(11) { vec![IpFamily::V4] } else { Vec::new() },
            policy: match second_ip {
                Some(_) => FamilyPolicy::RequireDualStack,
                None if bit(12) => FamilyPolicy::PreferDualStack,
                None => FamilyPolicy::SingleStack,
            },
        },
        second_ip,
        publish_not_ready: bit(13),
        same_zone_first: bit(14),
        same_node_first: bit(14) && bit(17),
        dsr: bit(15),
        redirect: bit(16).then(|| "l7".to_owned()),
    }
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let expression = ("[a-z]{1,4}", 0..4_u8, prop::collection::vec("[a-z]{1,3}", 1..3)).prop_map(
        |(key, operator, values)| match operator {
            0 => LabelExpression { key, operator: LabelOperator::In, values },
            1 => LabelExpression { key, operator: LabelOperator::NotIn, values },
            2 => LabelExpression { key, operator: LabelOperator::Exists, values: Vec::new() },
            _ => LabelExpression { key, operator: LabelOperator::DoesNotExist, values: Vec::new() },
        },
    );
    (labels(), prop::collection::vec(expression, 0..3))
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
}

fn policy_rule() -> impl Strategy<Value = NetworkPolicyRule> {
    let block = (any::<[u8; 4]>(), 0..=24_u8).prop_map(|(ip, length)| {
        let cidr = ipnet::IpNet::new(ip.into(), length).unwrap().trunc();
        let except = cidr.subnets(length + 2).unwrap().take(usize::from(ip[0] % 3)).collect();
        NetworkPolicyPeer::IpBlock { cidr, except }
    });
    let pods = (prop::option::of(selector()), prop::option::of(selector()))
        .prop_filter("at least one", |(pod, namespace)| pod.is_some() || namespace.is_some())
        .prop_map(|(pod, namespace)| NetworkPolicyPeer::Pods { pod, namespace });
    let port =
        (protocol(), prop::option::of(port_ref()), any::<Option<u16>>()).prop_map(|(protocol, port, end)| {
            let end_port = match &port {
                Some(PortRef::Number(first)) => end.map(|end| end.max(*first)),
                _ => None,
            };
            NetworkPolicyPort { protocol, port, end_port }
        });
    (prop::collection::vec(prop_oneof![block, pods], 0..3), prop::collection::vec(port, 0..3))
        .prop_map(|(peers, ports)| NetworkPolicyRule { peers, ports })
}

fn policy() -> impl Strategy<Value = Object> {
    let rules = || prop::collection::vec(policy_rule(), 0..3);
    (meta(), selector(), 0..3_u8, rules(), rules()).prop_map(
        |(meta, pod_selector, types, ingress, egress)| {
            Object::NetworkPolicy(NetworkPolicy {
                meta,
                pod_selector,
                ingress_selected: types != 1,
                egress_selected: types != 0,
                ingress,
                egress,
            })
        },
    )
}

fn route() -> impl Strategy<Value = Object> {
    let path = prop_oneof![
        "/([a-z]{1,5}(/[a-z]{1,3})?/?)?".prop_map(PathMatch::Exact),
        "/[a-z]{1,5}(/[a-z]{1,3})?".prop_map(PathMatch::Prefix),
        Just(PathMatch::Prefix("/".to_owned())),
        "/[a-z]{0,4}\\.\\*".prop_map(PathMatch::Regex),
    ];
    let conditions = || {
        prop::collection::btree_map("[a-z]{1,5}", ("[!-~]{1,6}", any::<bool>()), 0..3).prop_map(|all| {
            all.into_iter()
                .map(|(name, (text, exact))| HeaderMatch {
                    name,
                    value: if exact {
                        ValueMatch::Exact(text)
                    } else {
                        ValueMatch::Regex(regex::escape(&text))
                    },
                })
                .collect::<Vec<_>>()
        })
    };
    let method = prop::option::of(Just("GET".to_owned()));
    let one_match = (path, conditions(), conditions(), method)
        .prop_map(|(path, headers, query, method)| HttpRouteMatch { path, headers, query, method });
    let filters = prop::collection::vec(("x-[a-z]{1,4}", "[!-~]{1,6}"), 0..2).prop_map(|set| {
        vec![
            HttpRouteFilter::RequestHeaders { set, add: Vec::new(), remove: vec!["x".to_owned()] },
            HttpRouteFilter::ResponseHeaders { set: Vec::new(), add: vec![], remove: Vec::new() },
        ]
    });
    let timeouts = (prop::option::of(1..9_000_000_u64), any::<bool>());
    let rule = (
        prop::collection::vec(one_match, 1..4),
        filters,
        prop::collection::vec((name(), 1..=u16::MAX, 0..=1_000_000_u32), 0..3),
        timeouts,
    );
    let hostname = prop_oneof!["[a-z]{1,4}\\.example", "\\*\\.[a-z]{1,4}\\.example"];
    (
        meta(),
        prop::collection::btree_set((name(), any::<Option<u8>>()), 1..3),
        prop::collection::vec(hostname, 0..3),
        prop::collection::vec(rule, 1..4),
    )
        .prop_map(|(meta, parents, hostnames, rules)| {
            let namespace = meta.name.namespace.clone();
            let parents = parents
                .into_iter()
                .map(|(name, port)| ParentRef {
                    service: NamespacedName::new(namespace.clone(), name),
                    port: port.map(|p| u16::from(p) + 1),
                })
                .collect();
            let rules = rules
                .into_iter()
                .map(|(matches, mut filters, backends, (timeout, both))| {
                    if let HttpRouteFilter::RequestHeaders { set, .. } = &mut filters[0] {
                        set.dedup_by(|a, b| a.0 == b.0);
                    }
                    HttpRouteRule {
                        matches,
                        filters,
                        backends: backends
                            .into_iter()
                            .map(|(name, port, weight)| BackendRef {
                                service: NamespacedName::new(namespace.clone(), name),
                                port,
                                weight,
                            })
                            .collect(),
                        request_timeout_ms: timeout,
                        backend_timeout_ms: timeout.filter(|_| both),
                    }
                })
                .collect();
            Object::HttpRoute(HttpRoute { meta, parents, hostnames, rules })
        })
}

fn slice() -> impl Strategy<Value = Object> {
    let endpoint = (prop::collection::vec(any::<[u8; 3]>(), 1..3), any::<bool>());
    (
        meta(),
        name(),
        prop::collection::btree_map(name(), (1..=u16::MAX, protocol()), 0..3),
        prop::collection::vec(endpoint, 0..3),
        any::<bool>(),
    )
        .prop_map(|(mut meta, service, ports, endpoints, v6)| {
            meta.labels.insert(SERVICE_NAME_LABEL.to_owned(), service.clone());
            let ip = |b: [u8; 3]| match v6 {
                true => [0xfd00, 0, 0, 0, 0, u16::from(b[0]), u16::from(b[1]), u16::from(b[2])].into(),
                false => [10, b[0], b[1], b[2]].into(),
            };
            let priority = u8::try_from(endpoints.len() % 3).unwrap();
            if priority > 0 {
                meta.annotations.insert(PRIORITY_ANNOTATION.to_owned(), priority.to_string());
            }
            Object::EndpointSlice(EndpointSlice {
                priority,
                meta,
                service,
                ports: ports
                    .into_iter()
                    .map(|(name, (port, protocol))| SlicePort { name, port, protocol })
                    .collect(),
                endpoints: endpoints
                    .into_iter()
                    .map(|(ips, ready)| {
                        let plain = SliceEndpoint::plain(ips.iter().copied().map(ip).collect(), ready);
                        match ips.len() {
                            1 => plain,
                            _ => SliceEndpoint {
                                serving: Some(!ready),
                                terminating: !ready,
                                hostname: Some("pay-0".to_owned()),
                                node: Some("n1.example".to_owned()),
                                zone: Some("a".to_owned()),
                                hint_zones: vec!["a".to_owned(), "b".to_owned()],
                                hint_nodes: vec!["n1.example".to_owned()],
                                ..plain
                            },
                        }
                    })
                    .collect(),
            })
        })
}

fn sidecar() -> impl Strategy<Value = Object> {
    let namespace = prop_oneof![
        Just(EgressNamespace::Own),
        Just(EgressNamespace::Any),
        name().prop_map(EgressNamespace::Named),
    ];
    let pattern = prop_oneof![
        Just(HostPattern::Any),
        "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}".prop_map(HostPattern::Exact),
        "(\\.[a-z]{1,4}){1,3}".prop_map(HostPattern::Suffix),
    ];
    let host = (namespace, pattern).prop_map(|(namespace, pattern)| EgressHost { namespace, pattern });
    (meta(), labels(), prop::collection::vec(host, 0..5)).prop_map(|(meta, workloads, all)| {
        let mut hosts: Vec<EgressHost> = Vec::new();
        for host in all {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        Object::Sidecar(Sidecar { meta, workloads, hosts })
    })
}

fn any_object() -> impl Strategy<Value = Object> {
    let export = meta().prop_map(|meta| Object::ServiceExport(ServiceExport { meta }));
    prop_oneof![workload(), service(), slice(), policy(), route(), export, sidecar()]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(
                prop::sample::select(vec![
                    "spec", "ports", "port", "name", "from", "ingress", "rules", "matches", "egress", "hosts"
                ])
                .prop_map(str::to_owned),
                inner,
                0..4
            )
            .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Replaces the n-th value below `value`, depth first.
fn replace(value: &mut Value, n: &mut usize, with: &Value) {
    if *n == 0 {
        *value = with.clone();
    }
    *n = n.wrapping_sub(1);
    match value {
        Value::Object(map) => map.values_mut().for_each(|v| replace(v, n, with)),
        Value::Array(list) => list.iter_mut().for_each(|v| replace(v, n, with)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_object_that_is_printed_reads_back_as_itself(object in any_object()) {
        let printed = object.to_json();
        prop_assert_eq!(Object::parse(&printed).map_err(|e| TestCaseError::fail(e.to_string()))?, object);
    }

    #[test]
    fn whatever_stands_in_an_object_the_parser_answers(object in any_object(), n in 0..40_usize, junk in any_json()) {
        let mut value = object.to_json();
        replace(&mut value, &mut n.clone(), &junk);
        match Object::parse(&value) {
            Ok(parsed) => prop_assert_eq!(Object::parse(&parsed.to_json()).unwrap(), parsed),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
