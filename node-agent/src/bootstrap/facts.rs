//! What this node is like, told to the control plane at each start.

use std::{net::IpAddr, time::Duration};

use clap::Args;
use mesh_model::records::Tunnel;
use xds_proto::isthmus::bootstrap::v1::{ReportNodeRequest, endpoints_client::EndpointsClient};

use super::Upstream;

/// After an attempt that failed. A control plane that is away, or older than this agent, is no reason not to run.
const RETRY: Duration = Duration::from_secs(5);

/// What is told.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeFactsArgs {
    /// A label of this node, for policies that select nodes; repeatable.
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// The zone that this node is in: services with trafficDistribution prefer endpoints of the caller's zone.
    #[arg(long, default_value = "")]
    pub zone: String,
    /// The region that this node is in.
    #[arg(long, default_value = "")]
    pub region: String,
    /// A further address of this node, of either family; repeatable.
    #[arg(long = "node-address", value_name = "ADDRESS")]
    pub addresses: Vec<IpAddr>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not <key>=<value>"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl NodeFactsArgs {
    fn request(&self, tunnel: Tunnel) -> ReportNodeRequest {
        ReportNodeRequest {
            labels: self.labels.iter().cloned().collect(),
            zone: self.zone.clone(),
            region: self.region.clone(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            tunnel: tunnel.as_str().to_owned(),
            ..Default::default()
        }
    }
}

/// Tells it, however long that takes, and then waits for ever. Stop it by dropping the future.
pub async fn report_facts_for_ever(facts: NodeFactsArgs, tunnel: Tunnel, upstream: Upstream) {
    let request = facts.request(tunnel);
    while let Err(reason) = report(&request, &upstream).await {
        tracing::warn!(reason, "the control plane was not told what this node is like");
        tokio::time::sleep(RETRY).await;
    }
    std::future::pending().await
}

async fn report(request: &ReportNodeRequest, upstream: &Upstream) -> Result<(), String> {
    let channel = upstream.connect().await.map_err(|error| error.to_string())?;
    let told = EndpointsClient::new(channel).report_node(request.clone()).await;
    told.map(drop).map_err(|status| status.message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_key_and_a_value() {
        assert_eq!(label("a.example/b=c=d").unwrap(), ("a.example/b".to_owned(), "c=d".to_owned()));
        assert!(label("a").is_err());
    }
}
