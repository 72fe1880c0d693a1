//! Clients that come from another replica, or go to one: nothing is sent again, and nothing older than they have.

use super::*;
use crate::xds::heartbeat;

#[tokio::test]
async fn a_client_that_goes_to_another_replica_gets_only_what_changed_meanwhile() {
    let views = TestViews::new(1, &[(SERVICE, "a", "1"), (SERVICE, "b", "1"), (SERVICE, "c", "1")]);
    let running = Running::start(views).await;
    let mut follower = running.subscribe("n1", vec![Subscription::wildcard(SERVICE)], always);
    follower.next().await;
    running.acked(1).await;
    // Another replica, which has the same resources from the same state and some newer ones.
    let other = Running::start(TestViews::new(2, &[(SERVICE, "a", "1"), (SERVICE, "b", "2")])).await;
    *running.route.lock().unwrap() = other.address;
    running.server.drain();
    let mut seen = follower.next().await;
    if seen == "+b=2" {
        seen += &format!(" {}", follower.next().await);
    }
    assert_eq!(seen, "+b=2 -c");
}

#[tokio::test]
async fn a_replica_that_lags_behind_its_client_makes_it_wait_and_serves_nothing_older() {
    let running = Running::start(TestViews::new(4, &[(CDS, "a", "old")])).await;
    let (requests, receiver) = mpsc::channel(4);
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let first = DiscoveryRequest { version_info: "5".into(), type_url: CDS.into(), ..Default::default() };
    requests.send(first).await.unwrap();
    let mut responses =
        client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    running.views.publish(5, &[(CDS, "a", "new")]);
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!((response.version_info.as_str(), &response.resources[0].value[..]), ("5", &b"new"[..]));
}

#[tokio::test]
async fn a_replica_that_does_not_catch_up_with_its_client_sends_it_away_and_serves_nothing_older() {
    let views = TestViews::new(4, &[(CDS, "a", "1")]);
    let running = Running::with(views, |options| options.catch_up = Duration::from_millis(10)).await;
    let (requests, receiver) = mpsc::channel(4);
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert(REVISION_METADATA, "999".parse().unwrap());
    requests.send(DeltaDiscoveryRequest { type_url: CDS.into(), ..Default::default() }).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let mut responses = client.delta_aggregated_resources(request).await.unwrap().into_inner();
    let status = responses.message().await.expect_err("it is sent away");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("999"), "{status}");
}

/// What a SotW client says of a type that it has had on an earlier stream.
fn had(type_url: &str, names: &[&str], version: &str) -> DiscoveryRequest {
    DiscoveryRequest { version_info: version.into(), ..answer(type_url, names, "", None) }
}

#[tokio::test]
async fn the_version_in_each_types_first_request_counts_and_is_waited_for() {
    let running = Running::start(TestViews::new(4, &[(CDS, "c", "1"), (EDS, "e", "old")])).await;
    let (requests, mut responses) = sotw(&running, had(CDS, &[], "4")).await;
    let clusters = next(&mut responses).await;
    assert_eq!((clusters.type_url.as_str(), clusters.version_info.as_str()), (CDS, "4"));
    // Its endpoints are of another stream, with a replica that was at revision 5.
    requests.send(had(EDS, &["e"], "5")).await.unwrap();
    requests.send(answer(CDS, &[], &clusters.nonce, None)).await.unwrap();
    running.until(|list| list.len() == 1).await;
    running.views.publish(5, &[(CDS, "c", "1"), (EDS, "e", "new")]);
    let endpoints = next(&mut responses).await;
    assert_eq!((endpoints.type_url.as_str(), endpoints.version_info.as_str()), (EDS, "5"));
    assert_eq!(endpoints.resources[0].value, b"new");
    requests.send(answer(EDS, &["e"], &endpoints.nonce, None)).await.unwrap();
    assert_eq!(running.acked(5).await, [], "what was said meanwhile is heard");
}

#[tokio::test]
async fn a_replica_that_does_not_reach_the_version_of_a_later_type_sends_its_client_away() {
    let views = TestViews::new(4, &[(CDS, "c", "1"), (EDS, "e", "old")]);
    let running = Running::with(views, |options| options.catch_up = Duration::from_millis(10)).await;
    let (requests, mut responses) = sotw(&running, had(CDS, &[], "4")).await;
    let clusters = next(&mut responses).await;
    assert_eq!(clusters.type_url, CDS);
    requests.send(had(EDS, &["e"], "999")).await.unwrap();
    let status = responses.message().await.expect_err("nothing older is served");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("999"), "{status}");
}

#[tokio::test]
async fn the_version_in_a_later_request_of_a_type_and_that_of_a_heartbeat_are_not_waited_for() {
    let running = Running::start(TestViews::new(4, &[(EDS, "e", "1")])).await;
    let (requests, mut responses) = sotw(&running, had(heartbeat::TYPE_URL, &[], "999")).await;
    let beat = next(&mut responses).await;
    assert_eq!(beat.type_url, heartbeat::TYPE_URL);
    requests.send(had(EDS, &["e"], "")).await.unwrap();
    let first = next(&mut responses).await;
    let ack = DiscoveryRequest { version_info: "999".into(), ..answer(EDS, &["e"], &first.nonce, None) };
    requests.send(ack).await.unwrap();
    running.until(|list| list[0].acked_revision == 4).await;
}

#[tokio::test]
async fn the_versions_that_a_delta_client_holds_say_what_it_has_seen() {
    let newer = Running::start(TestViews::new(5, &[(EDS, "a", "new"), (EDS, "b", "1")])).await;
    let first = DeltaDiscoveryRequest {
        type_url: EDS.into(),
        resource_names_subscribe: vec!["a".into(), "b".into()],
        ..Default::default()
    };
    let (_requests, mut responses) = delta(&newer, first.clone()).await;
    let held = next(&mut responses).await.resources;
    let held = held.into_iter().map(|resource| (resource.name, resource.version)).collect();
    let again = DeltaDiscoveryRequest { initial_resource_versions: held, ..first };

    // A replica that lags serves nothing older, and once it is there, what is different.
    let lagging = Running::start(TestViews::new(4, &[(EDS, "a", "old"), (EDS, "b", "1")])).await;
    let (requests, receiver) = mpsc::channel(8);
    requests.send(again.clone()).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(lagging.channel().await);
    let mut responses =
        client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    lagging.views.publish(5, &[(EDS, "a", "new"), (EDS, "b", "2")]);
    let names = |response: &DeltaDiscoveryResponse| {
        response.resources.iter().map(|resource| resource.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        names(&next(&mut responses).await),
        ["b"],
        "of two replicas equal contents have equal versions"
    );

    let views = TestViews::new(4, &[(EDS, "a", "old"), (EDS, "b", "1")]);
    let stuck = Running::with(views, |options| options.catch_up = Duration::from_millis(10)).await;
    let (requests, mut responses) = delta(&stuck, again).await;
    let status = responses.message().await.expect_err("it is sent away");
    assert_eq!(status.code(), Code::Unavailable);
    drop(requests);
}

#[tokio::test]
async fn the_versions_that_a_delta_client_holds_of_a_later_type_are_waited_for() {
    let running = Running::start(TestViews::new(4, &[(CDS, "c", "1"), (EDS, "e", "old")])).await;
    let of = |type_url: &str, names: &[&str]| DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let (requests, mut responses) = delta(&running, of(CDS, &["*"])).await;
    assert_eq!(next(&mut responses).await.type_url, CDS);
    let held = [("e".to_owned(), "0123456789abcdef@5".to_owned())];
    let again = DeltaDiscoveryRequest { initial_resource_versions: held.into(), ..of(EDS, &["e"]) };
    requests.send(again).await.unwrap();
    running.views.publish(5, &[(CDS, "c", "1"), (EDS, "e", "new")]);
    let endpoints = next(&mut responses).await;
    let resource = &endpoints.resources[0];
    assert_eq!(
        (&resource.resource.as_ref().unwrap().value[..], &endpoints.system_version_info[..]),
        (&b"new"[..], "5")
    );
}
