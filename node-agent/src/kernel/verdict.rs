//! The verdict without a kernel: the shared lines over plain collections. For tests and for explaining.

use std::collections::BTreeMap;

use ebpf_shared::decide::Scene;
use ebpf_shared::{
    Class, ConnEntry, ConnKey, Conntrack, Decision, Direction, Endpoint, Ip4, Packet, PolicyKey, PolicyMaps,
    PolicyValue, Reason, Ruling, decide,
};
use ipnet::Ipv4Net;

use super::rules::{CompiledClass, RulePrefix};

/// Everything that the verdict reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub classes: BTreeMap<u32, Class>,
    pub rules: BTreeMap<RulePrefix, PolicyValue>,
    pub ipcache: BTreeMap<Ipv4Net, u32>,
}

impl Policy {
    /// Puts a class in place, or replaces it.
    pub fn put_class(&mut self, number: u32, compiled: &CompiledClass) {
        self.remove_class(number);
        self.classes.insert(number, compiled.class);
        self.rules.extend(compiled.rules.iter().map(|(prefix, value)| (prefix.of_class(number), *value)));
    }

    /// Removes a class and its rules.
    pub fn remove_class(&mut self, number: u32) {
        self.classes.remove(&number);
        self.rules.retain(|prefix, _| prefix.key.class != number);
    }
}

impl PolicyMaps for Policy {
    fn class(&self, class: u32) -> Option<Class> {
        self.classes.get(&class).copied()
    }

    fn rule(&self, key: &PolicyKey) -> Option<PolicyValue> {
        let exact = RulePrefix { key: *key, port_bits: 16 };
        exact.with_parents().find_map(|prefix| self.rules.get(&prefix).copied())
    }

    fn identity(&self, addr: Ip4) -> u32 {
        let narrowest = (0..=32).rev().find_map(|length| {
            let net = Ipv4Net::new(addr.into(), length).ok()?.trunc();
            self.ipcache.get(&net).copied()
        });
        narrowest.unwrap_or(ebpf_shared::identity::ANY)
    }
}

/// The connections, without a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections(pub BTreeMap<ConnKey, ConnEntry>);

impl Conntrack for Connections {
    fn get(&mut self, key: &ConnKey) -> Option<&mut ConnEntry> {
        self.0.get_mut(key)
    }

    fn insert(&mut self, key: &ConnKey, entry: &ConnEntry) -> bool {
        self.0.insert(*key, *entry);
        true
    }
}

/// A node's pods, policy and connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emulation {
    pub policy: Policy,
    pub endpoints: BTreeMap<u32, Endpoint>,
    pub connections: Connections,
    /// Raised by the caller with each change to policy or endpoints.
    pub generation: u64,
}

impl Emulation {
    /// Decides on a packet at the door of a pod, `now` being nanoseconds of a monotonic clock.
    pub fn decide(&mut self, ifindex: u32, direction: Direction, packet: &Packet, now: u64) -> Decision {
        let refuse = |reason| Decision { ruling: Ruling::drop(reason, 0), is_reply: false, is_news: true };
        let Some(endpoint) = self.endpoints.get(&ifindex) else { return refuse(Reason::UnknownEndpoint) };
        match direction {
            Direction::Egress if packet.src != endpoint.addr => return refuse(Reason::SpoofedSource),
            Direction::Ingress if packet.dst != endpoint.addr => return refuse(Reason::WrongDestination),
            _ => {}
        }
        let scene = Scene { ifindex, endpoint, direction, generation: self.generation, now };
        decide(&self.policy, &mut self.connections, &scene, packet)
    }
}
