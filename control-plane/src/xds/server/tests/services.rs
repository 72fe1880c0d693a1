//! The services beside ADS over real connections: those of one type, LRS, and what CSDS has to tell.

use std::sync::Arc;

use clustermesh::csds::{CLIENT, REPLICA};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use xds_proto::{
    envoy::{
        config::{
            core::v3::{Locality, Node},
            endpoint::v3::{ClusterStats, UpstreamLocalityStats},
        },
        service::{
            discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
            extension::v3::extension_config_discovery_service_client::ExtensionConfigDiscoveryServiceClient,
            load_stats::v3::{LoadStatsRequest, load_reporting_service_client::LoadReportingServiceClient},
            route::v3::{
                scoped_routes_discovery_service_client::ScopedRoutesDiscoveryServiceClient,
                virtual_host_discovery_service_client::VirtualHostDiscoveryServiceClient,
            },
            runtime::v3::runtime_discovery_service_client::RuntimeDiscoveryServiceClient,
            status::v3::{ClientConfig, ConfigStatus, client_config::GenericXdsConfig},
        },
    },
    google::rpc,
};

use super::*;
use crate::xds::{
    csds::{matcher::Matchers, service::of_replica},
    kinds::{CLUSTER as CDS, ENDPOINT as EDS, EXTENSION, RUNTIME, SCOPED_ROUTE, VIRTUAL_HOST},
};

#[tokio::test]
async fn every_type_of_envoy_has_a_service_of_its_own() {
    let views = TestViews::new(
        1,
        &[(EXTENSION, "x", "1"), (SCOPED_ROUTE, "x", "1"), (VIRTUAL_HOST, "r/x", ""), (RUNTIME, "x", "1")],
    );
    let running = Running::start(views).await;
    let ask = |name: &str| {
        let (requests, receiver) = mpsc::channel(1);
        let request = DiscoveryRequest { resource_names: vec![name.into()], ..Default::default() };
        requests.try_send(request).unwrap();
        (requests, ReceiverStream::new(receiver))
    };
    macro_rules! served {
        ($client:ident, $method:ident, $type_url:expr) => {
            let (_requests, stream) = ask("x");
            let mut client = $client::new(running.channel().await);
            let response =
                client.$method(stream).await.unwrap().into_inner().message().await.unwrap().unwrap();
            assert_eq!((response.type_url.as_str(), response.resources.len()), ($type_url, 1));
        };
    }
    served!(ExtensionConfigDiscoveryServiceClient, stream_extension_configs, EXTENSION);
    served!(ScopedRoutesDiscoveryServiceClient, stream_scoped_routes, SCOPED_ROUTE);
    served!(RuntimeDiscoveryServiceClient, stream_runtime, RUNTIME);
    let (requests, receiver) = mpsc::channel(1);
    let request =
        DeltaDiscoveryRequest { resource_names_subscribe: vec!["r/x".into()], ..Default::default() };
    requests.send(request).await.unwrap();
    let mut client = VirtualHostDiscoveryServiceClient::new(running.channel().await);
    let mut hosts = client.delta_virtual_hosts(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(hosts.message().await.unwrap().unwrap().resources[0].name, "r/x");
}

fn report(node: &str, cluster: &str, issued: u64) -> LoadStatsRequest {
    let stats = UpstreamLocalityStats {
        locality: Some(Locality { region: "eu".into(), ..Default::default() }),
        total_issued_requests: issued,
        total_successful_requests: issued,
        total_requests_in_progress: 1,
        ..Default::default()
    };
    LoadStatsRequest {
        node: (!node.is_empty()).then(|| Node { id: node.into(), ..Default::default() }),
        cluster_stats: vec![ClusterStats {
            cluster_name: cluster.into(),
            upstream_locality_stats: vec![stats],
            ..Default::default()
        }],
    }
}

#[tokio::test]
async fn load_reports_are_asked_for_by_cluster_and_added_up_and_end_with_the_client() {
    let running = Running::start(TestViews::new(1, &[(CDS, "pay", "1")])).await;
    let (requests, receiver) = mpsc::channel(4);
    let first = LoadStatsRequest { cluster_stats: vec![], ..report("n1", "", 0) };
    requests.send(first).await.unwrap();
    let mut client = LoadReportingServiceClient::new(running.channel().await);
    let mut answers = client.stream_load_stats(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let wanted = answers.message().await.unwrap().unwrap();
    assert_eq!(
        (wanted.clusters, wanted.load_reporting_interval.unwrap().seconds),
        (vec!["pay".to_owned()], 10)
    );
    running.views.publish(2, &[(CDS, "pay", "1"), (CDS, "web", "1")]);
    assert_eq!(answers.message().await.unwrap().unwrap().clusters, ["pay", "web"], "it is told of new ones");
    requests.send(report("", "pay", 5)).await.unwrap();
    requests.send(report("", "pay", 2)).await.unwrap();
    let loads = || running.server.subscribers().loads().report(std::time::Instant::now());
    eventually(|| loads().first().is_some_and(|load| load.totals.issued == 7)).await;
    let load = loads().remove(0);
    assert_eq!(
        (load.cluster.as_str(), load.locality.to_string(), load.in_progress),
        ("pay", "eu".to_owned(), 1)
    );
    drop((requests, answers));
    eventually(|| loads()[0].in_progress == 0).await;
    assert_eq!(loads()[0].totals.issued, 7);
}

#[tokio::test]
async fn who_may_not_subscribe_may_not_report_load() {
    let running = Running::start(TestViews::new(1, &[])).await;
    let (requests, receiver) = mpsc::channel(1);
    requests.send(report("intruder", "pay", 1_000)).await.unwrap();
    let mut client = LoadReportingServiceClient::new(running.channel().await);
    let mut answers = client.stream_load_stats(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(running.server.subscribers().loads().report(std::time::Instant::now()), []);
}

async fn clients(running: &Running, contents: bool) -> Vec<ClientConfig> {
    let inspectors = running.server.subscribers().inspectors();
    of_replica(inspectors, &Arc::new(Matchers::default()), contents, &mut 0).await.unwrap()
}

fn shown(configs: &[GenericXdsConfig]) -> Vec<(&str, ConfigStatus, bool)> {
    configs
        .iter()
        .map(|config| (config.name.as_str(), config.config_status(), config.xds_config.is_some()))
        .collect()
}

#[tokio::test]
async fn csds_tells_what_was_sent_accepted_refused_and_asked_for() {
    let running = Running::start(TestViews::new(1, &[(EDS, "a", "1"), (EDS, "b", "1")])).await;
    let (requests, mut responses) = raw(&running, "n1", EDS, &["a", "b", "ghost"]).await;
    let first = responses.message().await.unwrap().unwrap();
    assert_eq!(
        shown(&clients(&running, true).await[0].generic_xds_configs)[0],
        ("a", ConfigStatus::Stale, true)
    );
    requests.send(answer(EDS, &["a", "b", "ghost"], &first.nonce, None)).await.unwrap();
    running.acked(1).await;
    let all = clients(&running, true).await;
    let synced = [
        ("a", ConfigStatus::Synced, true),
        ("b", ConfigStatus::Synced, true),
        ("ghost", ConfigStatus::Synced, false),
    ];
    assert_eq!(shown(&all[0].generic_xds_configs), synced);
    let metadata = all[0].node.as_ref().unwrap().metadata.clone().unwrap().fields;
    let said = |key: &str| format!("{:?}", metadata[key].kind.as_ref().unwrap());
    assert!(said(CLIENT).contains("agent~n1") && said(REPLICA).contains("test"), "{metadata:?}");

    running.views.publish(2, &[(EDS, "a", "bad"), (EDS, "b", "1")]);
    let second = responses.message().await.unwrap().unwrap();
    let error = rpc::Status { code: 3, message: "no such port".into(), details: vec![] };
    requests.send(answer(EDS, &["a", "b", "ghost"], &second.nonce, Some(error))).await.unwrap();
    running.until(|list| list[0].nacks == 1).await;
    let all = clients(&running, true).await;
    let refused = &all[0].generic_xds_configs[0];
    assert_eq!((refused.config_status(), refused.xds_config.is_none()), (ConfigStatus::Error, true));
    let state = refused.error_state.as_ref().unwrap();
    assert_eq!(
        (state.details.as_str(), &state.failed_configuration.as_ref().unwrap().value[..]),
        ("no such port", &b"bad"[..])
    );
    assert!(state.last_update_attempt.unwrap().seconds > 0 && refused.last_updated.unwrap().seconds > 0);
    assert_ne!(refused.version_info, state.version_info, "it runs on what it had before");
    let names = clients(&running, false).await;
    assert!(names[0].generic_xds_configs.iter().all(|config| config.xds_config.is_none()));
    assert!(names[0].generic_xds_configs[0].error_state.as_ref().unwrap().failed_configuration.is_none());
}

#[tokio::test]
async fn csds_tells_of_those_who_are_meant_and_connected_only() {
    let running = Running::start(TestViews::new(1, &[(EDS, "a", "1")])).await;
    let one = raw(&running, "n1", EDS, &["a"]).await;
    let two = raw(&running, "n2", EDS, &["a"]).await;
    running.until(|list| list.len() == 2).await;
    assert_eq!(clients(&running, false).await.len(), 2);
    drop(one);
    running.until(|list| list.len() == 1).await;
    let left = clients(&running, false).await;
    assert_eq!(
        left.iter().map(|config| config.node.as_ref().unwrap().id.as_str()).collect::<Vec<_>>(),
        ["n2"]
    );
    drop(two);
}

#[tokio::test]
async fn only_the_first_message_need_name_the_node_and_a_later_one_changes_nothing() {
    let running = Running::start(TestViews::new(1, &[(EDS, "a", "1"), (CDS, "c", "1")])).await;
    let (requests, mut responses) = raw(&running, "n1", EDS, &["a"]).await;
    let first = responses.message().await.unwrap().unwrap();
    let mut ack = answer(EDS, &["a"], &first.nonce, None);
    assert!(ack.node.is_none());
    requests.send(ack.clone()).await.unwrap();
    running.acked(1).await;
    ack.node = Some(Node { id: "intruder".into(), ..Default::default() });
    requests.send(ack).await.unwrap();
    requests.send(DiscoveryRequest { type_url: CDS.into(), ..Default::default() }).await.unwrap();
    assert_eq!(responses.message().await.unwrap().unwrap().type_url, CDS, "the stream goes on");
    assert_eq!(running.server.subscribers().list()[0].id, "agent~n1");
}

#[tokio::test]
async fn a_client_that_sends_garbage_or_breaks_off_affects_no_other() {
    let running = Running::start(TestViews::new(1, &[(EDS, "a", "1")])).await;
    let (requests, mut responses) = raw(&running, "good", EDS, &["a"]).await;
    let first = responses.message().await.unwrap().unwrap();
    requests.send(answer(EDS, &["a"], &first.nonce, None)).await.unwrap();
    for n in 0..8 {
        // Wrong nonces, errors on nothing, types that don't exist, and no end to it.
        let (bad, ignored) = raw(&running, "bad", "type.googleapis.com/no.such.Type", &["x"]).await;
        let error = rpc::Status { code: n, message: "\u{0}".repeat(100), details: vec![] };
        let _ = bad.send(answer(EDS, &["*", ""], "no such nonce", Some(error))).await;
        let _ = bad.send(DiscoveryRequest { type_url: "x".repeat(5_000), ..Default::default() }).await;
        drop((bad, ignored));
    }
    running.views.publish(2, &[(EDS, "a", "2")]);
    let second = responses.message().await.unwrap().unwrap();
    assert_eq!(second.resources[0].value, b"2");
    requests.send(answer(EDS, &["a"], &second.nonce, None)).await.unwrap();
    running.until(|list| list.len() == 1 && list[0].acked_revision == 2).await;
}
