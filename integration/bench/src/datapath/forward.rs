//! Small datagrams from pod to pod of one node: with the programs, with nftables and the same policy, and with neither.

use std::net::SocketAddr;

use super::{
    area::Scale,
    client::{Place, ignore},
    count, minus,
    node::{Node, PORTS, other},
    support::{Sandbox, pods::Family},
};
use crate::report::Row;

const PODS: &[u8] = &[5, 6];

pub(super) fn measure(sandbox: &Sandbox, scale: &Scale, says: &dyn Fn(String)) -> Vec<Row> {
    let mut rows = Vec::new();
    for size in scale.sizes {
        says(format!("forward: {} identities", count(*size)));
        let mut ours = Node::guarded(sandbox, &format!("forward{size}"), PODS);
        ours.enforce(*size, &[]);
        let filtered = Node::plain(PODS);
        filter(&filtered, *size);
        let plain = Node::plain(PODS);
        // Without policy by hash: the smallest that is possible at all.
        let nodes = [&ours, &filtered, &plain];
        let to = SocketAddr::new(ours.pods[1].addr(Family::V4), PORTS.0);
        let _ignored = nodes.map(|node| ignore(&node.pods[1].netns, to).expect("free"));
        let mut found = [const { Vec::new() }; 4];
        for round in 0..scale.rounds {
            for turn in 0..nodes.len() {
                let which = (turn + round) % nodes.len();
                found[which].push(flood(nodes[which], to, scale.packets));
            }
            found[3].push(flood(&plain, to, scale.packets));
        }
        let [ours, filtered, plain, again] = &found;
        let size = count(*size);
        if rows.is_empty() {
            rows.push(Row::compared("A/A datagram, pod to pod", "ns", plain, again, "itself", None));
        }
        let name = format!("datagram, pod to pod, {size} identities");
        rows.push(Row::compared(&name, "ns", ours, filtered, "nftables", None));
        rows.push(Row::compared(format!("{name}, beside none"), "ns", ours, plain, "plain", None));
        let [ours, filtered] = [ours, filtered].map(|times| minus(times, plain));
        rows.push(Row::compared(
            format!("added to a datagram by policy, {size} identities"),
            "ns",
            &ours,
            &filtered,
            "nftables",
            None,
        ));
    }
    rows
}

fn flood(node: &Node, to: SocketAddr, packets: usize) -> f64 {
    Place { pod: &node.pods[0], cgroup: None }.flood(to, packets)
}

/// The same policy for nftables: sets of addresses, established connections first, and each pod's own address.
fn filter(node: &Node, others: usize) {
    let [one, two] = [&node.pods[0], &node.pods[1]].map(|pod| pod.v4.to_string());
    let peers: Vec<String> = (0..others as u32).map(|number| other(number).to_string()).collect();
    let script = ruleset(&[one, two], &peers);
    node.netns.run(move || super::kube_proxy::feed("nft", &["-f", "-"], &script));
}

/// For pods behind `host5` and `host6`.
fn ruleset(pods: &[String; 2], peers: &[String]) -> String {
    let [one, two] = pods;
    let peers = [pods.as_slice(), peers].concat().join(", ");
    let (first, last) = PORTS;
    format!(
        "table ip bench {{
  set peers {{ type ipv4_addr; elements = {{ {peers} }}; }}
  chain leave {{
    ct state established,related return
    ip daddr @peers meta l4proto {{ tcp, udp }} th dport {first}-{last} return
    drop
  }}
  chain enter {{
    ct state established,related accept
    ip saddr @peers meta l4proto {{ tcp, udp }} th dport {first}-{last} accept
    drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ct state invalid drop
    iifname . ip saddr != {{ \"host5\" . {one}, \"host6\" . {two} }} drop
    iifname vmap {{ \"host5\" : jump leave, \"host6\" : jump leave }}
    oifname vmap {{ \"host5\" : jump enter, \"host6\" : jump enter }}
  }}
}}
"
    )
}
