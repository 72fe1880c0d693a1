//! A peer that is connected and says nothing.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::process::{PATIENCE, Replica, WEST, until};

async fn scrape(at: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn sample(page: &str, begins: &str) -> Option<f64> {
    let line = page.lines().find(|line| line.starts_with(begins))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// The state of the peer as a user reads it.
async fn state(replica: &Replica) -> String {
    let status = replica.types("status").await.ends(0);
    if status.out.contains("\nPeers: none\n") {
        return "none".to_owned();
    }
    status.below("Peers").rows("CLUSTER")[0]["STATE"].clone()
}

async fn until_state(replica: &Replica, wanted: &str) -> Duration {
    let began = Instant::now();
    while state(replica).await != wanted {
        assert!(began.elapsed() < PATIENCE, "never {wanted}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    began.elapsed()
}

const SILENT: &str = "isthmus_federation_peer_silent_seconds{peer=\"east\"}";

async fn until_heard_again(metrics: &str) {
    let began = Instant::now();
    let mut longest = 0.0;
    loop {
        let silent = sample(&scrape(metrics).await, SILENT).unwrap();
        if silent < longest {
            return;
        }
        longest = silent;
        assert!(began.elapsed() < PATIENCE, "never heard again");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_stopped_but_connected_is_stale_until_it_goes_on() {
    let metrics = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let flags: Vec<&str> = WEST.iter().copied().chain(["--metrics", &metrics]).collect();
    let west = Replica::first_start(&flags, None);
    let mut east = Replica::first_start(&["--name", "east", "--trust-domain", "east.example"], None);
    for replica in [&west, &east] {
        until(&replica.socket(), "it leads", |status| status.leader == 1).await;
    }
    let token = east.types("token create --for peer").await.ends(0);
    west.types(&format!("join {}", token.out.trim())).await.ends(0);
    until_state(&west, "connected").await;
    until(&west.socket(), "it has subscribed", |status| {
        status.data_planes.iter().any(|d| d.id == "peer~east")
    })
    .await;
    // It has told that it sends heartbeats on the stream that stands: only of such a one silence means anything. A stream
    // that is opened counts as a word too, so the second is one.
    until_heard_again(&metrics).await;
    until_heard_again(&metrics).await;

    east.signal(SIGSTOP);
    let took = until_state(&west, "stale").await;
    println!("stale after {took:?}");
    // docs/operations.md says 15 s; the rest is what a busy machine may take.
    assert!(took < Duration::from_secs(60), "{took:?}");
    let page = scrape(&metrics).await;
    let of = |state: &str| {
        sample(&page, &format!("isthmus_federation_peer_state{{peer=\"east\",state=\"{state}\"}}"))
    };
    assert_eq!((of("connected"), of("stale")), (Some(0.0), Some(1.0)), "{page}");
    assert!(sample(&page, SILENT).unwrap() >= 15.0);
    // West's own configuration is served meanwhile.
    west.types("get all -A").await.ends(0);

    east.signal(SIGCONT);
    let took = until_state(&west, "connected").await;
    println!("connected again after {took:?}");
    let connected = "isthmus_federation_peer_state{peer=\"east\",state=\"connected\"}";
    assert_eq!(sample(&scrape(&metrics).await, connected), Some(1.0));
}
