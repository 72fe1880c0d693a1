//! Services as kube-proxy writes them for iptables and for nftables. PURE but for [`feed`].

use std::{
    fmt::Write as _,
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
};

use super::node::{PORT, virtual_address};

/// For `iptables-restore`: a chain of all services, one for each, and one for each endpoint.
pub(super) fn iptables(services: usize, backends: &[SocketAddr]) -> String {
    let mut chains = String::from("*nat\n:KUBE-SERVICES - [0:0]\n");
    let mut rules = String::from("-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n");
    let mut write = || -> std::fmt::Result {
        for (number, backend) in backends.iter().enumerate() {
            writeln!(chains, ":KUBE-SEP-{number} - [0:0]")?;
            writeln!(rules, "-A KUBE-SEP-{number} -p tcp -m tcp -j DNAT --to-destination {backend}")?;
        }
        for service in 0..services {
            let at = virtual_address(service as u32);
            writeln!(chains, ":KUBE-SVC-{service} - [0:0]")?;
            writeln!(
                rules,
                "-A KUBE-SERVICES -d {at}/32 -p tcp -m tcp --dport {PORT} -j KUBE-SVC-{service}"
            )?;
            for number in 0..backends.len() {
                let left = backends.len() - number;
                let chance = 1.0 / left as f64;
                let share = format!("-m statistic --mode random --probability {chance:.10} ");
                let share = if left > 1 { share.as_str() } else { "" };
                writeln!(rules, "-A KUBE-SVC-{service} {share}-j KUBE-SEP-{number}")?;
            }
        }
        Ok(())
    };
    write().expect("a string takes everything");
    chains + &rules + "COMMIT\n"
}

/// For `nft -f`: a map from address to service, as kube-proxy's newer mode has it.
pub(super) fn nftables(services: usize, backends: &[SocketAddr]) -> String {
    let mut text = String::from("table ip kube-proxy {\n");
    let mut elements = Vec::new();
    for (number, backend) in backends.iter().enumerate() {
        text += &format!("  chain endpoint-{number} {{ meta l4proto tcp dnat to {backend}; }}\n");
    }
    let turns: Vec<String> =
        (0..backends.len()).map(|number| format!("{number} : goto endpoint-{number}")).collect();
    let (many, turns) = (backends.len(), turns.join(", "));
    for service in 0..services {
        text += &format!("  chain service-{service} {{ numgen random mod {many} vmap {{ {turns} }}; }}\n");
        elements.push(format!("{} . tcp . {PORT} : goto service-{service}", virtual_address(service as u32)));
    }
    text += &format!(
        "  map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {} }}; }}\n",
        elements.join(", ")
    );
    text + "  chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }\n  \
            chain prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }\n}\n"
}

/// Runs a program in this thread's network namespace on an input.
pub(super) fn feed(program: &str, arguments: &[&str], input: &str) {
    let child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn();
    let mut child =
        child.unwrap_or_else(|error| panic!("{program}: {error}; `make bench-datapath` installs it"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let status = child.wait().expect("a child");
    assert!(status.success(), "{program}: {status}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends() -> Vec<SocketAddr> {
        ["10.1.0.6:8081", "10.1.0.6:8082"].iter().filter_map(|text| text.parse().ok()).collect()
    }

    #[test]
    fn every_service_of_iptables_is_one_more_rule_to_walk_by() {
        let text = iptables(2, &backends());
        assert_eq!(text.lines().filter(|line| line.starts_with("-A KUBE-SERVICES")).count(), 2);
        assert!(
            text.contains(
                "-A KUBE-SVC-1 -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-0\n"
            )
        );
        assert!(text.contains("-A KUBE-SVC-1 -j KUBE-SEP-1\n"));
        assert!(text.contains("-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.1.0.6:8082\n"));
        assert!(text.ends_with("COMMIT\n"));
    }

    #[test]
    fn every_service_of_nftables_is_one_more_element_of_a_map() {
        let text = nftables(2, &backends());
        assert!(text.contains("10.96.0.2 . tcp . 80 : goto service-1"));
        assert!(text.contains(
            "chain service-1 { numgen random mod 2 vmap { 0 : goto endpoint-0, 1 : goto endpoint-1 }; }"
        ));
    }
}
