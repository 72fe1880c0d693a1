//! Flows, one line each.

use serde_json::{Value, json};
use xds_proto::isthmus::bootstrap::v1::{Flow, FlowDns, FlowPeer};

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
        protocol(flow),
        clean(&flow.direction),
        clean(&flow.node),
    );
    if flow.count > 0 {
        line.push_str(&format!("  +{} more", flow.count));
    }
    if let Some(dns) = &flow.dns {
        line.push_str(&format!("  {}", self::dns(dns)));
    }
    if !flow.service.is_empty() {
        line.push_str(&format!("  service {}", clean(&flow.service)));
    }
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

/// `DNS www.example.com -> 198.51.100.1, 198.51.100.2`, or with the code in the place of the addresses.
fn dns(dns: &FlowDns) -> String {
    let answer = match (dns.addresses.as_slice(), dns.rcode) {
        ([], 0) => String::new(),
        ([], 1) => " -> FORMERR".to_owned(),
        ([], 2) => " -> SERVFAIL".to_owned(),
        ([], 3) => " -> NXDOMAIN".to_owned(),
        ([], 5) => " -> REFUSED".to_owned(),
        ([], code) => format!(" -> code {code}"),
        (addresses, _) => format!(" -> {}", clean(&addresses.join(", "))),
    };
    format!("DNS {}{answer}", clean(&dns.query))
}

/// With what tells segments and messages of one protocol apart.
fn protocol(flow: &Flow) -> String {
    let name = clean(&flow.protocol);
    if flow.is_error {
        return format!("ICMP error about {name}");
    }
    match name.as_str() {
        "TCP" if flow.tcp_flags != 0 => format!("{name} {}", flags(flow.tcp_flags).join(",")),
        "ICMP" | "ICMPV6" => format!("{name} {}/{}", flow.icmp_type, flow.icmp_code),
        _ => name,
    }
}

/// RFC 9293, section 3.1.
fn flags(bits: u32) -> Vec<&'static str> {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    names.into_iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0).map(|(_, name)| name).collect()
}

/// `-o json`: one object a line.
pub(crate) fn json_line(flow: &Flow) -> String {
    let peer = |p: Option<&FlowPeer>, port: u32| {
        let p = p.cloned().unwrap_or_default();
        json!({
            "address": p.address,
            "port": port,
            "workload": p.workload,
            "identity": p.identity,
            "serviceAccount": p.service_account,
        })
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
        "isError": flow.is_error,
        "tcpFlags": flags(flow.tcp_flags),
        "icmpType": flow.icmp_type,
        "icmpCode": flow.icmp_code,
        "interface": flow.interface,
        "service": flow.service,
        "fromTunnel": flow.from_tunnel,
        "bytes": flow.bytes,
        "count": flow.count,
        "dns": flow.dns.as_ref().map(|dns| json!({
            "query": dns.query,
            "rcode": dns.rcode,
            "addresses": dns.addresses,
        })),
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
            ..FlowPeer::default()
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
            tcp_flags: 2,
            ..Flow::default()
        }
    }

    #[test]
    fn a_dropped_flow_names_the_policy() {
        assert_eq!(
            line(&dropped(), Paint::PLAIN),
            "Sep 21 14:13:20.123  DROPPED    shop/web (10.1.0.5:41234) -> shop/pay (10.1.1.7:8080) TCP SYN  \
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
        flow.source = Some(FlowPeer { address: "2001:db8::1".to_owned(), ..FlowPeer::default() });
        flow.destination = None;
        flow.policy.clear();
        flow.drop_reason.clear();
        flow.verdict = "FORWARDED".to_owned();
        assert_eq!(
            line(&flow, Paint::PLAIN),
            "Sep 21 14:13:20.123  FORWARDED  [2001:db8::1]:41234 -> ? TCP SYN  INGRESS west-n2"
        );
    }

    #[test]
    fn what_was_audited_answered_or_only_counted_is_said() {
        let flow = Flow {
            verdict: "AUDIT".to_owned(),
            drop_reason: String::new(),
            is_reply: true,
            service: "shop/pay".to_owned(),
            count: 41,
            ..dropped()
        };
        let line = line(&flow, Paint::PLAIN);
        assert!(line.contains("AUDIT      shop/web (10.1.0.5:41234) <- shop/pay"), "{line}");
        assert!(
            line.contains("west-n2  +41 more  service shop/pay  networkpolicy/shop/pay-callers"),
            "{line}"
        );
        let json: Value = serde_json::from_str(&json_line(&flow)).unwrap();
        assert_eq!((&json["count"], &json["tcpFlags"][0]), (&json!(41), &json!("SYN")));
        let asked = FlowDns { query: "www.example.com".to_owned(), rcode: 5, addresses: Vec::new() };
        assert_eq!(dns(&asked), "DNS www.example.com -> REFUSED");
        let ping = Flow { protocol: "ICMP".to_owned(), icmp_type: 8, ..dropped() };
        assert_eq!(protocol(&ping), "ICMP 8/0");
        assert_eq!(protocol(&Flow { is_error: true, ..dropped() }), "ICMP error about TCP");
    }
}
