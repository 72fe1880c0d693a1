//! `clustermesh explain`

use clap::{Args, ValueEnum};
use serde_json::json;
use xds_proto::isthmus::admin::v1::{
    ExplainFlowRequest, ExplainFlowResponse, ExplainedSide, explain_client::ExplainClient,
};

use super::{
    args::StatusOutput,
    client::{REQUEST_TIMEOUT, channel, within},
    failure::Failure,
    out, render,
    server::Server,
};

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Who connects: [NAMESPACE/]WORKLOAD or an address.
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// Where to: [NAMESPACE/]WORKLOAD:PORT or ADDRESS:PORT; without a port for ICMP.
    #[arg(value_name = "TO[:PORT]")]
    pub(crate) to: String,
    #[arg(long, value_enum, default_value = "tcp")]
    pub(crate) protocol: Protocol,
    /// Of workloads that name none.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: StatusOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmpv6,
}

pub(crate) async fn run(server: &Server, args: &ExplainArgs) -> Result<(), Failure> {
    let request = request(args)?;
    let mut client = ExplainClient::new(channel(server).await?);
    let said = within(REQUEST_TIMEOUT, client.flow(request.clone())).await?;
    match args.output {
        StatusOutput::Table => out::print(&text(&request, &said)),
        StatusOutput::Json => out::print(&render::json(&value(&said))),
        StatusOutput::Yaml => out::print(&render::yaml(&value(&said))?),
    }
}

fn request(args: &ExplainArgs) -> Result<ExplainFlowRequest, Failure> {
    let has_ports = !matches!(args.protocol, Protocol::Icmp | Protocol::Icmpv6);
    let (to, port) = match (has_ports, args.to.rsplit_once(':')) {
        (false, _) => (args.to.as_str(), 0),
        (true, Some((to, port))) => match port.parse::<u16>() {
            Ok(port) if port != 0 => (to, u32::from(port)),
            _ => return Err(Failure::usage(format!("{port:?} is no port, which is 1 to 65535"))),
        },
        (true, None) => {
            return Err(Failure::usage(format!(
                "name the port: {}:80, for instance, or --protocol icmp",
                args.to
            )));
        }
    };
    let place = |text: &str| {
        let plain = text.trim_start_matches('[').trim_end_matches(']');
        match plain.contains('/') || plain.parse::<std::net::IpAddr>().is_ok() {
            true => plain.to_owned(),
            false => format!("{}/{plain}", args.namespace),
        }
    };
    let protocol = match args.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
        Protocol::Icmp => "ICMP",
        Protocol::Icmpv6 => "ICMPv6",
    };
    Ok(ExplainFlowRequest {
        source: place(&args.from),
        destination: place(to),
        protocol: protocol.to_owned(),
        port,
    })
}

fn text(request: &ExplainFlowRequest, said: &ExplainFlowResponse) -> String {
    let ExplainFlowRequest { source, destination, protocol, port } = request;
    let port = if *port == 0 { String::new() } else { format!(":{port}") };
    let mut out = format!("{source} -> {destination}{port} {protocol}: {}\n", said.verdict);
    for (name, place, side) in [("egress", source, &said.egress), ("ingress", destination, &said.ingress)] {
        let Some(side) = side else { continue };
        let why = match (side.outside, side.provenance.as_slice()) {
            (true, _) => "no workload of this cluster: nothing is enforced there".to_owned(),
            (false, []) => "no policy has a say".to_owned(),
            (false, rules) => rules.join("\n  "),
        };
        let read = if side.read { ", as far as a proxy admits what it says" } else { "" };
        out.push_str(&format!("{name} at {place}: {}{read}\n  {why}\n", side.verdict));
        if !side.audit.is_empty() {
            out.push_str(&format!("  audited, would be denied by: {}\n", side.audit.join(", ")));
        }
    }
    out.push_str(&format!("(at revision {})\n", said.revision));
    out
}

fn value(said: &ExplainFlowResponse) -> serde_json::Value {
    let side = |side: &Option<ExplainedSide>| {
        let side = side.clone().unwrap_or_default();
        json!({
            "verdict": side.verdict, "provenance": side.provenance, "outside": side.outside,
            "audit": side.audit, "read": side.read,
        })
    };
    json!({
        "verdict": said.verdict, "revision": said.revision,
        "egress": side(&said.egress), "ingress": side(&said.ingress),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(from: &str, to: &str, protocol: Protocol) -> ExplainArgs {
        ExplainArgs {
            from: from.to_owned(),
            to: to.to_owned(),
            protocol,
            namespace: "shop".to_owned(),
            output: StatusOutput::Table,
        }
    }

    #[test]
    fn names_ports_and_addresses_are_told_apart() {
        let asked = |from, to, protocol| {
            let request = request(&args(from, to, protocol)).unwrap();
            format!("{} {} {} {}", request.source, request.destination, request.protocol, request.port)
        };
        assert_eq!(asked("web", "ops/db:5432", Protocol::Tcp), "shop/web ops/db TCP 5432");
        assert_eq!(asked("203.0.113.9", "[2001:db8::1]:53", Protocol::Udp), "203.0.113.9 2001:db8::1 UDP 53");
        assert_eq!(asked("web", "2001:db8::1", Protocol::Icmpv6), "shop/web 2001:db8::1 ICMPv6 0");
        for to in ["pay", "pay:0", "pay:http"] {
            assert!(request(&args("web", to, Protocol::Tcp)).is_err(), "{to}");
        }
    }

    #[test]
    fn the_answer_names_the_rule_of_each_side() {
        let side = |verdict: &str, provenance: &[&str], outside| {
            let provenance = provenance.iter().map(|text| (*text).to_owned()).collect();
            Some(ExplainedSide { verdict: verdict.to_owned(), provenance, outside, ..Default::default() })
        };
        let said = ExplainFlowResponse {
            revision: 41,
            verdict: "DROPPED".to_owned(),
            egress: side("FORWARDED", &[], false),
            ingress: side("DROPPED", &["ciliumnetworkpolicy/shop/guard#ingressDeny[0]"], false),
        };
        let request = request(&args("web", "pay:80", Protocol::Tcp)).unwrap();
        assert_eq!(
            text(&request, &said),
            "shop/web -> shop/pay:80 TCP: DROPPED\negress at shop/web: FORWARDED\n  no policy has a say\n\
             ingress at shop/pay: DROPPED\n  ciliumnetworkpolicy/shop/guard#ingressDeny[0]\n(at revision 41)\n"
        );
    }
}
