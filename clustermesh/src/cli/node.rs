//! `clustermesh node list|revoke|remove`

use clap::Subcommand;
use xds_proto::isthmus::ca::v1::{
    ListNodesRequest, Node, NodeRequest, certificate_authority_client::CertificateAuthorityClient as Client,
};

use super::{
    client::{REQUEST_TIMEOUT, channel, within},
    failure::Failure,
    out,
    render::table::Table,
    server::Server,
};

/// The nodes of this cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List registered nodes.
    List,
    /// End a node's registration at once: its certificate and those of its workloads are refused, its workloads unbound.
    /// It can come back with a new token only.
    Revoke { name: String },
    /// Forget a node that runs nothing any more.
    Remove { name: String },
}

pub(crate) async fn run(server: &Server, command: &NodeCommand) -> Result<(), Failure> {
    let mut client = Client::new(channel(server).await?).max_decoding_message_size(usize::MAX);
    match command {
        NodeCommand::List => {
            let nodes = within(REQUEST_TIMEOUT, client.list_nodes(ListNodesRequest {})).await?.nodes;
            if nodes.is_empty() {
                out::remark("no node has registered");
                return Ok(());
            }
            out::print(&table(&nodes, out::Paint::for_stdout()))
        }
        NodeCommand::Revoke { name } => {
            let request = NodeRequest { name: name.clone() };
            let answer = within(REQUEST_TIMEOUT, client.revoke_node(request)).await?;
            for workload in &answer.unbound {
                out::line(&format!("workload/{workload} unbound"))?;
            }
            out::line(&format!("node/{name} revoked (revision {})", answer.revision))?;
            // Whoever has the machine may have seen such a token; which it was, nobody knows.
            if let Ok(open @ 1..) = super::tokens::for_any_node(server).await {
                let tokens = if open == 1 { "token lets" } else { "tokens let" };
                out::remark(&format!(
                    "{open} unused {tokens} any node in: see 'clustermesh token list', and 'clustermesh token revoke'"
                ));
            }
            Ok(())
        }
        NodeCommand::Remove { name } => {
            let request = NodeRequest { name: name.clone() };
            let answer = within(REQUEST_TIMEOUT, client.remove_node(request)).await?;
            out::line(&format!("node/{name} removed (revision {})", answer.revision))
        }
    }
}

fn table(nodes: &[Node], paint: out::Paint) -> String {
    let mut table = Table::new(["NODE", "ADDRESS", "PODS", "WORKLOADS", "REGISTRATION", "ROOT"]);
    for node in nodes {
        table.row(vec![
            node.name.clone().into(),
            node.address.clone().into(),
            node.pod_cidr.clone().into(),
            node.workloads.to_string().into(),
            node.registration.to_string().into(),
            node.root_sha256.chars().take(16).collect::<String>().into(),
        ]);
    }
    table.render(true, paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_row() {
        let node = Node { name: "n1".into(), workloads: 3, registration: 7, ..Default::default() };
        let shown = table(&[node], out::Paint::PLAIN);
        assert!(shown.contains("n1") && shown.contains('3') && shown.contains('7'), "{shown}");
    }
}
