//! A state that commands are applied to, without replicas: the real store, compiled and translated by whoever needs it.

#![allow(dead_code)]

use std::net::IpAddr;

use mesh_model::{
    identity::TrustDomain,
    records::{ClusterInfo, WorkloadBinding},
    resource::{NamespacedName, Object},
};
use mesh_store::{Bytes16, Command, Envelope, Outcome, State, apply};
use serde_json::Value;

#[derive(Debug, Default)]
pub struct World {
    pub state: State,
    commands: u128,
}

impl World {
    /// Of a cluster that has just been made.
    pub fn of(cluster: ClusterInfo) -> Self {
        let mut world = Self::default();
        world.run(Command::Init(cluster));
        world
    }

    /// It may be refused, which changes nothing.
    pub fn take(&mut self, command: Command) -> Outcome {
        self.commands += 1;
        let key = Bytes16(self.commands.to_be_bytes());
        let envelope = Envelope { key, now_unix_ms: 1_000_000, first_unix_ms: None, random: key, command };
        apply(&mut self.state, &envelope).outcome
    }

    #[track_caller]
    pub fn run(&mut self, command: Command) {
        self.take(command).unwrap();
    }

    #[track_caller]
    pub fn put(&mut self, object: Value) {
        self.run(Command::Apply { objects: vec![Object::parse(&object).unwrap()], dry_run: false });
    }

    /// A workload runs on a node, and is ready.
    #[track_caller]
    pub fn bind(&mut self, workload: NamespacedName, node: &str, address: IpAddr) {
        let binding = WorkloadBinding { node: node.to_owned(), addresses: vec![address], ready: true };
        self.run(Command::BindWorkload { workload, binding });
    }
}

/// A cluster named west.
pub fn west() -> ClusterInfo {
    ClusterInfo {
        name: "west".to_owned(),
        trust_domain: TrustDomain::parse("west.example").unwrap(),
        mesh_domain: "mesh.local".to_owned(),
        pod_cidr: "10.1.0.0/16".parse().unwrap(),
        pod_cidr6: None,
        service_cidr6: None,
        service_cidr: "10.101.0.0/16".parse().unwrap(),
        roots: vec![vec![9]],
        trust: Default::default(),
    }
}
