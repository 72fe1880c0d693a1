//! Writes carried out by the kernel.

use std::net::Ipv6Addr;

use ebpf_shared::{Addr, Class, Direction, Endpoint, Metric, Reason, ServiceKey};

use super::{MapError, Maps};
use crate::{
    desired::{ClassRules, Desired, EndpointEntry, MapOp, NetnsEntry, PodAddresses, Scope, ServiceFrontend},
    kernel::{
        Kernel, KernelError,
        rules::{Rule, compile},
    },
};

/// The real maps.
pub struct KernelMaps {
    kernel: Kernel,
}

impl KernelMaps {
    /// Wraps loaded programs.
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel }
    }

    fn read(&mut self) -> Result<Desired, KernelError> {
        let numbers = self.kernel.class_numbers()?;
        let endpoints = self.kernel.endpoints.dump()?.into_iter().map(|(ifindex, endpoint)| {
            let Endpoint { identity, class, incarnation, .. } = endpoint;
            let addresses = PodAddresses { v4: endpoint.v4.low().into(), v6: known(endpoint.v6) };
            (ifindex, EndpointEntry { addresses, identity, class, incarnation })
        });
        let services = self.kernel.services.entries().into_iter().map(|(key, service)| {
            let frontend = ServiceFrontend {
                address: key.addr.into(),
                port: key.port,
                protocol: key.protocol,
                scope: Scope::from_number(key.scope),
            };
            (frontend, service)
        });
        let netns = self.kernel.sidecars()?.into_iter();
        Ok(Desired {
            identities: self.kernel.identities.dump()?,
            classes: numbers.into_iter().map(|number| (number, ClassRules::default())).collect(),
            endpoints: endpoints.collect(),
            services: services.collect(),
            netns: netns.map(|(cookie, captured)| (cookie, NetnsEntry { captured })).collect(),
        })
    }

    fn write(&mut self, op: &MapOp) -> Result<(), KernelError> {
        let kernel = &mut self.kernel;
        match op {
            MapOp::PutClass(number, rules) => kernel.put_class(*number, &compiled(rules)),
            MapOp::RemoveClass(number) => kernel.remove_class(*number),
            MapOp::PutIdentity(net, identity) => kernel.identities.upsert(net, *identity),
            MapOp::RemoveIdentity(net) => kernel.identities.delete(net).map(drop),
            MapOp::PutEndpoint(ifindex, entry) => {
                let endpoint = Endpoint {
                    identity: entry.identity,
                    class: entry.class,
                    incarnation: entry.incarnation,
                    v4: entry.addresses.v4.into(),
                    v6: entry.addresses.v6.map_or(Addr::UNSPECIFIED, Addr::from),
                    ..Endpoint::default()
                };
                kernel.endpoints.upsert(*ifindex, endpoint)
            }
            MapOp::RemoveEndpoint(ifindex) => kernel.endpoints.delete(ifindex).map(drop),
            MapOp::PutService(frontend, entry) => kernel.services.put(service_key(frontend), entry).map(drop),
            MapOp::RemoveService(frontend) => kernel.services.remove(&service_key(frontend)).map(drop),
            MapOp::PutNetns(cookie, entry) => kernel.put_sidecar(*cookie, &entry.captured),
            MapOp::RemoveNetns(cookie) => kernel.remove_sidecar(*cookie),
        }
    }
}

impl Maps for KernelMaps {
    fn snapshot(&mut self) -> Result<Desired, MapError> {
        self.read().map_err(|error| MapError { what: "reading the maps".into(), reason: causes(&error) })
    }

    fn execute(&mut self, op: &MapOp) -> Result<(), MapError> {
        self.write(op).map_err(|error| MapError { what: describe(op), reason: causes(&error) })
    }

    fn attach(&mut self, interface: &str, _ifindex: u32) -> Result<(), MapError> {
        self.kernel.attach_pod(interface).map(drop).map_err(|error| MapError {
            what: format!("attaching programs to {interface}"),
            reason: causes(&error),
        })
    }

    fn detach(&mut self, interface: &str, ifindex: u32) -> Result<(), MapError> {
        // Its connections stay behind and are nobody's: see `Endpoint::incarnation`.
        self.kernel.detach_pod(ifindex).map_err(|error| MapError {
            what: format!("detaching programs from {interface}"),
            reason: causes(&error),
        })
    }

    fn attached(&mut self) -> Result<Vec<u32>, MapError> {
        self.kernel
            .attached_pods()
            .map(|pods| pods.into_iter().collect())
            .map_err(|error| MapError { what: "listing attached programs".into(), reason: causes(&error) })
    }

    fn lost_events(&mut self) -> u64 {
        self.kernel.lost().unwrap_or(0)
    }

    fn packets(&mut self) -> Vec<(Direction, Reason, Metric)> {
        self.kernel.metrics().unwrap_or_default()
    }
}

/// An endpoint's address of a family, if it has one.
fn known(addr: Addr) -> Option<Ipv6Addr> {
    (!addr.is_unspecified()).then(|| addr.into())
}

fn service_key(frontend: &ServiceFrontend) -> ServiceKey {
    ServiceKey::new(frontend.address.into(), frontend.port, frontend.protocol, frontend.scope.number())
}

pub(crate) fn compiled(rules: &ClassRules) -> crate::kernel::rules::CompiledClass {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let class = Class {
        flags: flag(rules.deny_ingress.is_some(), Class::DENY_INGRESS)
            | flag(rules.deny_egress.is_some(), Class::DENY_EGRESS),
        ingress_policy: rules.deny_ingress.unwrap_or(0),
        egress_policy: rules.deny_egress.unwrap_or(0),
    };
    let list: Vec<Rule> = rules
        .rules
        .iter()
        .map(|rule| Rule {
            direction: rule.direction,
            allow: rule.allow,
            identity: rule.identity,
            protocol: rule.protocol,
            ports: (rule.ports != (0, u16::MAX)).then_some(rule.ports.0..=rule.ports.1),
            policy_id: rule.policy_id,
        })
        .collect();
    compile(class, &list)
}

/// A write in a few words: rules and slots are too many for a sentence.
fn describe(op: &MapOp) -> String {
    match op {
        MapOp::PutClass(number, rules) => format!("writing class {number} of {} rules", rules.rules.len()),
        MapOp::RemoveClass(number) => format!("removing class {number}"),
        MapOp::PutIdentity(net, identity) => format!("writing identity {identity} of {net}"),
        MapOp::RemoveIdentity(net) => format!("removing the identity of {net}"),
        MapOp::PutEndpoint(ifindex, entry) => format!("writing endpoint {} on {ifindex}", entry.addresses.v4),
        MapOp::RemoveEndpoint(ifindex) => format!("removing the endpoint on {ifindex}"),
        MapOp::PutService(frontend, _) => format!("writing service {}", frontend.socket()),
        MapOp::RemoveService(frontend) => format!("removing service {}", frontend.socket()),
        MapOp::PutNetns(cookie, _) => format!("writing sidecar of namespace {cookie}"),
        MapOp::RemoveNetns(cookie) => format!("removing sidecar of namespace {cookie}"),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
