//! Writes carried out by the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::mpsc::Sender;

use ebpf_shared::{Addr, Direction, Endpoint, FlowKind, Metric, Reason, ServiceKey, overlay::Hop};
use ipnet::IpNet;

use super::{MapError, Maps, endpoint_value};
use crate::{
    desired::{Desired, EndpointEntry, MapOp, NetnsEntry, PodAddresses, Scope, ServiceFrontend},
    kernel::{Gone, Kernel, KernelError},
};

/// The real maps.
pub struct KernelMaps {
    kernel: Kernel,
    /// Takes backends whose connections are to end.
    resets: Option<Sender<Vec<Gone>>>,
}

impl KernelMaps {
    /// Wraps loaded programs.
    pub fn new(kernel: Kernel) -> Self {
        let resetter = kernel.resetter().map_err(|error| causes(&error));
        let resets = match resetter.and_then(|resetter| resetter.start().map_err(|error| causes(&error))) {
            Ok(resets) => Some(resets),
            Err(reason) => {
                tracing::error!(reason, "connections to backends that go will not be reset");
                None
            }
        };
        Self { kernel, resets }
    }

    fn read(&mut self) -> Result<Desired, KernelError> {
        let endpoints = self.kernel.endpoints.dump()?.into_iter().map(|(ifindex, endpoint)| {
            let Endpoint { identity, class, incarnation, .. } = endpoint;
            let addresses = PodAddresses { v4: endpoint.v4.low().into(), v6: known(endpoint.v6) };
            let audit = endpoint.is_audited();
            (ifindex, EndpointEntry { addresses, identity, class, audit, incarnation })
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
            identities: self.kernel.identities.dump()?.into_iter().collect(),
            rulesets: self.kernel.rulesets()?,
            classes: self.kernel.policy_classes()?,
            endpoints: endpoints.collect(),
            services: services.collect(),
            netns: netns.map(|(cookie, captured)| (cookie, NetnsEntry { captured })).collect(),
        })
    }

    fn write(&mut self, op: &MapOp) -> Result<(), KernelError> {
        let kernel = &mut self.kernel;
        match op {
            MapOp::PutRuleSet(number, set) => kernel.put_ruleset(*number, set),
            MapOp::RemoveRuleSet(number, set) => kernel.remove_ruleset(*number, set),
            MapOp::PutClass(number, entry) => kernel.put_class(*number, entry),
            MapOp::RemoveClass(number, identities) => {
                kernel.remove_class(*number, identities.iter().copied())
            }
            MapOp::PutPeer { class, identity, sides } => kernel.put_peer(*class, *identity, *sides),
            MapOp::RemovePeer { class, identity } => kernel.remove_peer(*class, *identity),
            MapOp::PutIdentity(net, identity) => kernel.identities.upsert(net, *identity),
            MapOp::RemoveIdentity(net) => kernel.identities.delete(net).map(drop),
            MapOp::PutEndpoint(ifindex, entry) => kernel.put_endpoint(*ifindex, endpoint_value(entry)),
            MapOp::RemoveEndpoint(ifindex) => kernel.remove_endpoint(*ifindex),
            MapOp::PutService(frontend, entry) => {
                let gone = kernel.services.put(service_key(frontend), entry)?;
                if let Some(resets) = self.resets.as_ref().filter(|_| !gone.is_empty()) {
                    // Its thread ends with the process only.
                    let _ = resets.send(gone);
                }
                Ok(())
            }
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

    fn execute(&mut self, ops: &[MapOp]) -> Result<(), (usize, MapError)> {
        for (place, op) in ops.iter().enumerate() {
            let told = |error| (place, MapError { what: describe(op), reason: causes(&error) });
            self.write(op).map_err(told)?;
        }
        Ok(())
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

    fn migrates_from(&self) -> Option<u32> {
        self.kernel.migrates_from()
    }

    fn finish_migration(&mut self) -> Result<(), MapError> {
        self.kernel.finish_migration().map_err(|error| MapError {
            what: "replacing programs of an older map format".into(),
            reason: causes(&error),
        })
    }

    fn lost_events(&mut self) -> u64 {
        self.kernel.lost().unwrap_or(0)
    }

    fn packets(&mut self) -> Vec<(Direction, Reason, Metric)> {
        self.kernel.metrics().unwrap_or_default()
    }

    fn suppressed(&mut self) -> Vec<(Direction, Reason, Metric)> {
        self.kernel.flows.suppressed().unwrap_or_default()
    }

    fn set_hops(&mut self, hops: &BTreeMap<IpNet, Hop>) -> Result<(), MapError> {
        let refused = |error: KernelError| MapError {
            what: format!("writing {} ranges of nodes", hops.len()),
            reason: causes(&error),
        };
        self.kernel.nodes.set(hops).map_err(refused)
    }

    fn set_host(&mut self, locals: &BTreeSet<IpAddr>, control: &BTreeSet<SocketAddr>) -> Result<(), MapError> {
        // What is never judged first.
        let written = self.kernel.set_control(control).and_then(|()| self.kernel.set_locals(locals));
        written.map_err(|error| MapError {
            what: format!("writing {} addresses of this node", locals.len()),
            reason: causes(&error),
        })
    }

    fn flow_kinds(&mut self) -> BTreeMap<FlowKind, Metric> {
        self.kernel.flows.kinds().unwrap_or_default()
    }
}

/// An endpoint's address of a family, if it has one.
fn known(addr: Addr) -> Option<Ipv6Addr> {
    (!addr.is_unspecified()).then(|| addr.into())
}

fn service_key(frontend: &ServiceFrontend) -> ServiceKey {
    ServiceKey::new(frontend.address.into(), frontend.port, frontend.protocol, frontend.scope.number())
}

/// A write in a few words: rules and slots are too many for a sentence.
fn describe(op: &MapOp) -> String {
    match op {
        MapOp::PutRuleSet(number, set) => {
            format!("writing ruleset {number} of {} entries", set.entries().len())
        }
        MapOp::RemoveRuleSet(number, _) => format!("removing ruleset {number}"),
        MapOp::PutClass(number, entry) => format!("writing class {number} of {} peers", entry.peers.len()),
        MapOp::RemoveClass(number, _) => format!("removing class {number}"),
        MapOp::PutPeer { class, identity, .. } => format!("writing identity {identity} of class {class}"),
        MapOp::RemovePeer { class, identity } => format!("removing identity {identity} of class {class}"),
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
