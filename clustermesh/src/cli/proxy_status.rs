//! `clustermesh proxy-status`

use clustermesh::csds::SILENT_REPLICAS;
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
    server::Server,
};

pub(crate) async fn run(server: &Server, args: &ProxyStatusArgs) -> Result<(), Failure> {
    let mut csds = connect_csds(server).await?;
    let request = ClientStatusRequest {
        node_matchers: args.client.as_deref().map(matchers).unwrap_or_default(),
        node: None,
        exclude_resource_contents: true,
    };
    let mut silent = String::new();
    let asked = async {
        let answer = csds.fetch_client_status(request).await?;
        let list = answer.metadata().get(SILENT_REPLICAS).and_then(|list| list.to_str().ok());
        silent = list.unwrap_or_default().to_owned();
        Ok(answer)
    };
    let mut clients = within(REQUEST_TIMEOUT, asked).await?.config;
    // The same whichever replica was asked.
    clients.sort_by_cached_key(render::proxy_status::order);
    if !silent.is_empty() {
        out::remark(&remark(&silent));
    }
    if let (Some(client), true) = (&args.client, clients.is_empty()) {
        return Err(Failure::not_found(format!(
            "no data plane {client} is connected; 'clustermesh proxy-status' lists those that are"
        )));
    }
    if clients.is_empty() && args.output == StatusOutput::Table {
        out::remark(if silent.is_empty() {
            "no data plane is connected"
        } else {
            "no other one is connected"
        });
        return Ok(());
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

/// Which replicas the answer is without: numbers, separated by commas.
fn remark(silent: &str) -> String {
    let numbers = silent.replace(',', ", ");
    let who = if silent.contains(',') { "replicas" } else { "replica" };
    format!("no answer of {who} {numbers}: data planes that are connected there are not shown")
}

/// By the name as it is listed, or by what follows its kind.
fn matchers(client: &str) -> Vec<NodeMatcher> {
    let matcher = |pattern| NodeMatcher {
        node_id: Some(StringMatcher { match_pattern: Some(pattern), ignore_case: false }),
        node_metadatas: Vec::new(),
    };
    vec![matcher(MatchPattern::Exact(client.to_owned())), matcher(MatchPattern::Suffix(format!("~{client}")))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_did_not_answer_is_named() {
        assert!(remark("2").starts_with("no answer of replica 2: "));
        assert!(remark("2,3").starts_with("no answer of replicas 2, 3: "));
    }
}
