//! Which columns the objects of a kind have, and what stands in them.

use mesh_model::resource::Kind;
use serde_json::Value;

use super::{
    age::age,
    table::{Cell, Table},
};
use crate::cli::{
    object::{self, text},
    out::{Paint, Tone},
};

/// How objects are to be listed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// A first column with the namespace.
    pub(crate) namespaces: bool,
    /// Names with their kind before them, where kinds are mixed.
    pub(crate) kinds: bool,
    pub(crate) wide: bool,
    pub(crate) headings: bool,
    pub(crate) paint: Paint,
    /// Seconds since 1970.
    pub(crate) now: u64,
}

/// The empty table of a kind.
pub(crate) fn table(kind: Kind, style: Style) -> Table {
    let namespace = style.namespaces.then_some("NAMESPACE");
    let own: &[&str] = match kind {
        Kind::Workload => &["READY", "PROXY", "ADDRESS", "NODE"],
        Kind::Service => &["CLUSTER-IP", "PORT(S)", "ENDPOINTS", "EXPORTED", "IMPORTED-FROM"],
        Kind::EndpointSlice => &["ADDRESSTYPE", "PORTS", "ENDPOINTS"],
        Kind::NetworkPolicy => &["POD-SELECTOR", "SELECTED"],
        Kind::HttpRoute => &["HOSTNAMES", "PARENTS", "ACCEPTED"],
        Kind::ServiceExport => &["VALID"],
        Kind::Sidecar => &["SELECTOR", "WORKLOADS"],
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
            &["ENDPOINT-SELECTOR", "SELECTED"]
        }
        Kind::ClusterNetworkPolicy => &["TIER", "PRIORITY", "SELECTED"],
        Kind::Namespace => &["LABELS"],
    };
    let wide: &[&str] = match (style.wide, kind) {
        (true, Kind::Workload) => &["SERVICE-ACCOUNT", "PORTS", "IDENTITY", "SPIFFE-ID"],
        (true, Kind::Service) => &["SELECTOR"],
        (true, Kind::NetworkPolicy) => &["POLICY-TYPES"],
        (true, Kind::HttpRoute) => &["BACKENDS"],
        (true, Kind::ServiceExport) => &["MESSAGE"],
        (true, Kind::Sidecar) => &["HOSTS"],
        (true, Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy) => &["SAYS"],
        (true, Kind::ClusterNetworkPolicy) => &["RULES"],
        (true, Kind::EndpointSlice | Kind::Namespace) | (false, _) => &[],
    };
    let headings = namespace.into_iter().chain(["NAME"]).chain(own.iter().copied()).chain(["AGE"]);
    Table::new(headings.chain(wide.iter().copied()))
}

/// One object's row in the table of its kind.
pub(crate) fn row(kind: Kind, object: &Value, style: Style) -> Vec<Cell> {
    let name = object::name(object);
    let name = if style.kinds { object::reference(kind.as_str(), name) } else { name.to_owned() };
    let mut cells: Vec<Cell> = Vec::new();
    if style.namespaces {
        cells.push(object::namespace(object).into());
    }
    cells.push(name.into());
    let (own, wide) = match kind {
        Kind::Workload => workload(object),
        Kind::Service => service(object),
        Kind::EndpointSlice => endpoint_slice(object),
        Kind::NetworkPolicy => network_policy(object),
        Kind::HttpRoute => http_route(object),
        Kind::ServiceExport => service_export(object),
        Kind::Sidecar => sidecar(object),
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => cilium_policy(object),
        Kind::ClusterNetworkPolicy => cluster_policy(object),
        Kind::Namespace => namespace(object),
    };
    cells.extend(own);
    cells.push(age(object::created_unix(object), style.now).into());
    if style.wide {
        cells.extend(wide);
    }
    cells
}

/// The objects of one kind.
pub(crate) fn render(kind: Kind, objects: &[Value], style: Style) -> String {
    let mut table = table(kind, style);
    for object in objects {
        table.row(row(kind, object, style));
    }
    table.render(style.headings, style.paint)
}

type Cells = (Vec<Cell>, Vec<Cell>);

fn workload(o: &Value) -> Cells {
    let ready = match o.pointer("/status/ready").and_then(Value::as_bool) {
        Some(true) => Cell::toned("True", Tone::Good),
        Some(false) => Cell::toned("False", Tone::Warning),
        None => Cell::toned("Unknown", Tone::Faint),
    };
    let proxy = or(text(o, "/spec/proxy"), "none");
    let addresses = texts(o.pointer("/status/addresses"));
    let address =
        if addresses.is_empty() { text(o, "/spec/address").to_owned() } else { addresses.join(",") };
    let own = vec![ready, proxy.into(), address.into(), text(o, "/status/node").into()];
    let account = or(text(o, "/spec/serviceAccount"), "default");
    let ports = ports(o, |p| format!("{}/{}", number(&p["port"]), or(text(p, "/protocol"), "TCP")));
    let identity = o.pointer("/status/identity").map(number).unwrap_or_default();
    (own, vec![account.into(), ports.into(), identity.into(), text(o, "/status/spiffeId").into()])
}

fn service(o: &Value) -> Cells {
    let address = or(text(o, "/status/virtualIP"), text(o, "/spec/clusterIP"));
    let ports = ports(o, |p| format!("{}/{}", number(&p["port"]), or(text(p, "/protocol"), "TCP")));
    let endpoints = items(o.pointer("/status/endpoints"));
    // One endpoint of several ports counts once.
    let hosts = |only_ready: bool| {
        let mut hosts: Vec<_> = endpoints
            .iter()
            .filter(|e| !only_ready || e["ready"] == true)
            .map(|e| (text(e, "/cluster"), text(e, "/address").rsplit_once(':').map_or("", |(host, _)| host)))
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts.len()
    };
    let (ready, all) = (hosts(true), hosts(false));
    let tone = if ready == 0 { Tone::Warning } else { Tone::Plain };
    let exported = o.pointer("/status/exported").and_then(Value::as_bool).unwrap_or(false);
    let own = vec![
        address.into(),
        ports.into(),
        Cell::toned(format!("{ready}/{all}"), tone),
        if exported { "true" } else { "false" }.into(),
        texts(o.pointer("/status/importedFrom")).join(",").into(),
    ];
    (own, vec![labels(o.pointer("/spec/selector")).into()])
}

fn endpoint_slice(o: &Value) -> Cells {
    let ports: Vec<_> = items(o.get("ports")).iter().map(|p| number(&p["port"])).collect();
    let addresses: Vec<_> =
        items(o.get("endpoints")).iter().flat_map(|e| texts(e.get("addresses"))).collect();
    let shown = match addresses.len() {
        0..=3 => addresses.join(","),
        more => format!("{} + {} more...", addresses[..3].join(","), more - 3),
    };
    (vec![or(text(o, "/addressType"), "IPv4").into(), ports.join(",").into(), shown.into()], Vec::new())
}

fn network_policy(o: &Value) -> Cells {
    let selected = o.pointer("/status/selectedWorkloads").map(number).unwrap_or_default();
    let own = vec![selector(o.pointer("/spec/podSelector")).into(), selected.into()];
    (own, vec![texts(o.pointer("/spec/policyTypes")).join(",").into()])
}

fn cilium_policy(o: &Value) -> Cells {
    let rules: Vec<&Value> = o.get("spec").into_iter().chain(items(o.get("specs"))).collect();
    let selectors: Vec<_> = rules.iter().map(|rule| selector(rule.get("endpointSelector"))).collect();
    let selected = o.pointer("/status/selectedWorkloads").map(number).unwrap_or_default();
    let says = ["ingress", "ingressDeny", "egress", "egressDeny"]
        .into_iter()
        .filter(|list| rules.iter().any(|rule| !items(rule.get(*list)).is_empty()));
    let says: Vec<_> = says.collect();
    (vec![selectors.join("; ").into(), selected.into()], vec![says.join(",").into()])
}

fn cluster_policy(o: &Value) -> Cells {
    let selected = o.pointer("/status/selectedWorkloads").map(number).unwrap_or_default();
    let priority = o.pointer("/spec/priority").map(number).unwrap_or_default();
    let own = vec![text(o, "/spec/tier").into(), priority.into(), selected.into()];
    let rules = ["ingress", "egress"].map(|list| {
        let rules = items(o.pointer(&format!("/spec/{list}"))).iter();
        rules.map(|rule| format!("{list}:{}", text(rule, "/action"))).collect::<Vec<_>>()
    });
    (own, vec![rules.concat().join(",").into()])
}

fn http_route(o: &Value) -> Cells {
    let hostnames = or(&texts(o.pointer("/spec/hostnames")).join(","), "*");
    let parents: Vec<_> = items(o.pointer("/spec/parentRefs"))
        .iter()
        .map(|p| match p.get("port") {
            Some(port) if !port.is_null() => format!("{}:{}", text(p, "/name"), number(port)),
            _ => text(p, "/name").to_owned(),
        })
        .collect();
    let statuses = items(o.pointer("/status/parents"));
    let conditions: Vec<_> = statuses.iter().flat_map(|p| items(p.get("conditions"))).collect();
    let accepted = match conditions.is_empty() {
        true => Cell::toned("Unknown", Tone::Faint),
        false => truth(conditions.iter().all(|c| c["status"] == "True")),
    };
    let mut backends: Vec<_> = items(o.pointer("/spec/rules"))
        .iter()
        .flat_map(|rule| items(rule.get("backendRefs")))
        .map(|b| match b.get("weight") {
            Some(weight) if !weight.is_null() => format!("{}={}", text(b, "/name"), number(weight)),
            _ => text(b, "/name").to_owned(),
        })
        .collect();
    backends.dedup();
    (vec![hostnames.into(), parents.join(",").into(), accepted], vec![backends.join(",").into()])
}

fn sidecar(o: &Value) -> Cells {
    let selector = or(&labels(o.pointer("/spec/workloadSelector/labels")), "<all>");
    let workloads = o.pointer("/status/workloads").map(number).unwrap_or_default();
    let hosts: Vec<_> =
        items(o.pointer("/spec/egress")).iter().flat_map(|entry| texts(entry.get("hosts"))).collect();
    (vec![selector.into(), workloads.into()], vec![hosts.join(",").into()])
}

fn service_export(o: &Value) -> Cells {
    let condition = items(o.pointer("/status/conditions")).iter().find(|c| c["type"] == "Valid");
    let valid = match condition {
        Some(c) => truth(c["status"] == "True"),
        None => Cell::toned("Unknown", Tone::Faint),
    };
    (vec![valid], vec![condition.map_or("", |c| text(c, "/message")).into()])
}

fn namespace(o: &Value) -> Cells {
    (vec![labels(o.pointer("/metadata/labels")).into()], Vec::new())
}

fn truth(holds: bool) -> Cell {
    if holds { Cell::toned("True", Tone::Good) } else { Cell::toned("False", Tone::Bad) }
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn texts(value: Option<&Value>) -> Vec<String> {
    items(value).iter().map(number).collect()
}

fn number(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise } else { text }.to_owned()
}

fn ports(o: &Value, one: impl Fn(&Value) -> String) -> String {
    items(o.pointer("/spec/ports")).iter().map(one).collect::<Vec<_>>().join(",")
}

fn labels(value: Option<&Value>) -> String {
    let map = value.and_then(Value::as_object);
    let pairs: Vec<_> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", number(v))).collect();
    pairs.join(",")
}

/// A label selector in `-l` form.
fn selector(value: Option<&Value>) -> String {
    let Some(value) = value else { return String::new() };
    let mut terms = Vec::new();
    let equal = labels(value.get("matchLabels"));
    if !equal.is_empty() {
        terms.push(equal);
    }
    for e in items(value.get("matchExpressions")) {
        let (key, values) = (text(e, "/key"), texts(e.get("values")).join(","));
        terms.push(match text(e, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: u64 = 1_790_000_000;

    fn style() -> Style {
        Style { namespaces: false, kinds: false, wide: false, headings: true, paint: Paint::PLAIN, now: NOW }
    }

    fn object(kind: &str, spec: Value, status: Value) -> Value {
        json!({
            "kind": kind,
            "metadata": {"name": "pay", "namespace": "shop", "creationTimestamp": "2026-09-21T14:13:00Z"},
            "spec": spec,
            "status": status,
        })
    }

    #[test]
    fn a_workload_shows_where_it_runs() {
        let o = object(
            "Workload",
            json!({"proxy": "sidecar", "ports": [{"port": 8080}]}),
            json!({"ready": true, "node": "west-n1", "addresses": ["10.1.0.5"], "identity": 4711, "spiffeId": "spiffe://w/ns/shop/sa/pay"}),
        );
        assert_eq!(
            render(Kind::Workload, std::slice::from_ref(&o), style()),
            "NAME   READY   PROXY     ADDRESS    NODE      AGE\n\
             pay    True    sidecar   10.1.0.5   west-n1   20s\n"
        );
        let wide =
            render(Kind::Workload, &[o], Style { wide: true, namespaces: true, kinds: true, ..style() });
        assert_eq!(
            wide,
            "NAMESPACE   NAME           READY   PROXY     ADDRESS    NODE      AGE   SERVICE-ACCOUNT   PORTS      IDENTITY   SPIFFE-ID\n\
             shop        workload/pay   True    sidecar   10.1.0.5   west-n1   20s   default           8080/TCP   4711       spiffe://w/ns/shop/sa/pay\n"
        );
    }

    #[test]
    fn a_service_shows_endpoints_of_all_clusters() {
        let o = object(
            "Service",
            json!({"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}], "selector": {"app": "pay"}}),
            json!({"virtualIP": "10.101.0.4", "exported": true, "importedFrom": ["east"], "endpoints": [
                {"port": 80, "address": "10.1.0.5:8080", "cluster": "west", "ready": true},
                {"port": 53, "address": "10.1.0.5:5353", "cluster": "west", "ready": true},
                {"port": 80, "address": "10.1.0.5:8080", "cluster": "east", "ready": false},
            ]}),
        );
        assert_eq!(
            render(Kind::Service, &[o], Style { wide: true, headings: false, ..style() }),
            "pay    10.101.0.4   80/TCP,53/UDP   1/2         true       east            20s   app=pay\n"
        );
    }

    #[test]
    fn the_other_kinds_show_what_matters() {
        let policy = object(
            "NetworkPolicy",
            json!({"podSelector": {"matchLabels": {"app": "pay"}, "matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["dev", "test"]}]}}),
            json!({"selectedWorkloads": 2}),
        );
        let text = render(Kind::NetworkPolicy, &[policy], style());
        assert!(text.ends_with("pay    app=pay,env notin (dev,test)   2          20s\n"), "{text}");
        let policy = json!({"metadata": {"name": "pay"}, "status": {"selectedWorkloads": 2}, "specs": [
            {"endpointSelector": {"matchLabels": {"app": "pay"}}, "ingress": [{}]},
            {"endpointSelector": {"matchLabels": {"app": "web"}}, "egressDeny": [{}]}]});
        let text =
            render(Kind::CiliumNetworkPolicy, &[policy], Style { wide: true, headings: false, ..style() });
        assert_eq!(text, "pay    app=pay; app=web    2          <unknown>   ingress,egressDeny\n");
        let route = object(
            "HTTPRoute",
            json!({"parentRefs": [{"name": "pay", "port": 80}], "rules": [{"backendRefs": [{"name": "v1", "weight": 90}, {"name": "v2", "weight": 10}]}]}),
            json!({"parents": [{"conditions": [{"type": "Accepted", "status": "True"}, {"type": "ResolvedRefs", "status": "False"}]}]}),
        );
        let text = render(Kind::HttpRoute, &[route], Style { wide: true, headings: false, ..style() });
        assert_eq!(text, "pay    *           pay:80    False      20s   v1=90,v2=10\n");
        let export =
            object("ServiceExport", json!({}), json!({"conditions": [{"type": "Valid", "status": "True"}]}));
        assert_eq!(
            render(Kind::ServiceExport, &[export], style()),
            "NAME   VALID   AGE\npay    True    20s\n"
        );
        let sidecar = object(
            "Sidecar",
            json!({"workloadSelector": {"labels": {"app": "web"}}, "egress": [{"hosts": ["./*", "ops/*"]}]}),
            json!({"workloads": 3}),
        );
        let text = render(Kind::Sidecar, &[sidecar], Style { wide: true, ..style() });
        assert_eq!(
            text,
            "NAME   SELECTOR   WORKLOADS   AGE   HOSTS\npay    app=web    3           20s   ./*,ops/*\n"
        );
        let slice = json!({"metadata": {"name": "pay"}, "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["1.1.1.1"]}, {"addresses": ["1.1.1.2"]}, {"addresses": ["1.1.1.3"]}, {"addresses": ["1.1.1.4"]}]});
        let text = render(Kind::EndpointSlice, &[slice], Style { headings: false, ..style() });
        assert_eq!(text, "pay    IPv4          80      1.1.1.1,1.1.1.2,1.1.1.3 + 1 more...   <unknown>\n");
    }

    #[test]
    fn an_object_without_anything_still_has_a_row() {
        for kind in Kind::ALL {
            let text = render(kind, &[json!({})], Style { wide: true, ..style() });
            assert_eq!(text.lines().count(), 2, "{kind}: {text}");
        }
    }
}
