//! The doors of a pod, by running the loaded programs on frames (`BPF_PROG_TEST_RUN`): needs root.

mod documented;
mod ipv6;
#[path = "../support/mod.rs"]
mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_shared::packet::icmp::{ECHO, ECHO6};
use ebpf_shared::packet::{protocol, tcp};
use ebpf_shared::{Addr, Direction, Endpoint, FlowEvent, Kind, Packet, Reason};
use node_agent::kernel::rules::{DefaultDeny, Defaults, Rule};
use node_agent::kernel::{EventRing, Kernel};
use support::frames::{
    ETHERNET, answer, echo, error_about, ethernet, frame, more, packet, piece, query, syn, transport, udp,
};
use support::policy::{DENY_EGRESS, DENY_INGRESS, Writer, defaults, rule};
use support::{Sandbox, in_sandbox};

/// The loopback interface, which test runs happen at.
const LO: u32 = 1;
const CLASS: u32 = 7;
/// Who takes part, in one family, and what that family calls things.
#[derive(Clone, Copy, Debug)]
struct Family {
    pod: IpAddr,
    friend: IpAddr,
    stranger: IpAddr,
    router: IpAddr,
    icmp: u8,
    /// ICMP errors: unreachable and time exceeded; and a redirect.
    errors: [u8; 2],
    redirect: u8,
    /// Bytes of an IP header.
    header: usize,
    /// Where in it the destination is.
    destination: usize,
}

const V4: Family = Family {
    pod: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 5)),
    friend: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 9)),
    stranger: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    router: IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9)),
    icmp: protocol::ICMP,
    errors: [3, 11],
    redirect: 5,
    header: 20,
    destination: 16,
};
const V6: Family = Family {
    pod: IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 5)),
    friend: IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9)),
    stranger: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    router: IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9)),
    icmp: protocol::ICMPV6,
    errors: [1, 3],
    redirect: 137,
    header: 40,
    destination: 24,
};

/// Once for each family, each time in a sandbox of its own.
fn in_both(test: fn(&Sandbox, Family)) {
    for family in [V4, V6] {
        in_sandbox(move |sandbox| test(sandbox, family));
    }
}

const POD_IDENTITY: u32 = 299;
const FRIEND_IDENTITY: u32 = 300;

/// A node with one pod, at the loopback interface.
struct Node {
    kernel: Kernel,
    writer: Writer,
    events: EventRing,
}

impl Node {
    fn new(sandbox: &Sandbox) -> Self {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        for friend in [V4.friend, V6.friend] {
            kernel.identities.upsert(&friend.into(), FRIEND_IDENTITY).expect("writable");
        }
        let events = kernel.events().expect("not taken yet");
        Self { kernel, writer: Writer::default(), events }
    }

    fn with_policy(sandbox: &Sandbox, flags: u32, rules: &[Rule]) -> Self {
        let mut node = Self::new(sandbox);
        node.change_policy(CLASS, flags, rules);
        node
    }

    /// A class beside the old one or in its place, then the endpoint.
    fn change_policy(&mut self, class: u32, flags: u32, rules: &[Rule]) {
        self.change_to(class, &defaults(flags, 101, 102), rules, 0);
    }

    fn change_to(&mut self, class: u32, defaults: &Defaults, rules: &[Rule], flags: u32) {
        self.writer.put(&mut self.kernel, class, defaults, rules);
        let endpoint = Endpoint {
            identity: POD_IDENTITY,
            class,
            flags,
            v4: V4.pod.into(),
            v6: V6.pod.into(),
            ..Endpoint::default()
        };
        self.kernel.endpoints.upsert(LO, endpoint).expect("writable");
    }

    fn run(&self, direction: Direction, frame: &[u8]) -> bool {
        self.kernel.try_frame(direction, frame).expect("a test run")
    }

    /// The reason of the one event that the frame causes; `None` if it causes none. Checks that it agrees
    /// with the verdict.
    fn told(&mut self, direction: Direction, frame: &[u8]) -> Option<FlowEvent> {
        assert_eq!(self.events.try_next(), None, "events of earlier frames have been looked at");
        let passed = self.run(direction, frame);
        let event = self.events.try_next();
        match event {
            Some(event) => {
                let reason = Reason::from_number(event.reason).expect("a reason");
                assert_eq!(passed, reason.passes(), "{event:?}");
            }
            None => assert!(passed, "a drop is always told"),
        }
        assert_eq!(self.events.try_next(), None, "one event for one frame");
        event
    }

    #[track_caller]
    fn expect(&mut self, direction: Direction, frame: &[u8], reason: Reason) -> FlowEvent {
        let event = self.told(direction, frame).expect("news");
        assert_eq!(Reason::from_number(event.reason), Some(reason), "{event:?}");
        event
    }

    /// Passes, as part of a flow that is known.
    #[track_caller]
    fn expect_known(&mut self, direction: Direction, packet: &Packet) {
        assert_eq!(self.told(direction, &frame(packet)), None);
    }
}

fn allow(
    direction: Direction,
    identity: u32,
    protocol: u8,
    ports: Option<(u16, u16)>,
    policy_id: u32,
) -> Rule {
    rule(true, direction, identity, protocol, ports, policy_id)
}

fn deny(
    direction: Direction,
    identity: u32,
    protocol: u8,
    ports: Option<(u16, u16)>,
    policy_id: u32,
) -> Rule {
    rule(false, direction, identity, protocol, ports, policy_id)
}

use Direction::{Egress, Ingress};
use protocol::{ANY, TCP, UDP};

#[test]
fn every_program_is_far_within_the_verifiers_means() {
    in_sandbox(|sandbox| {
        let node = Node::new(sandbox);
        let sizes = node.kernel.program_sizes().expect("readable");
        assert_eq!(sizes.len(), 21);
        println!("{:<16} {:>12} {:>8}", "program", "instructions", "bytes");
        for size in sizes {
            println!("{:<16} {:>12} {:>8}", size.name, size.verified_instructions, size.machine_code);
            assert!(size.verified_instructions < 200_000, "{size:?}");
        }
    });
}

#[test]
fn an_identity_that_is_allowed_passes_and_everyone_else_meets_the_default_deny() {
    in_both(|sandbox, net| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 80)), 11)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &rules);
        let event = node.expect(Ingress, &frame(&syn((net.friend, 4000), (net.pod, 80))), Reason::Forwarded);
        assert_eq!(
            (event.policy_id, event.src_identity, event.dst_identity, event.ifindex),
            (11, FRIEND_IDENTITY, POD_IDENTITY, LO)
        );
        assert_eq!((event.src, event.src_port, event.dst_port), (Addr::from(net.friend), 4000, 80));
        assert_eq!((event.protocol, event.direction, event.tcp_flags), (TCP, Ingress as u8, tcp::SYN));
        let event =
            node.expect(Ingress, &frame(&syn((net.friend, 4000), (net.pod, 81))), Reason::DefaultDeny);
        assert_eq!(event.policy_id, 101);
        let event =
            node.expect(Ingress, &frame(&syn((net.stranger, 4000), (net.pod, 80))), Reason::DefaultDeny);
        assert_eq!(event.src_identity, ebpf_shared::identity::WORLD);
        // Egress is not denied by default.
        node.expect(Egress, &frame(&syn((net.pod, 5000), (net.stranger, 443))), Reason::Forwarded);
    });
}

#[test]
fn a_port_range_holds_from_its_first_port_to_its_last() {
    in_both(|sandbox, net| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, TCP, Some((8000, 8999)), 12)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &rules);
        for (port, reason) in [
            (7999, Reason::DefaultDeny),
            (8000, Reason::Forwarded),
            (8500, Reason::Forwarded),
            (8999, Reason::Forwarded),
            (9000, Reason::DefaultDeny),
        ] {
            node.expect(Ingress, &frame(&syn((net.friend, 4000), (net.pod, port))), reason);
        }
    });
}

#[test]
fn a_deny_beats_an_allow_whichever_is_narrower() {
    in_both(|sandbox, net| {
        let rules = [
            allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 80)), 1),
            deny(Ingress, FRIEND_IDENTITY, TCP, Some((0, 1023)), 2),
            allow(Ingress, FRIEND_IDENTITY, ANY, None, 3),
            deny(Ingress, 0, UDP, Some((53, 53)), 4),
        ];
        let mut node = Node::with_policy(sandbox, 0, &rules);
        let event =
            node.expect(Ingress, &frame(&syn((net.friend, 4000), (net.pod, 80))), Reason::PolicyDenied);
        assert_eq!(event.policy_id, 2);
        let event =
            node.expect(Ingress, &frame(&udp((net.friend, 4000), (net.pod, 53))), Reason::PolicyDenied);
        assert_eq!(event.policy_id, 4);
        let event =
            node.expect(Ingress, &frame(&syn((net.friend, 4000), (net.pod, 8080))), Reason::Forwarded);
        assert_eq!(event.policy_id, 3);
    });
}

#[test]
fn replies_pass_and_are_not_news() {
    in_both(|sandbox, net| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 80)), 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS | DENY_EGRESS, &rules);
        let opening = syn((net.friend, 4000), (net.pod, 80));
        node.expect(Ingress, &frame(&opening), Reason::Forwarded);
        node.expect_known(Egress, &answer(&opening, tcp::SYN | tcp::ACK));
        node.expect_known(Ingress, &more(&opening, tcp::ACK));
        node.expect_known(Egress, &answer(&opening, tcp::ACK));
        // The pod itself may not begin anything, not even from the port it answers from.
        node.expect(Egress, &frame(&answer(&opening, tcp::SYN)), Reason::DefaultDeny);
        node.expect(Egress, &frame(&syn((net.pod, 80), (net.friend, 4001))), Reason::DefaultDeny);
    });
}

#[test]
fn a_change_of_policy_cuts_established_connections_both_ways() {
    in_both(|sandbox, net| {
        let allowed = [allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 80)), 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &allowed);
        let opening = syn((net.friend, 4000), (net.pod, 80));
        node.expect(Ingress, &frame(&opening), Reason::Forwarded);
        node.expect_known(Egress, &answer(&opening, tcp::SYN | tcp::ACK));

        node.change_policy(8, DENY_INGRESS, &[]);
        // The server speaks first, and its own egress policy would let it.
        let event = node.expect(Egress, &frame(&answer(&opening, tcp::ACK)), Reason::DefaultDeny);
        assert_eq!((event.is_reply, event.policy_id), (1, 101));
        node.expect(Ingress, &frame(&more(&opening, tcp::ACK)), Reason::DefaultDeny);
        node.expect(Egress, &frame(&answer(&opening, tcp::ACK)), Reason::DefaultDeny);
        node.expect(Ingress, &frame(&opening), Reason::DefaultDeny);

        // What is allowed again before the peers have given up goes on.
        node.change_policy(9, DENY_INGRESS, &allowed);
        node.expect_known(Ingress, &more(&opening, tcp::ACK));
        node.expect_known(Egress, &answer(&opening, tcp::ACK));
    });
}

#[test]
fn a_change_of_identity_is_a_change_of_policy() {
    in_both(|sandbox, net| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, TCP, None, 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &rules);
        let opening = syn((net.friend, 4000), (net.pod, 80));
        node.expect(Ingress, &frame(&opening), Reason::Forwarded);
        node.kernel.identities.upsert(&net.friend.into(), 301).expect("writable");
        node.expect(Ingress, &frame(&more(&opening, tcp::ACK)), Reason::DefaultDeny);
    });
}

#[test]
fn a_segment_of_an_unknown_connection_needs_a_policy_that_allows_both_ways() {
    in_both(|sandbox, net| {
        let segment = packet(TCP, (net.pod, 80), (net.friend, 4000), tcp::ACK);
        let mut node = Node::with_policy(sandbox, 0, &[]);
        node.expect(Egress, &frame(&segment), Reason::Forwarded);
        node.expect_known(Ingress, &answer(&segment, tcp::ACK));
        // What was picked up without knowing who began falls with either side's permission.
        node.change_policy(8, DENY_INGRESS, &[]);
        node.expect(Egress, &frame(&segment), Reason::DefaultDeny);
        // Neither may a pod that is isolated one way begin in the middle.
        let other = packet(TCP, (net.pod, 80), (net.friend, 4001), tcp::ACK);
        node.expect(Egress, &frame(&other), Reason::DefaultDeny);
    });
}

#[test]
fn a_pod_can_only_send_from_its_address_and_be_sent_to_there() {
    in_both(|sandbox, net| {
        let mut node = Node::with_policy(sandbox, 0, &[]);
        node.expect(Egress, &frame(&syn((net.friend, 4000), (net.stranger, 80))), Reason::SpoofedSource);
        node.expect(Ingress, &frame(&syn((net.stranger, 4000), (net.friend, 80))), Reason::WrongDestination);
        assert!(node.kernel.conntrack.dump().expect("readable").is_empty());
    });
}

#[test]
fn an_interface_without_an_endpoint_and_an_endpoint_without_a_class_have_no_traffic() {
    in_both(|sandbox, net| {
        let mut node = Node::new(sandbox);
        let opening = frame(&syn((net.friend, 4000), (net.pod, 80)));
        node.expect(Ingress, &opening, Reason::UnknownEndpoint);
        node.change_policy(CLASS, 0, &[]);
        node.expect(Ingress, &opening, Reason::Forwarded);
        node.writer.remove(&mut node.kernel, CLASS);
        node.expect(Ingress, &opening, Reason::PolicyMissing);
        node.kernel.endpoints.delete(&LO).expect("removable");
        node.expect(Ingress, &opening, Reason::UnknownEndpoint);
    });
}

#[test]
fn pings_are_answered_and_unasked_answers_dropped() {
    in_both(|sandbox, net| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, net.icmp, None, 1), allow(Ingress, 0, TCP, None, 2)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS | DENY_EGRESS, &rules);
        let ping = echo(net.friend, net.pod, 77);
        node.expect(Ingress, &frame(&ping), Reason::Forwarded);
        node.expect_known(Egress, &answer(&ping, 0));
        node.expect(Ingress, &frame(&echo(net.stranger, net.pod, 77)), Reason::DefaultDeny);
        node.expect(Ingress, &frame(&answer(&echo(net.pod, net.stranger, 78), 0)), Reason::DefaultDeny);
        // A redirect would change the pod's routes.
        let mut redirect = frame(&ping);
        redirect[ETHERNET + net.header] = net.redirect;
        node.expect(Ingress, &redirect, Reason::UnsupportedIcmp);
    });
}

#[test]
fn a_rule_may_name_a_type_of_icmp() {
    in_both(|sandbox, net| {
        let echo_type = if net.icmp == protocol::ICMP { ECHO } else { ECHO6 };
        let other = 13 << 8;
        let mut node = Node::with_policy(
            sandbox,
            DENY_INGRESS,
            &[allow(Ingress, FRIEND_IDENTITY, net.icmp, Some((other, other | 0xff)), 1)],
        );
        let ping = echo(net.friend, net.pod, 77);
        node.expect(Ingress, &frame(&ping), Reason::DefaultDeny);
        let rules = [allow(Ingress, FRIEND_IDENTITY, net.icmp, Some((echo_type, echo_type | 0xff)), 2)];
        node.change_policy(CLASS, DENY_INGRESS, &rules);
        assert_eq!(node.expect(Ingress, &frame(&ping), Reason::Forwarded).policy_id, 2);
        node.expect_known(Egress, &answer(&ping, 0));
        // Ports of whichever protocol are no types.
        node.change_policy(
            CLASS,
            DENY_INGRESS,
            &[allow(Ingress, FRIEND_IDENTITY, ANY, Some((0, u16::MAX)), 3)],
        );
        node.expect(Ingress, &frame(&ping), Reason::DefaultDeny);
    });
}

#[test]
fn what_audited_policies_deny_passes_and_is_told() {
    in_both(|sandbox, net| {
        let mut node = Node::new(sandbox);
        let audited =
            Defaults { ingress: DefaultDeny { enforced: None, audited: Some(201) }, ..Defaults::default() };
        let quiet = Rule { audit: true, ..allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 80)), 5) };
        node.change_to(CLASS, &audited, &[quiet], 0);
        node.expect(Ingress, &frame(&syn((net.friend, 4000), (net.pod, 80))), Reason::Forwarded);
        let opening = syn((net.friend, 4000), (net.pod, 81));
        assert_eq!(node.expect(Ingress, &frame(&opening), Reason::Audited).policy_id, 201);
        node.expect_known(Egress, &answer(&opening, tcp::SYN | tcp::ACK));
        node.expect_known(Ingress, &more(&opening, tcp::ACK));
        // Enforced from now on.
        node.change_policy(8, DENY_INGRESS, &[]);
        node.expect(Ingress, &frame(&more(&opening, tcp::ACK)), Reason::DefaultDeny);
        // And again only audited, but for all that this endpoint's policy says.
        node.change_to(8, &defaults(DENY_INGRESS, 101, 102), &[], Endpoint::AUDIT);
        assert_eq!(node.expect(Ingress, &frame(&more(&opening, tcp::ACK)), Reason::Audited).policy_id, 101);
        node.expect_known(Ingress, &more(&opening, tcp::ACK));
        node.expect(Ingress, &frame(&syn((net.stranger, 1), (net.pod, 2))), Reason::Audited);
        node.expect(Egress, &frame(&syn((net.friend, 1), (net.stranger, 2))), Reason::SpoofedSource);
        node.change_to(8, &defaults(DENY_INGRESS, 101, 102), &[], 0);
        node.expect(Ingress, &frame(&more(&opening, tcp::ACK)), Reason::DefaultDeny);
    });
}

#[test]
fn a_class_that_is_edited_in_place_cuts_and_lets_go_on_by_identity() {
    in_both(|sandbox, net| {
        let one = [allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 80)), 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &one);
        let opening = syn((net.friend, 4000), (net.pod, 80));
        node.expect(Ingress, &frame(&opening), Reason::Forwarded);
        node.expect_known(Ingress, &more(&opening, tcp::ACK));
        node.change_policy(CLASS, DENY_INGRESS, &[]);
        node.expect(Ingress, &frame(&more(&opening, tcp::ACK)), Reason::DefaultDeny);
        node.change_policy(CLASS, DENY_INGRESS, &[allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 90)), 2)]);
        node.expect_known(Ingress, &more(&opening, tcp::ACK));
        node.expect(Ingress, &frame(&syn((net.friend, 4001), (net.pod, 90))), Reason::Forwarded);
    });
}

#[test]
fn an_icmp_error_passes_if_it_is_about_a_flow_that_does() {
    in_both(|sandbox, net| {
        let rules = [allow(Egress, FRIEND_IDENTITY, UDP, Some((53, 53)), 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS | DENY_EGRESS, &rules);
        let query = udp((net.pod, 5000), (net.friend, 53));
        let [unreachable, exceeded] = net.errors;
        node.expect(Ingress, &error_about(net.router, &query, unreachable), Reason::DefaultDeny);
        node.expect(Egress, &frame(&query), Reason::Forwarded);
        assert_eq!(node.told(Ingress, &error_about(net.router, &query, unreachable)), None);
        assert_eq!(node.told(Ingress, &error_about(net.router, &query, exceeded)), None);
        // It quotes a packet that the pod can't have sent.
        let foreign = udp((net.stranger, 5000), (net.friend, 53));
        let mut error = error_about(net.router, &foreign, unreachable);
        let at = ETHERNET + net.destination;
        match net.pod {
            IpAddr::V4(pod) => error[at..at + 4].copy_from_slice(&pod.octets()),
            IpAddr::V6(pod) => error[at..at + 16].copy_from_slice(&pod.octets()),
        }
        node.expect(Ingress, &error, Reason::UnrelatedIcmp);
        node.change_policy(8, DENY_INGRESS | DENY_EGRESS, &[]);
        node.expect(Ingress, &error_about(net.router, &query, unreachable), Reason::DefaultDeny);
    });
}

#[test]
fn icmp_of_any_type_is_judged_by_its_type_unless_it_belongs_to_a_flow() {
    in_both(|sandbox, net| {
        let is_v4 = net.icmp == protocol::ICMP;
        // A query that is no echo, a message that nobody answers, an error.
        let [asks, says, fails] = if is_v4 { [13, 40, 3] } else { [139, 144, 2] };
        let rule = |kind: u8, id| {
            let kind = u16::from(kind) << 8;
            allow(Ingress, FRIEND_IDENTITY, net.icmp, Some((kind, kind | 0xff)), id)
        };
        let mut node = Node::with_policy(sandbox, DENY_INGRESS | DENY_EGRESS, &[rule(asks, 1)]);
        let question = query(net.friend, net.pod, asks, 5);
        node.expect(Ingress, &frame(&question), Reason::Forwarded);
        node.expect_known(Egress, &answer(&question, 0));
        node.expect_known(Ingress, &question);
        // Another identifier, another type, another sender, the other way.
        node.expect(Egress, &frame(&answer(&query(net.friend, net.pod, asks, 6), 0)), Reason::DefaultDeny);
        node.expect(Egress, &frame(&answer(&echo(net.friend, net.pod, 5), 0)), Reason::DefaultDeny);
        node.expect(Ingress, &frame(&echo(net.friend, net.pod, 5)), Reason::DefaultDeny);
        node.expect(Ingress, &frame(&query(net.friend, net.pod, says, 0)), Reason::DefaultDeny);
        node.expect(Ingress, &frame(&query(net.stranger, net.pod, asks, 5)), Reason::DefaultDeny);
        node.expect(Egress, &frame(&query(net.pod, net.friend, asks, 5)), Reason::DefaultDeny);
        // An error about the flow follows it, one about another does not pass by it.
        assert_eq!(node.told(Egress, &error_about(net.pod, &question, fails)), None);
        let other = udp((net.pod, 5000), (net.friend, 53));
        let error = error_about(net.friend, &other, fails);
        node.expect(Ingress, &error, Reason::DefaultDeny);

        node.change_policy(8, DENY_INGRESS | DENY_EGRESS, &[rule(says, 2), rule(fails, 3)]);
        node.expect(Ingress, &frame(&question), Reason::DefaultDeny);
        node.expect(Ingress, &frame(&query(net.friend, net.pod, says, 0)), Reason::Forwarded);
        node.expect(Ingress, &error, Reason::Forwarded);
        // By who sends it, and not by whom it says to tell of.
        node.expect(Ingress, &error_about(net.router, &other, fails), Reason::DefaultDeny);
        node.change_policy(9, 0, &[Rule { allow: false, ..rule(fails, 4) }]);
        node.expect(Ingress, &error, Reason::PolicyDenied);
        node.expect(Ingress, &error_about(net.router, &other, fails), Reason::Forwarded);
        node.expect(Ingress, &frame(&query(net.friend, net.pod, asks, 7)), Reason::Forwarded);
    });
}

#[test]
fn an_identifier_that_looks_like_a_type_makes_no_answer_of_a_question() {
    in_both(|sandbox, net| {
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &[]);
        let identifier = if net.icmp == protocol::ICMP { ECHO } else { ECHO6 };
        for identifier in [identifier, 0] {
            let told = |packet: Packet| {
                let mut bytes = frame(&packet);
                let at = ETHERNET + net.header + 4;
                bytes[at..at + 2].copy_from_slice(&identifier.to_be_bytes());
                bytes
            };
            let asked = echo(net.pod, net.friend, identifier);
            node.expect(Egress, &told(asked), Reason::Forwarded);
            node.expect(Ingress, &told(echo(net.friend, net.pod, identifier)), Reason::DefaultDeny);
            assert_eq!(node.told(Ingress, &told(answer(&asked, 0))), None);
        }
    });
}

#[test]
fn pieces_of_a_datagram_share_the_verdict_of_the_first() {
    in_both(|sandbox, net| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, UDP, Some((53, 53)), 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &rules);
        let good = udp((net.friend, 4000), (net.pod, 53));
        let bad = udp((net.friend, 4000), (net.pod, 54));
        node.expect(Ingress, &piece(&good, 1, 2, false, &[0; 16]), Reason::Fragment);
        node.expect(
            Ingress,
            &piece(&good, 1, 0, true, &[transport(&good), vec![0; 8]].concat()),
            Reason::Forwarded,
        );
        assert_eq!(node.told(Ingress, &piece(&good, 1, 2, true, &[0; 16])), None);
        assert_eq!(node.told(Ingress, &piece(&good, 1, 4, false, &[0; 3])), None);
        node.expect(Ingress, &piece(&good, 2, 2, false, &[0; 16]), Reason::Fragment);
        node.expect(
            Ingress,
            &piece(&bad, 3, 0, true, &[transport(&bad), vec![0; 8]].concat()),
            Reason::DefaultDeny,
        );
        node.expect(Ingress, &piece(&bad, 3, 2, false, &[0; 16]), Reason::DefaultDeny);
        // A second piece that could replace the TCP flags that were judged with the first.
        node.change_policy(8, 0, &[]);
        let segment = syn((net.friend, 4000), (net.pod, 80));
        let head = [transport(&segment), vec![0; 4]].concat();
        node.expect(Ingress, &piece(&segment, 4, 0, true, &head), Reason::Forwarded);
        assert_eq!(node.told(Ingress, &piece(&segment, 4, 3, true, &[0; 16])), None);
        node.expect(Ingress, &piece(&segment, 4, 1, true, &[0; 16]), Reason::Fragment);
    });
}

#[test]
fn what_is_no_ip_is_dropped_except_what_keeps_the_link_alive() {
    in_sandbox(|sandbox| {
        let mut node = Node::with_policy(sandbox, 0, &[]);
        for direction in [Ingress, Egress] {
            assert_eq!(node.told(direction, &ethernet(0x0806, &[0; 28])), None, "ARP");
            node.expect(direction, &ethernet(0x8847, &[0; 40]), Reason::UnsupportedEthertype);
        }
        for net in [V4, V6] {
            let mut other = frame(&syn((net.friend, 1), (net.pod, 2)));
            other[ETHERNET + if net.header == 20 { 9 } else { 6 }] = 47;
            node.expect(Ingress, &other, Reason::UnsupportedProtocol);
        }
    });
}

#[test]
fn a_pod_that_comes_after_another_has_none_of_its_connections() {
    in_both(|sandbox, net| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 80)), 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS | DENY_EGRESS, &rules);
        let opening = syn((net.friend, 4000), (net.pod, 80));
        node.expect(Ingress, &frame(&opening), Reason::Forwarded);
        node.expect_known(Egress, &answer(&opening, tcp::SYN | tcp::ACK));
        let before = node.kernel.endpoints.get(&LO).expect("readable").expect("there");
        node.kernel.endpoints.upsert(LO, Endpoint { incarnation: 1, ..before }).expect("writable");
        node.expect(Egress, &frame(&answer(&opening, tcp::ACK)), Reason::DefaultDeny);
    });
}

#[test]
fn truncated_and_contradicting_packets_are_dropped() {
    in_sandbox(|sandbox| {
        let mut node = Node::with_policy(sandbox, 0, &[]);
        let good = frame(&syn((V4.friend, 4000), (V4.pod, 80)));
        for length in [14 + 20, 14 + 24, 14 + 39] {
            node.expect(Ingress, &good[..length], Reason::Malformed);
        }
        let spoilt: [(usize, u8); 6] = [
            (14, 0x44),      // a header of 16 bytes
            (14, 0x4f),      // a header of 60, longer than the packet
            (14, 0x65),      // version 6
            (14 + 3, 30),    // ends within the TCP header
            (14 + 3, 41),    // longer than the frame
            (14 + 32, 0x40), // a TCP header of 16 bytes
        ];
        for (at, value) in spoilt {
            let mut bad = good.clone();
            bad[at] = value;
            node.expect(Ingress, &bad, Reason::Malformed);
        }
        for flags in [0, tcp::SYN | tcp::FIN, tcp::SYN | tcp::RST, 0x29] {
            let christmas = packet(TCP, (V4.friend, 4000), (V4.pod, 80), flags);
            node.expect(Ingress, &frame(&christmas), Reason::Malformed);
        }
        // What is left of the frame is padding, not a header.
        let mut padded = frame(&udp((V4.friend, 4000), (V4.pod, 80)));
        padded[14 + 3] = 24;
        padded.extend([0; 30]);
        node.expect(Ingress, &padded, Reason::Malformed);
        assert!(node.kernel.conntrack.dump().expect("readable").is_empty());
    });
}

#[test]
fn what_is_wrong_with_a_packet_is_found_in_the_middle_of_a_flow() {
    in_both(|sandbox, net| {
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &[]);
        let opening = syn((net.pod, 4000), (net.friend, 80));
        node.expect(Egress, &frame(&opening), Reason::Forwarded);
        let reply = answer(&opening, tcp::ACK);
        node.expect_known(Ingress, &reply);
        let known = more(&opening, tcp::ACK);
        let good = frame(&known);
        for _ in 0..3 {
            node.expect_known(Egress, &known);
            node.expect_known(Ingress, &reply);
        }
        node.expect(Egress, &good[..good.len() - 1], Reason::Malformed);
        let upper = good.len() - 20;
        let length = if net.pod.is_ipv4() { (14 + 3, 39) } else { (14 + 5, 19) };
        for (at, value) in [(14, 0x55), length, (upper + 12, 0x40), (upper + 12, 0x60), (upper + 13, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            node.expect(Egress, &bad, Reason::Malformed);
        }
        let borrowed = packet(TCP, (net.stranger, 4000), (net.friend, 80), tcp::ACK);
        node.expect(Egress, &frame(&borrowed), Reason::SpoofedSource);
        let elsewhere = packet(TCP, (net.friend, 80), (net.stranger, 4000), tcp::ACK);
        node.expect(Ingress, &frame(&elsewhere), Reason::WrongDestination);
        for _ in 0..3 {
            node.expect_known(Egress, &known);
        }
        // Whatever changes is seen by the next packet.
        let before = node.kernel.endpoints.get(&LO).expect("readable").expect("there");
        node.kernel.endpoints.upsert(LO, Endpoint { incarnation: 1, ..before }).expect("writable");
        node.expect(Ingress, &frame(&reply), Reason::DefaultDeny);
        node.kernel.endpoints.upsert(LO, before).expect("writable");
        node.expect_known(Ingress, &reply);
        node.expect_known(Egress, &known);
        node.kernel.endpoints.delete(&LO).expect("removable");
        node.expect(Egress, &good, Reason::UnknownEndpoint);
    });
}

#[test]
fn a_closed_connection_is_opened_anew_and_told_again() {
    in_both(|sandbox, net| {
        let mut node = Node::with_policy(sandbox, DENY_EGRESS, &[]);
        let opening = syn((net.friend, 4000), (net.pod, 80));
        node.expect(Ingress, &frame(&opening), Reason::Forwarded);
        node.expect_known(Ingress, &opening);
        node.expect_known(Egress, &answer(&opening, tcp::SYN | tcp::ACK));
        node.expect_known(Egress, &answer(&opening, tcp::FIN | tcp::ACK));
        node.expect_known(Ingress, &more(&opening, tcp::FIN | tcp::ACK));
        let entries = node.kernel.conntrack.dump().expect("readable");
        let entry = entries.values().next().expect("remembered for a moment");
        assert_eq!((entry.closed_forward, entry.closed_reply), (1, 1));
        node.expect(Ingress, &frame(&opening), Reason::Forwarded);
        node.kernel.forget_connections(LO).expect("removable");
        assert!(node.kernel.conntrack.dump().expect("readable").is_empty());
    });
}

#[test]
fn packets_are_counted_by_reason() {
    in_both(|sandbox, net| {
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &[]);
        let opening = frame(&syn((net.friend, 4000), (net.pod, 80)));
        for _ in 0..3 {
            node.expect(Ingress, &opening, Reason::DefaultDeny);
        }
        let metrics = node.kernel.metrics().expect("readable");
        let (direction, reason, metric) = metrics[0];
        assert_eq!((metrics.len(), direction, reason), (1, Ingress, Reason::DefaultDeny));
        assert_eq!((metric.packets, metric.bytes), (3, 3 * opening.len() as u64));
        assert_eq!(node.kernel.lost().expect("readable"), 0);
    });
}

#[test]
fn what_a_packet_costs_is_printed() {
    in_both(|sandbox, net| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 80)), 1)];
        let node = Node::with_policy(sandbox, DENY_INGRESS, &rules);
        let opening = syn((net.friend, 4000), (net.pod, 80));
        let reply = answer(&opening, tcp::SYN | tcp::ACK);
        for (what, direction, packet) in [
            ("an opening, judged", Ingress, opening),
            ("a reply", Egress, reply),
            ("a segment", Ingress, more(&opening, tcp::ACK)),
        ] {
            let (passes, time) =
                node.kernel.time_frame(direction, &frame(&packet), 100_000).expect("a test run");
            assert!(passes);
            println!(
                "{what:<20} {} {:>6} ns",
                if net.header == 20 { "IPv4" } else { "IPv6" },
                time.as_nanos()
            );
        }
    });
}

#[test]
fn kind_of_a_packet_survives_the_wire() {
    // The emulation is fed the packet, the kernel the frame: this is what makes them comparable.
    for (net, kinds) in [(V4, [8, 0]), (V6, [128, 129])] {
        let ping = echo(net.pod, net.friend, 9);
        assert_eq!(frame(&ping)[ETHERNET + net.header], kinds[0]);
        assert_eq!(answer(&ping, 0).kind, Kind::EchoReply);
        assert_eq!(frame(&answer(&ping, 0))[ETHERNET + net.header], kinds[1]);
    }
}
