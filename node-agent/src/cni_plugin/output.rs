//! Results as JSON. PURE.

use serde_json::{Value, json};
use xds_proto::isthmus::local::v1::CniAddResponse;

use super::Invocation;

/// Versions of the specification that requests may name, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// The answer to VERSION.
pub fn version_result() -> Value {
    let newest = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1];
    json!({ "cniVersion": newest, "supportedVersions": SUPPORTED_VERSIONS })
}

/// The answer to ADD, in the shape of the version that was asked for.
pub fn add_result(invocation: &Invocation, answer: &CniAddResponse) -> Value {
    let version = invocation.config.cni_version.as_str();
    let mut host = json!({ "name": answer.host_interface, "mac": answer.mac });
    let mut sandbox = json!({
        "name": invocation.ifname,
        "mac": answer.sandbox_mac,
        "sandbox": invocation.netns,
    });
    // Interfaces carry their MTU since 1.1.0.
    if version == "1.1.0" {
        host["mtu"] = answer.mtu.into();
        sandbox["mtu"] = answer.mtu.into();
    }
    let mut ips = Vec::new();
    let mut routes = Vec::new();
    let v4 = (&answer.address, &answer.gateway, "4", "0.0.0.0/0");
    let v6 = (&answer.address6, &answer.gateway6, "6", "::/0");
    for (address, gateway, family, all) in [v4, v6] {
        if address.is_empty() {
            continue;
        }
        let mut ip = json!({ "address": address, "gateway": gateway, "interface": 1 });
        // The family was spelled out until 0.4.0.
        if version == "0.4.0" {
            ip["version"] = family.into();
        }
        ips.push(ip);
        routes.push(json!({ "dst": all, "gw": gateway }));
    }
    json!({
        "cniVersion": version,
        "interfaces": [host, sandbox],
        "ips": ips,
        "routes": routes,
        "dns": dns(answer),
    })
}

/// How the pod is to resolve names, if its node answers them; else the runtime knows.
fn dns(answer: &CniAddResponse) -> Value {
    if answer.nameservers.is_empty() {
        return json!({});
    }
    json!({ "nameservers": answer.nameservers, "search": answer.search, "options": ["ndots:5"] })
}

/// The answer to ADD where another plugin has made the interface: what that one answered.
pub fn chained_result(invocation: &Invocation, previous: &Value) -> Value {
    let mut result = previous.clone();
    if let Some(fields) = result.as_object_mut() {
        fields.insert("cniVersion".to_owned(), invocation.config.cni_version.as_str().into());
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni_plugin::{Environment, parse};

    fn add(version: &str) -> Value {
        let vars = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=pay"),
        ];
        let environment = Environment::new(vars.map(|(k, v)| (k.to_owned(), v.to_owned())));
        let config = format!(r#"{{"cniVersion":"{version}","agentSocket":"/s"}}"#);
        let answer = CniAddResponse {
            address: "10.1.1.2/32".into(),
            gateway: "169.254.1.1".into(),
            address6: "fd00:1::102/128".into(),
            gateway6: "fe80::1".into(),
            host_interface: "ism01234567".into(),
            mac: "02:00:00:00:00:01".into(),
            sandbox_mac: "02:00:00:00:00:02".into(),
            mtu: 1500,
            nameservers: vec!["169.254.20.10".into()],
            search: vec!["shop.svc.cluster.local".into()],
        };
        add_result(&parse(&environment, config.as_bytes()).unwrap(), &answer)
    }

    #[test]
    fn results_have_the_shape_of_the_version_that_was_asked_for() {
        let old = add("0.4.0");
        assert_eq!((&old["cniVersion"], &old["ips"][0]["version"]), (&json!("0.4.0"), &json!("4")));
        let middle = add("1.0.0");
        assert_eq!(middle["ips"][0].get("version"), None);
        assert_eq!(middle["interfaces"][1].get("mtu"), None);
        let new = add("1.1.0");
        assert_eq!(new["interfaces"][1]["mtu"], 1500);
        assert_eq!(new["interfaces"][1]["sandbox"], "/run/netns/x");
        assert_eq!(new["ips"][0]["interface"], 1);
        assert_eq!(
            new["dns"],
            json!({ "nameservers": ["169.254.20.10"], "search": ["shop.svc.cluster.local"], "options": ["ndots:5"] })
        );
        assert_eq!(new["ips"][0]["address"], "10.1.1.2/32");
        assert_eq!(
            new["ips"][1],
            json!({ "address": "fd00:1::102/128", "gateway": "fe80::1", "interface": 1 })
        );
        assert_eq!((&old["ips"][1]["version"], &new["routes"][1]["dst"]), (&json!("6"), &json!("::/0")));
    }
}
