//! Checks of what arrives as bare text.

use crate::Refusal;

/// A DNS label (RFC 1123): 1 to 63 of `a-z0-9-`, beginning and ending with a letter or digit.
pub(super) fn label(field: &str, text: &str) -> Result<(), Refusal> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let good = (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&b| ok(b) || b == b'-')
        && ok(bytes[0])
        && ok(bytes[bytes.len() - 1]);
    good.then_some(()).ok_or_else(|| {
        Refusal::invalid(
            field,
            shown(text),
            "is not a DNS label: 1 to 63 of a-z, 0-9 and '-', no '-' at either end",
        )
    })
}

/// A DNS name: labels and dots, at most 253 characters.
pub(super) fn domain(field: &str, text: &str) -> Result<(), Refusal> {
    if text.len() <= 253 && text.split('.').all(|part| label(field, part).is_ok()) {
        return Ok(());
    }
    Err(Refusal::invalid(
        field,
        shown(text),
        "is not a DNS name: labels of a-z, 0-9 and '-' with dots between",
    ))
}

/// `host:port`.
pub(super) fn host_port(field: &str, text: &str) -> Result<(), Refusal> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    if text.len() <= 300 && matches!(port, Some(Ok(1..))) && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Refusal::invalid(field, shown(text), "is not host:port"))
}

/// Refuses a list that is longer than its limit.
pub(super) fn at_most(what: &str, count: usize, limit: usize) -> Result<(), Refusal> {
    if count <= limit {
        return Ok(());
    }
    Err(Refusal::Limit { what: what.to_owned(), count, limit })
}

/// Enough of a bad text to recognise it.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_checked() {
        assert!(label("f", "a-1").is_ok() && domain("f", "node-1.rack.example").is_ok());
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", &"a".repeat(64)] {
            assert!(label("f", bad).is_err(), "{bad}");
        }
        for bad in ["", ".", "a..b", "a.", "a/b"] {
            assert!(domain("f", bad).is_err(), "{bad}");
        }
        assert!(host_port("f", "10.0.0.1:9443").is_ok() && host_port("f", "[::1]:1").is_ok());
        for bad in ["", ":1", "a", "a:", "a:0", "a:65536", "a b:1"] {
            assert!(host_port("f", bad).is_err(), "{bad}");
        }
    }
}
