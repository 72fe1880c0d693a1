//! Ports and protocols as they stand in JSON.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};

use super::{
    AppProtocol, PortRef, Protocol, check,
    error::{At, Fault},
};

/// Kubernetes' `IntOrString`. Not `untagged`, which would lose the path of an error.
#[derive(Debug, Clone)]
pub(super) enum WirePort {
    Number(i64),
    Name(String),
}

impl<'de> Deserialize<'de> for WirePort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = WirePort;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or the name of a port")
            }
            fn visit_i64<E>(self, number: i64) -> Result<WirePort, E> {
                Ok(WirePort::Number(number))
            }
            fn visit_u64<E>(self, number: u64) -> Result<WirePort, E> {
                Ok(WirePort::Number(i64::try_from(number).unwrap_or(i64::MAX)))
            }
            fn visit_str<E>(self, name: &str) -> Result<WirePort, E> {
                Ok(WirePort::Name(name.to_owned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl WirePort {
    pub(super) fn parse(self, at: &At) -> Result<PortRef, Fault> {
        match self {
            WirePort::Number(number) => Ok(PortRef::Number(check::port(number, at)?)),
            WirePort::Name(name) => {
                check::port_name(&name, at)?;
                Ok(PortRef::Name(name))
            }
        }
    }
}

pub(super) fn render(port: &PortRef) -> Value {
    match port {
        PortRef::Number(number) => json!(number),
        PortRef::Name(name) => json!(name),
    }
}

/// The end of a range that begins at `port`.
pub(super) fn end(end: Option<i64>, port: Option<&PortRef>, at: &At) -> Result<Option<u16>, Fault> {
    let Some(end) = end else { return Ok(None) };
    match port {
        Some(PortRef::Number(first)) => {
            let end = check::port(end, at)?;
            if end < *first {
                return at.refuse(end, format!("must be {first} (port) or more"));
            }
            Ok(Some(end))
        }
        Some(PortRef::Name(_)) => at.refuse(end, "can't be used with a named port"),
        None => at.refuse(end, "needs a port"),
    }
}

pub(super) fn protocol(text: Option<&str>, at: &At) -> Result<Protocol, Fault> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => at.refuse(other, "must be TCP, UDP or SCTP"),
    }
}

impl Protocol {
    /// As objects and the federation protocol spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    /// Reads what [`Self::as_str`] writes.
    pub fn from_name(text: &str) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.as_str() == text)
    }
}

impl AppProtocol {
    /// As objects and the federation protocol spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            AppProtocol::Http => "http",
            AppProtocol::Http2 => "http2",
            AppProtocol::Grpc => "grpc",
            AppProtocol::Tcp => "tcp",
        }
    }

    /// Reads what [`Self::as_str`] writes, and Kubernetes' standard names (KEP-3726). Protocols that encrypt
    /// by themselves are opaque to us.
    pub fn from_name(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "http" | "kubernetes.io/ws" => AppProtocol::Http,
            "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
            "grpc" => AppProtocol::Grpc,
            "tcp" | "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tcp,
            _ => return None,
        })
    }
}

pub(super) fn app_protocol(text: &str, at: &At) -> Result<AppProtocol, Fault> {
    AppProtocol::from_name(text)
        .ok_or_else(|| at.fault(text, "must be http, http2 (kubernetes.io/h2c), grpc, tcp, https or tls"))
}

/// What a port speaks when nobody says it: its name's prefix decides as in Istio (`grpc-api`, `tcp`), then HTTP.
/// Datagrams are always opaque.
pub(super) fn implied_app_protocol(name: &str, protocol: Protocol) -> AppProtocol {
    if protocol != Protocol::Tcp {
        return AppProtocol::Tcp;
    }
    let prefix = name.split('-').next().unwrap_or_default();
    match prefix {
        "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        _ => AppProtocol::from_name(prefix).unwrap_or_default(),
    }
}
