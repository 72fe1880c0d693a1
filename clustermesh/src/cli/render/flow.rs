//! Flows, one line each.

use serde_json::{Value, json};
use xds_proto::isthmus::bootstrap::v1::{Flow, FlowPeer};

use super::age::{flow_time, timestamp};
use crate::cli::out::{Paint, Tone};

/// `Nov 22 12:04:05.123  DROPPED    shop/web (10.1.0.5:41234) -> shop/pay (10.1.1.7:8080) TCP  INGRESS west-n1  networkpolicy/...`
pub(crate) fn line(flow: &Flow, paint: Paint) -> String {
    let tone = match flow.verdict.as_str() {
        "FORWARDED" => Tone::Good,
        "DROPPED" => Tone::Bad,
        _ => Tone::Warning,
    };
    let verdict = clean(&flow.verdict);
    let fill = " ".repeat(10_usize.saturating_sub(verdict.chars().count()));
    let arrow = if flow.is_reply { "<-" } else { "->" };
    let mut line = format!(
        "{}  {}{fill} {} {arrow} {} {}  {} {}",
        paint.paint(Tone::Faint, &flow_time(flow.time_unix_nanos)),
        paint.paint(tone, &verdict),
        peer(flow.source.as_ref(), flow.source_port),
        peer(flow.destination.as_ref(), flow.destination_port),
        clean(&flow.protocol),
        clean(&flow.direction),
        clean(&flow.node),
    );
    let why: Vec<String> =
        [&flow.drop_reason, &flow.policy].into_iter().filter(|w| !w.is_empty()).map(|w| clean(w)).collect();
    if !why.is_empty() {
        line.push_str("  ");
        line.push_str(
            &paint.paint(if tone == Tone::Bad { Tone::Warning } else { Tone::Faint }, &why.join(" ")),
        );
    }
    line
}

/// `-o json`: one object a line.
pub(crate) fn json_line(flow: &Flow) -> String {
    let peer = |p: Option<&FlowPeer>, port: u32| {
        let p = p.cloned().unwrap_or_default();
        json!({"address": p.address, "port": port, "workload": p.workload, "identity": p.identity})
    };
    let value: Value = json!({
        "time": timestamp(flow.time_unix_nanos / 1_000_000_000),
        "timeUnixNanos": flow.time_unix_nanos,
        "node": flow.node,
        "verdict": flow.verdict,
        "dropReason": flow.drop_reason,
        "policy": flow.policy,
        "direction": flow.direction,
        "source": peer(flow.source.as_ref(), flow.source_port),
        "destination": peer(flow.destination.as_ref(), flow.destination_port),
        "protocol": flow.protocol,
        "isReply": flow.is_reply,
    });
    value.to_string()
}

fn peer(peer: Option<&FlowPeer>, port: u32) -> String {
    let Some(peer) = peer else { return "?".to_owned() };
    let address = clean(&peer.address);
    let with_port = match (port, address.contains(':')) {
        (0, _) => address,
        (port, true) => format!("[{address}]:{port}"),
        (port, false) => format!("{address}:{port}"),
    };
    match (peer.workload.as_str(), peer.identity) {
        ("", 0) => with_port,
        ("", identity) => format!("identity {identity} ({with_port})"),
        (workload, _) => format!("{} ({with_port})", clean(workload)),
    }
}

fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped() -> Flow {
        let peer = |address: &str, workload: &str| FlowPeer {
            address: address.to_owned(),
            identity: 300,
            workload: workload.to_owned(),
        };
        Flow {
            time_unix_nanos: 1_790_000_000_123_000_000,
            node: "west-n2".to_owned(),
            verdict: "DROPPED".to_owned(),
            drop_reason: "policy".to_owned(),
            policy: "networkpolicy/shop/pay-callers#default-deny-ingress".to_owned(),
            direction: "INGRESS".to_owned(),
            source: Some(peer("10.1.0.5", "shop/web")),
            destination: Some(peer("10.1.1.7", "shop/pay")),
            protocol: "TCP".to_owned(),
            source_port: 41234,
            destination_port: 8080,
            is_reply: false,
        }
    }

    #[test]
    fn a_dropped_flow_names_the_policy() {
        assert_eq!(
            line(&dropped(), Paint::PLAIN),
            "Sep 21 14:13:20.123  DROPPED    shop/web (10.1.0.5:41234) -> shop/pay (10.1.1.7:8080) TCP  \
             INGRESS west-n2  policy networkpolicy/shop/pay-callers#default-deny-ingress"
        );
        let json: Value = serde_json::from_str(&json_line(&dropped())).unwrap();
        assert_eq!(json["source"]["workload"], "shop/web");
        assert_eq!(json["destination"]["port"], 8080);
        assert_eq!(json["policy"], "networkpolicy/shop/pay-callers#default-deny-ingress");
    }

    #[test]
    fn unknown_peers_are_shown_by_what_is_known() {
        let mut flow = dropped();
        flow.source =
            Some(FlowPeer { address: "2001:db8::1".to_owned(), identity: 0, workload: String::new() });
        flow.destination = None;
        flow.policy.clear();
        flow.drop_reason.clear();
        flow.verdict = "FORWARDED".to_owned();
        assert_eq!(
            line(&flow, Paint::PLAIN),
            "Sep 21 14:13:20.123  FORWARDED  [2001:db8::1]:41234 -> ? TCP  INGRESS west-n2"
        );
    }
}
