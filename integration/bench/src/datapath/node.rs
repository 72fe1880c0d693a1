//! Nodes as network namespaces, with the programs at their pods' doors or without, and policy as the agent writes it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ebpf_shared::{
    Direction, ServiceKey,
    packet::protocol::{TCP, UDP},
    service::scope,
};
use node_agent::{
    desired::{ServedBackend, ServiceEntry},
    kernel::Kernel,
};

use super::support::{
    Sandbox,
    pods::{Netns, Pod, forward},
    policy::{DENY_EGRESS, DENY_INGRESS, Writer, defaults, rule},
};

/// Policy of all pods here.
pub(super) const CLASS: u32 = 7;
/// Identity of all pods here.
pub(super) const POD: u32 = 299;
/// The first of the others.
pub(super) const FIRST: u32 = 300;
/// Where servers listen: what policy allows.
pub(super) const PORTS: (u16, u16) = (8080, 8095);
/// Of every service.
pub(super) const PORT: u16 = 80;

/// A node with pods.
pub(super) struct Node {
    pub netns: Netns,
    pub kernel: Option<Kernel>,
    pub pods: Vec<Pod>,
}

impl Node {
    /// A node whose pods are guarded. `name` is unique in the sandbox.
    pub(super) fn guarded(sandbox: &Sandbox, name: &str, pods: &'static [u8]) -> Self {
        let netns = Netns::new();
        let (bpffs, cgroup) = (sandbox.bpffs().join(name), sandbox.cgroup.clone());
        let (kernel, pods) = netns.run(move || {
            let mut kernel = Kernel::load(&bpffs, &cgroup).expect("the programs load");
            forward();
            let pods = pods.iter().map(|number| Pod::new(&mut kernel, *number)).collect();
            (kernel, pods)
        });
        Self { netns, kernel: Some(kernel), pods }
    }

    /// A node of links and routes.
    pub(super) fn plain(pods: &'static [u8]) -> Self {
        let netns = Netns::new();
        let pods = netns.run(move || {
            forward();
            pods.iter().map(|number| Pod::unguarded(*number)).collect()
        });
        Self { netns, kernel: None, pods }
    }

    pub(super) fn kernel(&mut self) -> &mut Kernel {
        self.kernel.as_mut().expect("a guarded node")
    }

    /// Has the pods under a policy that allows pods and so many others.
    pub(super) fn enforce(&mut self, others: usize, friends: &[IpAddr]) {
        let endpoints: Vec<_> =
            self.pods.iter().map(|pod| (pod.ifindex, pod.endpoint(POD, CLASS), pod.v4)).collect();
        let kernel = self.kernel();
        for friend in friends.iter().copied().chain(endpoints.iter().map(|(_, _, v4)| IpAddr::V4(*v4))) {
            kernel.identities.upsert(&friend.into(), POD).expect("writable");
        }
        allow(kernel, others);
        for (ifindex, endpoint, _) in endpoints {
            kernel.endpoints.upsert(ifindex, endpoint).expect("writable");
        }
    }
}

/// Writes a class that lets pods and so many others, each an identity of its own with one address, in and out.
pub(super) fn allow(kernel: &mut Kernel, others: usize) {
    let mut rules = Vec::new();
    for number in 0..others as u32 {
        kernel.identities.upsert(&IpAddr::V4(other(number)).into(), FIRST + number).expect("writable");
    }
    for identity in [POD].into_iter().chain((0..others as u32).map(|number| FIRST + number)) {
        for direction in [Direction::Ingress, Direction::Egress] {
            for protocol in [TCP, UDP] {
                rules.push(rule(true, direction, identity, protocol, Some(PORTS), 11));
            }
        }
    }
    let deny = defaults(DENY_INGRESS | DENY_EGRESS, 101, 102);
    Writer::default().put(kernel, CLASS, &deny, &rules);
}

/// The address of one of the others.
pub(super) fn other(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + number)
}

/// The virtual address of a service.
pub(super) fn virtual_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + number)
}

/// Writes a service with these backends.
pub(super) fn serve(kernel: &mut Kernel, at: Ipv4Addr, protocol: u8, backends: &[SocketAddr]) {
    let each = backends.iter().map(|at| (*at, ServedBackend { weight: 1, chosen: true, here: true }));
    let entry = ServiceEntry { backends: each.collect(), ..ServiceEntry::default() };
    let key = ServiceKey::new(IpAddr::V4(at).into(), PORT, protocol, scope::INSIDE);
    kernel.services.put(key, &entry).expect("writable");
}
