//! The log of a change, from the API to the ACK: every line names the revision.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use control_plane::{config::LogFormat, telemetry::log};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};
use xds_proto::{isthmus::agent::v1::Service, type_url};

use crate::{common::Cluster, raw::Raw};

/// Everything that was logged.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_change_can_be_followed_by_its_revision_from_the_apply_to_the_ack() {
    let captured = Captured::default();
    let filter = EnvFilter::new("control_plane=debug");
    // For the whole process: what the other tests log is told apart below.
    tracing::subscriber::set_global_default(log::subscriber(
        LogFormat::Json,
        filter,
        false,
        captured.clone(),
    ))
    .unwrap();
    let mut cluster = Cluster::start("logs").await;
    let node = cluster.node("logged").await;
    let mut agent = Raw::open(node.channel.clone(), &type_url::<Service>()).await.unwrap();
    agent.catch_up().await;
    let mut revision = 0;
    // Revisions that other tests hardly reach.
    for port in 1..=40 {
        let service = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: a}}, spec: {{ports: [{{port: {port}}}]}}}}"
        );
        revision = cluster.apply(&service).await.unwrap();
    }
    agent.catch_up().await;
    let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let said = |message: &str| {
        lines
            .iter()
            .filter(|line| line["message"] == message && line["revision"].as_u64() == Some(revision))
            .count()
    };
    for message in ["applied objects", "state applied", "mesh compiled", "sent", "ACK"] {
        assert!(said(message) >= 1, "{message:?} at revision {revision} is not in\n{text}");
    }
    // No line about a change lacks it, whichever test has caused it.
    let about_a_change =
        ["applied objects", "deleted objects", "state applied", "mesh compiled", "sent", "ACK", "NACK"];
    for line in &lines {
        let message = line["message"].as_str().unwrap_or_default();
        assert!(!about_a_change.contains(&message) || line["revision"].is_u64(), "{line}");
    }
}
