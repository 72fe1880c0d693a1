//! A resource with a time to live at the real Envoy: heartbeats keep it, silence ends it, and what has no such time stays.

use std::time::{Duration, Instant};

use crate::{
    Story, Traffic,
    envoy::{self, Api, Backend, eventually, get},
    resources::Mesh,
};

/// Heartbeats come after a third of it. Shorter than what is waited for in tests, longer than a loaded machine may stall.
const TTL: Duration = Duration::from_secs(4);

async fn kept_and_dropped(api: Api) {
    let a = Backend::start("a").await;
    let mut mesh = Mesh::new(envoy::free_port(), a.port);
    mesh.listener_ttl = Some(TTL);
    let Some(mut story) = Story::start(api, &mesh, 1).await else { return };
    story.answers("a").await;

    let (traffic, begun) = (Traffic::start(mesh.port), Instant::now());
    while begun.elapsed() < TTL * 2 {
        traffic.flowing(5).await;
    }
    let failures = traffic.stop().await;
    assert!(failures.is_empty(), "{failures:?}\n{}", story.envoy.log());
    story.acked(1, "heartbeats are no configuration").await;

    // The control plane falls silent.
    story.servers.remove(0).drain();
    let refused = eventually(|| async { get(mesh.port).await.err() }).await;
    assert!(refused.is_some(), "the listener outlives its time\n{}", story.envoy.log());
    let listeners = story.envoy.admin("/listeners").await;
    assert!(!listeners.contains("web::"), "{listeners}");
    let clusters = story.envoy.admin("/clusters").await;
    assert!(clusters.contains("first::"), "what has no time to live is kept: {clusters}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_with_a_time_to_live_ends_with_the_control_plane_by_state_of_the_world() {
    kept_and_dropped(Api::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_with_a_time_to_live_ends_with_the_control_plane_by_delta() {
    kept_and_dropped(Api::Delta).await;
}
