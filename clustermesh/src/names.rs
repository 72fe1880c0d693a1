//! The names that peers send, checked before anything is made of them.

/// Whether a text is a DNS label (RFC 1123): what clusters, namespaces and services are called.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether a text is a DNS name of labels.
pub(crate) fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Whether a text is `host:port`: an IP address (IPv6 in brackets) or a DNS name, and a port other than 0.
pub(crate) fn is_host_port(text: &str) -> bool {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return address.port() != 0;
    }
    text.rsplit_once(':').is_some_and(|(host, port)| {
        is_dns_name(host)
            // `10.1` or `1.2.3.999` is a mistyped address rather than a name.
            && !host.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|p| p != 0)
    })
}

/// A value for an error's text: short, and without control characters that a terminal would obey.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().count() > 80 {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_both_needed() {
        for good in ["192.0.2.1:9443", "[2001:db8::1]:9443", "west.example:9443", "localhost:1"] {
            assert!(is_host_port(good), "{good}");
        }
        for bad in [
            "",
            "west",
            "west:",
            ":9443",
            "192.0.2.1:0",
            "192.0.2.999:1",
            "a b:1",
            "west:+1",
            "2001:db8::1:9443",
            "x:99999",
        ] {
            assert!(!is_host_port(bad), "{bad}");
        }
    }

    #[test]
    fn values_in_errors_cannot_drive_a_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a?[2Jb?");
        assert_eq!(shown(&"x".repeat(200)).chars().count(), 81);
    }
}
