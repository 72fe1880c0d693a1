//! What outlives an agent, and what does not: pins. Needs root.

mod support;

use std::fs;
use std::net::Ipv4Addr;

use aya::maps::{Array, Map, MapData};
use ebpf_shared::packet::tcp;
use ebpf_shared::{Direction, Endpoint, Reason, limits};
use node_agent::kernel::rules::Defaults;
use node_agent::kernel::{Kernel, KernelError, unload};
use support::frames::{answer, frame, more, syn};
use support::policy::Writer;
use support::{Sandbox, in_sandbox, run};

const LO: u32 = 1;
const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);

fn load(sandbox: &Sandbox) -> Kernel {
    Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load")
}

fn links(sandbox: &Sandbox) -> Vec<String> {
    let dir = fs::read_dir(sandbox.bpffs().join("links")).expect("readable");
    let mut names: Vec<_> =
        dir.map(|entry| entry.expect("readable").file_name().into_string().expect("ASCII")).collect();
    names.sort();
    names
}

#[test]
fn connections_policy_and_events_outlive_the_agent() {
    in_sandbox(|sandbox| {
        let opening = syn((PEER, 4000), (POD, 80));
        {
            let mut kernel = load(sandbox);
            Writer::default().put(&mut kernel, 3, &Defaults::default(), &[]);
            let endpoint = Endpoint { identity: 299, class: 3, v4: POD.into(), ..Endpoint::default() };
            kernel.endpoints.upsert(LO, endpoint).expect("writable");
            assert!(kernel.try_frame(Direction::Ingress, &frame(&opening)).expect("a test run"));
        }
        let mut kernel = load(sandbox);
        assert_eq!(kernel.policy_classes().expect("readable").into_keys().collect::<Vec<_>>(), [3]);
        assert_eq!(kernel.endpoints.dump().expect("readable").len(), 1);
        let mut events = kernel.events().expect("not taken yet");
        assert!(matches!(kernel.events(), Err(KernelError::EventsTaken)));
        let event = events.try_next().expect("of the agent before");
        assert_eq!((event.reason, event.src_port), (Reason::Forwarded as u8, 4000));
        let reply = answer(&opening, tcp::SYN | tcp::ACK);
        assert!(kernel.try_frame(Direction::Egress, &frame(&reply)).expect("a test run"));
        assert!(kernel.try_frame(Direction::Ingress, &frame(&more(&opening, tcp::ACK))).expect("a test run"));
        assert_eq!(events.try_next(), None, "a known connection is no news");
    });
}

#[test]
fn doors_are_taken_over_and_those_of_vanished_interfaces_forgotten() {
    in_sandbox(|sandbox| {
        run(&["ip", "link", "add", "host0", "type", "veth", "peer", "name", "pod0"]);
        run(&["ip", "link", "add", "host1", "type", "veth", "peer", "name", "pod1"]);
        let (first, second) = {
            let mut kernel = load(sandbox);
            let first = kernel.attach_pod("host0").expect("attachable");
            let second = kernel.attach_pod("host1").expect("attachable");
            assert_eq!(kernel.attach_pod("host0").expect("twice is fine"), first);
            (first, second)
        };
        let before = programs_at("host0");
        assert_eq!(before.len(), 6, "attached without an agent: {before:?}");
        run(&["ip", "link", "del", "host1"]);

        let mut kernel = load(sandbox);
        assert_eq!(kernel.attached_pods().expect("readable").into_iter().collect::<Vec<_>>(), [first]);
        assert!(!links(sandbox).iter().any(|link| link.starts_with(&format!("tc-{second}-"))));
        let after = programs_at("host0");
        assert_eq!(after.len(), 6);
        assert!(after.iter().all(|program| !before.contains(program)), "{before:?} became {after:?}");

        kernel.detach_pod(first).expect("detachable");
        kernel.detach_pod(first).expect("twice is fine");
        assert!(programs_at("host0").is_empty());
        assert!(matches!(kernel.attach_pod("nosuch0"), Err(KernelError::Interface { .. })));
    });
}

/// Numbers of the programs at both hooks of an interface.
fn programs_at(ifname: &str) -> Vec<u32> {
    use aya::programs::{SchedClassifier, TcAttachType};
    [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .flat_map(|place| SchedClassifier::query_tcx(ifname, place).expect("readable").1)
        .map(|program| program.id())
        .collect()
}

#[test]
fn the_socket_hooks_follow_the_agent_to_another_cgroup() {
    in_sandbox(|sandbox| {
        drop(load(sandbox));
        let before = links(sandbox);
        assert_eq!(before.len(), 10, "{before:?}");
        drop(load(sandbox));
        assert_eq!(links(sandbox), before);
        let other = sandbox.cgroup.join("other");
        fs::create_dir(&other).expect("root may");
        drop(Kernel::load(&sandbox.bpffs(), &other).expect("the programs load"));
        let after = links(sandbox);
        assert_eq!(after.len(), 10, "{after:?}");
        assert!(after.iter().all(|link| !before.contains(link)));
        fs::remove_dir(&other).expect("empty");
        drop(load(sandbox));
        assert_eq!(links(sandbox), before);
    });
}

#[test]
fn maps_of_another_format_are_refused_and_unloading_makes_room() {
    in_sandbox(|sandbox| {
        drop(load(sandbox));
        let path = sandbox.bpffs().join("maps/FORMAT");
        let data = MapData::from_pin(&path).expect("pinned");
        let mut format: Array<MapData, u32> = Map::Array(data).try_into().expect("an array");
        format.set(0, limits::FORMAT + 1, 0).expect("writable");
        match Kernel::load(&sandbox.bpffs(), &sandbox.cgroup) {
            Err(KernelError::Format { found, expected, .. }) => {
                assert_eq!((found, expected), (limits::FORMAT + 1, limits::FORMAT));
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("loaded"),
        }
        unload(&sandbox.bpffs()).expect("removable");
        assert!(!sandbox.bpffs().join("maps").exists());
        assert!(!sandbox.bpffs().join("links").exists());
        unload(&sandbox.bpffs()).expect("twice is fine");
        drop(load(sandbox));
    });
}

#[test]
fn a_first_start_that_died_half_way_is_begun_again() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        Writer::default().put(&mut kernel, 3, &Defaults::default(), &[]);
        drop(kernel);
        fs::remove_file(sandbox.bpffs().join("maps/FORMAT")).expect("pinned");
        assert!(load(sandbox).policy_classes().expect("readable").is_empty());
    });
}

#[test]
fn only_a_cgroup_of_its_own_is_hooked() {
    in_sandbox(|sandbox| {
        let root = sandbox.cgroup.parent().expect("below the root");
        assert!(matches!(Kernel::load(&sandbox.bpffs(), root), Err(KernelError::RootCgroup { .. })));
        let not = Kernel::load(&sandbox.bpffs(), std::path::Path::new("/tmp"));
        assert!(matches!(not, Err(KernelError::NotACgroup { .. })));
    });
}
