//! Connections that stand when a policy comes: those that it denies are cut, and the others do not notice.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::testbed::wait_until;

use super::{
    mesh::Mesh,
    probe::{says, within},
};

const SHORT: Duration = Duration::from_millis(700);

const DENIAL: &str = "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: cut, namespace: shop}, spec: {
 endpointSelector: {matchLabels: {app: api}}, enableDefaultDeny: {ingress: false},
 ingressDeny: [{fromEndpoints: [{matchLabels: {app: batch}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: cut, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: cut}, spec: {
 tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: ops}}}, egress: [
  {action: Deny, to: [{networks: [10.200.9.1/32, 'fd00:200::9:1/128']}]}]}}
";

/// From, to, and what cuts it.
const STANDING: [(&str, &str, Option<&str>); 6] = [
    ("batch", "api", Some("ciliumnetworkpolicy/shop/cut#ingressDeny[0]")),
    ("db", "api", Some("networkpolicy/shop/cut#default-deny-egress")),
    ("admin", "out", Some("clusternetworkpolicy/cut#egress[0]")),
    ("web", "api", None),
    ("db", "web", None),
    // Its answers are no traffic of its own.
    ("web", "db", None),
];

struct Standing {
    stream: TcpStream,
    what: String,
    cut_by: Option<&'static str>,
    ports: (u16, u16),
}

/// Makes connections of both families, applies the policies, and deletes them.
pub fn cut(mesh: &Mesh) -> Result<usize> {
    let mut all = Vec::new();
    for (from, to, cut_by) in STANDING {
        for v6 in [false, true] {
            let to_address = SocketAddr::new(mesh.end(to, v6)?.address, 8080);
            let connect = || Ok(TcpStream::connect_timeout(&to_address, Duration::from_secs(5))?);
            let mut stream = within(&mesh.end(from, v6)?.namespace, connect)?;
            let what = format!("{from} -> {to_address}");
            ensure!(says(&mut stream, Duration::from_secs(5)), "{what} is not answered");
            let ports = (stream.local_addr()?.port(), 8080);
            all.push(Standing { stream, what, cut_by, ports });
        }
    }
    mesh.change("apply", DENIAL)?;
    for Standing { stream, what, cut_by, .. } in &mut all {
        let patience = if cut_by.is_some() { SHORT } else { Duration::from_secs(5) };
        let goes_on = says(stream, patience);
        ensure!(goes_on == cut_by.is_none(), "{what}: goes on: {goes_on}, to be cut by {cut_by:?}");
    }
    for Standing { what, cut_by, ports, .. } in &all {
        let Some(rule) = cut_by else { continue };
        wait_until(&format!("the flow of {what}, cut by {rule}"), Duration::from_secs(10), || {
            let flows = mesh.flows()?;
            let of = flows
                .iter()
                .filter(|flow| flow["source"]["port"] == ports.0 && flow["destination"]["port"] == ports.1);
            let mut verdicts = of.map(|flow| (flow["verdict"].as_str(), flow["policy"].as_str()));
            Ok(verdicts.any(|said| said == (Some("DROPPED"), Some(rule))).then_some(()))
        })?;
    }
    mesh.change("delete", DENIAL)?;
    // What was sent meanwhile is sent again, so that both go on where they were.
    for Standing { stream, what, .. } in &mut all {
        wait_until(&format!("{what} to go on"), Duration::from_secs(15), || {
            let error = stream.take_error()?.map(|error| error.kind());
            ensure!(error != Some(ErrorKind::ConnectionReset), "{what} was reset");
            Ok(says(stream, SHORT).then_some(()))
        })
        .with_context(|| what.clone())?;
    }
    Ok(all.len())
}
