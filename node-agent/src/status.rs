//! `node-agent status`.

use std::{io::Write, path::Path};

use crate::local::rfc3339;
use xds_proto::isthmus::local::v1::{
    AgentStatusRequest, AgentStatusResponse, ClusterDns, Connectivity, agent_client::AgentClient,
};

/// Asks the agent and prints what it says.
///
/// # Errors
/// The agent does not run, or refuses.
pub async fn print(socket: &Path, out: impl Write) -> anyhow::Result<()> {
    let channel = mesh_tls::grpc::connect_unix(socket).await?;
    let asked = AgentClient::new(channel).status(AgentStatusRequest {}).await;
    let status = asked.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
    render(&status, out).map_err(Into::into)
}

fn render(status: &AgentStatusResponse, mut out: impl Write) -> std::io::Result<()> {
    let link = if status.connected { "connected to" } else { "not connected, last tried" };
    writeln!(out, "node            {}", status.node)?;
    writeln!(out, "control plane   {link} {}, revision {}", status.replica, status.revision)?;
    if status.away_since_unix > 0 {
        let since = rfc3339(status.away_since_unix);
        let reason = if status.away_reason.is_empty() { "no answer yet" } else { &status.away_reason };
        writeln!(out, "                away since {since} ({reason}); what was last told is enforced")?;
    }
    let enforced = status.endpoints.len().saturating_sub(status.pods_closed as usize);
    let closed = match status.pods_closed {
        0 => String::new(),
        closed => format!("; {closed} have no traffic, because their policy is not there"),
    };
    writeln!(out, "enforced        policy of {enforced} pods{closed}")?;
    if !status.behind.is_empty() {
        writeln!(out, "BEHIND          the kernel refuses, and it is tried again: {}", status.behind)?;
    }
    if let Some(way) = &status.connectivity {
        connectivity(way, &mut out)?;
    }
    if let Some(dns) = &status.cluster_dns {
        cluster_dns(dns, &mut out)?;
    }
    writeln!(
        out,
        "kernel          {} policy classes, {} services, {} identities",
        status.policy_classes, status.services, status.ipcache
    )?;
    let fill = status.maps.iter().filter(|map| map.entries > 0);
    let fill: Vec<_> = fill
        .map(|map| {
            let full = if is_nearly_full(map.entries, map.limit) { " NEARLY FULL" } else { "" };
            format!("{} {}/{}{full}", map.map, map.entries, map.limit)
        })
        .collect();
    writeln!(out, "maps            {}", if fill.is_empty() { "empty".to_owned() } else { fill.join(", ") })?;
    writeln!(
        out,
        "flows           {} told, {} told by counts only, {} lost",
        status.flows_seen, status.flows_suppressed, status.flows_lost
    )?;
    for trust in &status.trust {
        let roots: Vec<_> = trust.roots_sha256.iter().map(|root| root.get(..16).unwrap_or(root)).collect();
        writeln!(
            out,
            "trusts          {} by {}, {} registrations revoked",
            trust.trust_domain,
            roots.join(" "),
            trust.revoked
        )?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "{:<32} {:<16} {:>9} {:>6}  {:<20} CERTIFICATE UNTIL",
        "POD", "ADDRESS", "IDENTITY", "CLASS", "STATE"
    )?;
    for pod in &status.endpoints {
        let until = if pod.certificate_not_after.is_empty() { "-" } else { &pod.certificate_not_after };
        writeln!(
            out,
            "{:<32} {:<16} {:>9} {:>6}  {:<20} {until}",
            pod.name, pod.address, pod.identity, pod.policy_class, pod.state
        )?;
    }
    Ok(())
}

/// Most nodes that are named for one reason.
const NAMED: usize = 8;

fn connectivity(way: &Connectivity, out: &mut impl Write) -> std::io::Result<()> {
    let by = |what: &str| way.nodes.iter().filter(|node| node.way == what).count();
    let (tunnel, routes) = (by("tunnel"), by("routes"));
    write!(out, "connectivity    {}, MTU of pods {}; other nodes: ", way.mode, way.mtu)?;
    if way.mode == "direct" {
        writeln!(out, "{routes}")?;
    } else {
        writeln!(out, "{tunnel} through the tunnel, {routes} by routes")?;
    }
    let cuts: Vec<_> = way.short_cuts.iter().map(|cut| format!("{} ({})", cut.interface, cut.way)).collect();
    if !cuts.is_empty() {
        writeln!(out, "short cut       {}", cuts.join(", "))?;
    }
    let lost = way.nodes.iter().filter(|node| node.way == "none");
    for node in lost.take(NAMED) {
        writeln!(out, "UNREACHED       {} ({}): {}", node.name, node.address, node.why)?;
    }
    Ok(())
}

fn cluster_dns(dns: &ClusterDns, out: &mut impl Write) -> std::io::Result<()> {
    let at = dns.addresses.join(", ");
    match dns.trouble.as_str() {
        "" => writeln!(out, "cluster DNS     answers at {at}"),
        trouble => writeln!(out, "NO CLUSTER DNS  at {at}: {trouble}"),
    }
}

/// From nine tenths on: the alert of docs/metrics.md.
fn is_nearly_full(entries: u64, limit: u64) -> bool {
    entries.saturating_mul(10) >= limit.saturating_mul(9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_proto::isthmus::local::v1::{AgentEndpoint, AgentTrust, MapFill, ReachedNode, ShortCut};

    #[test]
    fn what_is_wrong_is_said_where_the_eye_falls_on_it() {
        let fill = |map: &str, entries, limit| MapFill { map: map.into(), entries, limit };
        let status = AgentStatusResponse {
            endpoints: vec![AgentEndpoint::default(); 3],
            pods_closed: 1,
            behind: "writing service 10.101.0.1:80: No space left on device".into(),
            away_since_unix: 1_790_000_000,
            away_reason: "connection refused".into(),
            maps: vec![fill("HOSTS", 12, 100), fill("SERVICES", 90, 100), fill("NETNS", 0, 100)],
            ..Default::default()
        };
        let mut out = Vec::new();
        render(&status, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for words in [
            "policy of 2 pods; 1 have no traffic",
            "BEHIND          the kernel refuses, and it is tried again: writing service",
            "away since 2026-09-21T14:13:20Z (connection refused)",
            "HOSTS 12/100, SERVICES 90/100 NEARLY FULL\n",
        ] {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
    }

    #[test]
    fn whether_names_of_services_are_answered_is_said() {
        let said = |trouble: &str| {
            let addresses = vec!["169.254.20.10".into(), "fd69::10".into()];
            let mut out = Vec::new();
            cluster_dns(&ClusterDns { addresses, trouble: trouble.into() }, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(said(""), "cluster DNS     answers at 169.254.20.10, fd69::10\n");
        assert_eq!(
            said("169.254.20.10:53: Address already in use"),
            "NO CLUSTER DNS  at 169.254.20.10, fd69::10: 169.254.20.10:53: Address already in use\n"
        );
    }

    #[test]
    fn the_way_to_other_nodes_is_said_and_who_has_none() {
        let node = |name: &str, way: &str, why: &str| ReachedNode {
            name: name.into(),
            address: "192.0.2.9".into(),
            way: way.into(),
            why: why.into(),
        };
        let nodes = vec![
            node("n2", "tunnel", ""),
            node("n3", "routes", ""),
            node("n4", "none", "it has no IPv6 address"),
        ];
        let cut = |interface: &str, way: &str| ShortCut { interface: interface.into(), way: way.into() };
        let short_cuts = vec![cut("eth0", "driver"), cut("eth1", "generic")];
        let way = Connectivity { mode: "vxlan-ipv6".into(), mtu: 1_430, nodes, short_cuts };
        let mut out = Vec::new();
        connectivity(&way, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "connectivity    vxlan-ipv6, MTU of pods 1430; other nodes: 1 through the tunnel, 1 by routes\n\
             short cut       eth0 (driver), eth1 (generic)\n\
             UNREACHED       n4 (192.0.2.9): it has no IPv6 address\n"
        );
    }

    #[test]
    fn the_status_names_the_replica_and_every_pod() {
        let status = AgentStatusResponse {
            node: "n1".into(),
            replica: "192.0.2.1:9443".into(),
            connected: true,
            revision: 7,
            flows_seen: 5,
            flows_suppressed: 3,
            flows_lost: 2,
            endpoints: vec![AgentEndpoint {
                name: "shop/web".into(),
                state: "ready".into(),
                ..Default::default()
            }],
            trust: vec![AgentTrust {
                trust_domain: "west.example".into(),
                roots_sha256: vec!["ab".repeat(32), "cd".repeat(32)],
                revoked: 3,
            }],
            ..Default::default()
        };
        let mut out = Vec::new();
        render(&status, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("connected to 192.0.2.1:9443, revision 7"), "{text}");
        assert!(text.contains("shop/web"), "{text}");
        assert!(text.contains("5 told, 3 told by counts only, 2 lost"), "{text}");
        let trusts = "west.example by abababababababab cdcdcdcdcdcdcdcd, 3 registrations revoked";
        assert!(text.contains(trusts), "{text}");
    }
}
