//! The syntax rules that Kubernetes has for names, labels and ports.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    AUDIT_ANNOTATION, Labels, ObjectError,
    error::{At, Fault},
};

/// Labels or annotations on one object, and entries of a selector.
const MAX_LABELS: usize = 64;

fn label_chars(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.as_bytes().first()) && edge(text.as_bytes().last()) && text.bytes().all(inner)
}

pub(crate) fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && label_chars(text)
}

pub(super) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(label_chars)
}

/// RFC 1123 label.
pub(super) fn dns_label(text: &str, at: &At) -> Result<(), Fault> {
    if is_dns_label(text) {
        return Ok(());
    }
    at.refuse(text, "must be 1 to 63 characters of a-z, 0-9 and '-', with a letter or digit at both ends")
}

/// RFC 1123 subdomain.
pub(super) fn dns_subdomain(text: &str, at: &At) -> Result<(), Fault> {
    if is_dns_subdomain(text) {
        return Ok(());
    }
    at.refuse(
        text,
        "must be 1 to 253 characters of a-z, 0-9, '-' and '.', with a letter or digit at both ends of each part",
    )
}

fn is_qualified_part(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.len() <= 63
        && edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
        && text.bytes().all(inner)
}

/// `[prefix/]name`
pub(super) fn label_key(key: &str, at: &At) -> Result<(), Fault> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if is_qualified_part(name) && prefix.is_none_or(is_dns_subdomain) {
        return Ok(());
    }
    at.refuse(
        key,
        "must be [<DNS subdomain>/]<name>, the name 1 to 63 characters of A-Z, a-z, 0-9, '-', '_' and '.'",
    )
}

/// Labels that a node tells of itself.
///
/// # Errors
/// The first of them that is none, by its path.
pub fn check_node_labels(labels: &Labels) -> Result<(), ObjectError> {
    let read = || -> Result<(), Fault> {
        let at = At::new("labels");
        self::labels(labels, &at)?;
        match labels.get(AUDIT_ANNOTATION).map(String::as_str) {
            None | Some("true" | "false") => Ok(()),
            Some(text) => at.key(AUDIT_ANNOTATION).refuse(text, "must be 'true' or 'false'"),
        }
    };
    read().map_err(|fault| fault.of("node".to_owned()))
}

/// Whether a label may have this value.
pub fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_qualified_part(value)
}

pub(super) fn label_value(value: &str, at: &At) -> Result<(), Fault> {
    if is_label_value(value) {
        return Ok(());
    }
    at.refuse(
        value,
        "must be at most 63 characters of A-Z, a-z, 0-9, '-', '_' and '.', with a letter or digit at both ends",
    )
}

pub(super) fn labels(labels: &Labels, at: &At) -> Result<(), Fault> {
    if labels.len() > MAX_LABELS {
        return at.refuse("", format!("has {} entries, but at most {MAX_LABELS} are allowed", labels.len()));
    }
    for (key, value) in labels {
        label_key(key, &at.key(key))?;
        label_value(value, &at.key(key))?;
    }
    Ok(())
}

pub(super) fn annotations(annotations: &BTreeMap<String, String>, at: &At) -> Result<(), Fault> {
    annotations.keys().try_for_each(|key| label_key(&key.to_ascii_lowercase(), &at.key(key)))
}

pub(super) fn port(number: i64, at: &At) -> Result<u16, Fault> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => at.refuse(number, "must be 1 to 65535"),
    }
}

/// Name of a workload's port (RFC 6335 service name).
pub(super) fn port_name(name: &str, at: &At) -> Result<(), Fault> {
    let ok = name.len() <= 15
        && label_chars(name)
        && !name.contains("--")
        && name.bytes().any(|b| b.is_ascii_lowercase());
    if ok {
        return Ok(());
    }
    at.refuse(name, "must be 1 to 15 characters of a-z, 0-9 and single '-', at least one of them a letter")
}

pub(super) fn ip(text: &str, at: &At) -> Result<IpAddr, Fault> {
    text.parse().map_err(|_| at.fault(text, "must be an IP address"))
}

/// An address that a workload can have: no wildcard, loopback, multicast or broadcast.
pub(super) fn unicast_ip(text: &str, at: &At) -> Result<IpAddr, Fault> {
    let ip = ip(text, at)?;
    let bad = ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || match ip {
            IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
        };
    if bad {
        return at.refuse(text, "must be a unicast address that other hosts can reach");
    }
    Ok(ip)
}

pub(super) fn cidr(text: &str, at: &At) -> Result<IpNet, Fault> {
    let net: IpNet =
        text.parse().map_err(|_| at.fault(text, "must be a CIDR block such as 10.0.0.0/8 or fd00::/64"))?;
    if net.trunc() != net {
        return at.refuse(
            text,
            format!(
                "has bits set beyond its prefix; write {} or {}/{}",
                net.trunc(),
                net.addr(),
                net.max_prefix_len()
            ),
        );
    }
    Ok(net)
}
