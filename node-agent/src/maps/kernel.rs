//! Writes carried out by the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::mpsc::Sender;

use ebpf_shared::{Direction, Endpoint, FlowKind, Metric, Reason, ServiceKey, limits, overlay::Hop};
use ipnet::IpNet;

use super::{MapError, Maps, endpoint_value};
use crate::{
    desired::{Desired, EndpointEntry, Limits, MapOp, NetnsEntry, PodAddresses, Scope, ServiceFrontend},
    kernel::{Around, Gone, Held, Kernel, KernelError},
};

/// The real maps.
pub struct KernelMaps {
    kernel: Kernel,
    /// Takes backends whose connections are to end.
    resets: Option<Sender<Vec<Gone>>>,
    /// What was too small for the write that was refused last.
    full: Option<&'static str>,
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
        Self { kernel, resets, full: None }
    }

    /// The programs and their maps, to be looked at.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Why the last write was refused.
    fn reason(&self, error: &KernelError) -> String {
        match self.full {
            Some(map) => format!("kernel map {map} is full ({})", causes(error)),
            None => causes(error),
        }
    }

    fn reset(&self, gone: Vec<Gone>) {
        if let Some(resets) = self.resets.as_ref().filter(|_| !gone.is_empty()) {
            // Its thread ends with the process only.
            let _ = resets.send(gone);
        }
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
            MapOp::PutLingering(address, identity) => kernel.identities.linger(*address, Some(*identity)),
            MapOp::RemoveLingering(address) => kernel.identities.linger(*address, None),
            MapOp::PutEndpoint(ifindex, entry) => kernel.put_endpoint(*ifindex, endpoint_value(entry)),
            MapOp::RemoveEndpoint(ifindex) => kernel.remove_endpoint(*ifindex),
            MapOp::PutService(frontend, entry) => {
                let gone = kernel.services.put(service_key(frontend), entry)?;
                self.reset(gone);
                Ok(())
            }
            MapOp::RemoveService(frontend) => {
                let gone = kernel.services.remove(&service_key(frontend))?;
                self.reset(gone.unwrap_or_default());
                Ok(())
            }
            MapOp::PutProxy(slot, entry) => kernel.proxies.upsert((*slot).into(), entry.into()),
            MapOp::PutNetns(cookie, entry) => kernel.put_sidecar(*cookie, &entry.captured),
            MapOp::RemoveNetns(cookie) => kernel.remove_sidecar(*cookie),
        }
    }
}

impl Maps for KernelMaps {
    fn snapshot(&mut self) -> Result<Desired, MapError> {
        let held = self.kernel.held().map(Desired::from);
        held.map_err(|error| MapError { what: "reading the maps".into(), reason: causes(&error) })
    }

    fn limits(&self) -> Limits {
        let Ok(size) = self.kernel.sizes() else { return Limits::KERNEL };
        let of = |name: &str, usual: u32| size.get(name).copied().unwrap_or(usual);
        Limits {
            hosts: of("HOSTS", Limits::KERNEL.hosts),
            lingering: of("LINGERING", Limits::KERNEL.lingering),
            // One is always there, and of classes there is none with the number 0.
            cidrs: of("CIDRS", limits::CIDRS).saturating_sub(1),
            classes: of("CLASSES", limits::CLASSES).saturating_sub(1),
            endpoints: of("ENDPOINTS", Limits::KERNEL.endpoints),
            peers: of("PEERS", Limits::KERNEL.peers),
            rules: of("RULES", Limits::KERNEL.rules),
            services: of("SERVICES", Limits::KERNEL.services),
            backends: of("BACKENDS", Limits::KERNEL.backends),
            sources: of("SOURCES", Limits::KERNEL.sources),
            netns: of("NETNS", Limits::KERNEL.netns),
            captured: of("CAPTURED", Limits::KERNEL.captured),
        }
    }

    fn full(&self) -> Option<&'static str> {
        self.full
    }

    fn execute(&mut self, ops: &[MapOp]) -> Result<(), (usize, MapError)> {
        for (place, op) in ops.iter().enumerate() {
            if let Err(error) = self.write(op) {
                self.full = error.full();
                return Err((place, MapError { what: describe(op), reason: self.reason(&error) }));
            }
        }
        self.full = None;
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

    fn around(&self) -> Around {
        self.kernel.around()
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
        let written = self.kernel.set_hops(hops);
        self.full = written.as_ref().err().and_then(KernelError::full);
        written.map_err(|error| MapError {
            what: format!("writing {} ranges of nodes", hops.len()),
            reason: self.reason(&error),
        })
    }

    fn set_host(
        &mut self,
        locals: &BTreeSet<IpAddr>,
        control: &BTreeSet<SocketAddr>,
    ) -> Result<(), MapError> {
        // What is never judged first.
        let (what, written) = match self.kernel.set_control(control) {
            Ok(()) => {
                (format!("writing {} addresses of this node", locals.len()), self.kernel.set_locals(locals))
            }
            // Further addresses are under policy only with all that is never judged; those that are gone, no more.
            Err(error) => (format!("writing {} addresses of the control plane", control.len()), Err(error)),
        };
        self.full = written.as_ref().err().and_then(KernelError::full);
        written.map_err(|error| MapError { what, reason: self.reason(&error) })
    }

    fn flow_kinds(&mut self) -> BTreeMap<FlowKind, Metric> {
        self.kernel.flows.kinds().unwrap_or_default()
    }
}

impl From<Held> for Desired {
    fn from(held: Held) -> Self {
        let endpoints = held.endpoints.into_iter().map(|(ifindex, endpoint)| {
            let Endpoint { identity, class, incarnation, .. } = endpoint;
            let v6 = (!endpoint.v6.is_unspecified()).then(|| Ipv6Addr::from(endpoint.v6));
            let addresses = PodAddresses { v4: endpoint.v4.low().into(), v6 };
            let audit = endpoint.is_audited();
            (ifindex, EndpointEntry { addresses, identity, class, audit, incarnation })
        });
        let services = held.services.into_iter().map(|(key, service)| {
            let frontend = ServiceFrontend {
                address: key.addr.into(),
                port: key.port,
                protocol: key.protocol,
                scope: Scope::from_number(key.scope),
            };
            (frontend, service)
        });
        // (The map has no more slots than fit.)
        let proxies = held.proxies.iter().map(|(slot, proxy)| (*slot as u16, proxy.into()));
        let netns = held.sidecars.into_iter().map(|(cookie, captured)| (cookie, NetnsEntry { captured }));
        Self {
            identities: held.identities.into_iter().collect(),
            lingering: held.lingering,
            rulesets: held.rulesets,
            classes: held.classes,
            endpoints: endpoints.collect(),
            services: services.collect(),
            proxies: proxies.collect(),
            netns: netns.collect(),
        }
    }
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
        MapOp::PutLingering(address, identity) => format!("writing identity {identity} that {address} had"),
        MapOp::RemoveLingering(address) => format!("removing the identity that {address} had"),
        MapOp::PutEndpoint(ifindex, entry) => format!("writing endpoint {} on {ifindex}", entry.addresses.v4),
        MapOp::RemoveEndpoint(ifindex) => format!("removing the endpoint on {ifindex}"),
        MapOp::PutService(frontend, _) => format!("writing service {}", frontend.socket()),
        MapOp::RemoveService(frontend) => format!("removing service {}", frontend.socket()),
        MapOp::PutProxy(slot, _) => format!("writing the proxy of slot {slot}"),
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
