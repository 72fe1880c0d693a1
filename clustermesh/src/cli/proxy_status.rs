//! `clustermesh proxy-status`

use std::path::Path;

use xds_proto::envoy::{
    service::status::v3::{ClientConfig, ClientStatusRequest},
    r#type::matcher::v3::{NodeMatcher, StringMatcher, string_matcher::MatchPattern},
};

use super::{
    args::{ProxyStatusArgs, StatusOutput},
    client::{REQUEST_TIMEOUT, connect_csds, within},
    failure::Failure,
    now_unix,
    out::{self, Paint},
    render,
};

pub(crate) async fn run(socket: &Path, args: &ProxyStatusArgs) -> Result<(), Failure> {
    let mut csds = connect_csds(socket).await?;
    let request = ClientStatusRequest {
        node_matchers: args.client.as_deref().map(matchers).unwrap_or_default(),
        node: None,
        exclude_resource_contents: true,
    };
    let clients = within(REQUEST_TIMEOUT, csds.fetch_client_status(request)).await?.config;
    if let (Some(client), true) = (&args.client, clients.is_empty()) {
        return Err(Failure::not_found(format!(
            "no data plane {client} is connected; 'clustermesh proxy-status' lists those that are"
        )));
    }
    out::print(&text(&clients, args)?)
}

fn text(clients: &[ClientConfig], args: &ProxyStatusArgs) -> Result<String, Failure> {
    let paint = Paint::for_stdout();
    match (args.output, &args.client) {
        (StatusOutput::Table, None) => Ok(render::proxy_status::overview(clients, paint)),
        (StatusOutput::Table, Some(_)) => Ok(render::proxy_status::resources(clients, now_unix(), paint)),
        (StatusOutput::Json, _) => Ok(render::json(&render::proxy_status::value(clients))),
        (StatusOutput::Yaml, _) => render::yaml(&render::proxy_status::value(clients)),
    }
}

/// By the name as it is listed, or by what follows its kind.
fn matchers(client: &str) -> Vec<NodeMatcher> {
    let matcher = |pattern| NodeMatcher {
        node_id: Some(StringMatcher { match_pattern: Some(pattern), ignore_case: false }),
        node_metadatas: Vec::new(),
    };
    vec![matcher(MatchPattern::Exact(client.to_owned())), matcher(MatchPattern::Suffix(format!("~{client}")))]
}
