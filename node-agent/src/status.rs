//! `node-agent status`.

use std::{io::Write, path::Path};

use xds_proto::isthmus::local::v1::{AgentStatusRequest, AgentStatusResponse, agent_client::AgentClient};

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
    writeln!(
        out,
        "kernel          {} policy classes, {} services, {} identities",
        status.policy_classes, status.services, status.ipcache
    )?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use xds_proto::isthmus::local::v1::{AgentEndpoint, AgentTrust};

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
