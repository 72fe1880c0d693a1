//! The PROXY protocol, versions 1 and 2 (haproxy.org/download/3.0/doc/proxy-protocol.txt): who a connection is passed on for.
//!
//! The parser is total: every input has an answer, and none panics.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use serde::Serialize;
use tokio::{io::AsyncReadExt, net::TcpStream};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, with its end.
const MAX_LINE: usize = 107;
/// Most bytes after the head of version 2: two addresses, and extensions, which are skipped.
const MAX_BODY: usize = 4096;

/// Which header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Who is connected with whom, as the header has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// The client.
    pub source: SocketAddr,
    /// Whom it asked.
    pub destination: SocketAddr,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Too few to say.
    Incomplete,
    /// No header.
    Absent,
    /// It begins as one, and is none.
    Malformed,
    /// A header of so many bytes.
    Present {
        /// See there.
        version: HeaderVersion,
        /// Its length.
        length: usize,
        /// None: the sender speaks for itself (`LOCAL`, `UNKNOWN`).
        passed: Option<Passed>,
    },
}

/// Reads the first bytes of a connection.
pub fn parse_header(bytes: &[u8]) -> Header {
    let begins = |what: &[u8]| bytes.iter().zip(what).all(|(a, b)| a == b);
    if begins(SIGNATURE) {
        if bytes.len() < SIGNATURE.len() { Header::Incomplete } else { version2(bytes) }
    } else if begins(b"PROXY ") {
        if bytes.len() < 6 { Header::Incomplete } else { version1(bytes) }
    } else {
        Header::Absent
    }
}

fn version1(bytes: &[u8]) -> Header {
    let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Header::Incomplete } else { Header::Malformed };
    };
    let line = bytes.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let Some(line) = line.and_then(|line| std::str::from_utf8(line).ok()) else { return Header::Malformed };
    let present = |passed| Header::Present { version: HeaderVersion::V1, length: end + 1, passed };
    let fields: Vec<&str> = line.split(' ').collect();
    match fields.as_slice() {
        ["PROXY", "UNKNOWN", ..] => present(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, from, to] => {
            let ip = |text: &str| {
                let ip: IpAddr = text.parse().ok()?;
                (ip.is_ipv4() == (*family == "TCP4")).then_some(ip)
            };
            let port = |text: &str| {
                let plain = text.bytes().all(|byte| byte.is_ascii_digit());
                plain.then(|| text.parse::<u16>().ok()).flatten()
            };
            match (ip(source), ip(destination), port(from), port(to)) {
                (Some(source), Some(destination), Some(from), Some(to)) => present(Some(Passed {
                    source: SocketAddr::new(source, from),
                    destination: SocketAddr::new(destination, to),
                })),
                _ => Header::Malformed,
            }
        }
        _ => Header::Malformed,
    }
}

fn version2(bytes: &[u8]) -> Header {
    let Some([command, family, high, low]) = bytes.get(12..16) else { return Header::Incomplete };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if command >> 4 != 2 || length > MAX_BODY {
        return Header::Malformed;
    }
    let Some(body) = bytes.get(16..16 + length) else { return Header::Incomplete };
    let present = |passed| Header::Present { version: HeaderVersion::V2, length: 16 + length, passed };
    match (command & 0xf, family) {
        (0, _) => present(None),
        (1, 0x11) => addresses::<4>(body).map_or(Header::Malformed, |passed| present(Some(passed))),
        (1, 0x21) => addresses::<16>(body).map_or(Header::Malformed, |passed| present(Some(passed))),
        // What is not TCP over IP has no addresses that would mean anything here.
        (1, 0x00) => present(None),
        _ => Header::Malformed,
    }
}

fn addresses<const N: usize>(body: &[u8]) -> Option<Passed>
where
    [u8; N]: Address,
{
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (from, rest) = rest.split_first_chunk::<2>()?;
    let (to, _) = rest.split_first_chunk::<2>()?;
    Some(Passed {
        source: SocketAddr::new(source.ip(), u16::from_be_bytes(*from)),
        destination: SocketAddr::new(destination.ip(), u16::from_be_bytes(*to)),
    })
}

trait Address {
    fn ip(&self) -> IpAddr;
}

impl Address for [u8; 4] {
    fn ip(&self) -> IpAddr {
        Ipv4Addr::from(*self).into()
    }
}

impl Address for [u8; 16] {
    fn ip(&self) -> IpAddr {
        Ipv6Addr::from(*self).into()
    }
}

/// The header to send for a connection that is passed on.
pub fn header(version: HeaderVersion, passed: Passed) -> Vec<u8> {
    let Passed { source, destination } = passed;
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let (source_port, destination_port) = (source.port(), destination.port());
    match (version, from, to) {
        (HeaderVersion::V1, IpAddr::V4(_), IpAddr::V4(_)) => {
            format!("PROXY TCP4 {from} {to} {source_port} {destination_port}\r\n").into_bytes()
        }
        (HeaderVersion::V1, ..) => {
            let (from, to) = (mapped(from), mapped(to));
            format!("PROXY TCP6 {from} {to} {source_port} {destination_port}\r\n").into_bytes()
        }
        (HeaderVersion::V2, from, to) => {
            let (family, mut body) = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => (0x11, [from.octets(), to.octets()].concat()),
                _ => (0x21, [mapped(from).octets(), mapped(to).octets()].concat()),
            };
            body.extend(source_port.to_be_bytes());
            body.extend(destination_port.to_be_bytes());
            // 12 or 36 bytes.
            let length = u16::try_from(body.len()).unwrap_or_default().to_be_bytes();
            [SIGNATURE, &[0x21, family], &length, &body].concat()
        }
    }
}

/// One family for both, where they differ.
fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Reads the header from a connection, in at most `limit`. What was read after it is left in `bytes`.
///
/// # Errors
/// What is wrong with it, or with the connection.
pub async fn read_header(
    stream: &mut TcpStream,
    bytes: &mut BytesMut,
    limit: Duration,
) -> io::Result<Option<(HeaderVersion, Option<Passed>)>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let reading = async {
        loop {
            match parse_header(bytes) {
                Header::Present { version, length, passed } => {
                    bytes.advance(length);
                    return Ok(Some((version, passed)));
                }
                Header::Absent => return Ok(None),
                Header::Malformed => return Err(invalid("the PROXY header is malformed")),
                Header::Incomplete => {}
            }
            if stream.read_buf(bytes).await? == 0 {
                return Err(invalid("the connection ends within its PROXY header"));
            }
        }
    };
    tokio::time::timeout(limit, reading).await.map_err(|_| invalid("no PROXY header in time"))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn passed(source: &str, destination: &str) -> Passed {
        Passed { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_written_is_read() {
        for pair in
            [passed("192.0.2.1:4000", "198.51.100.2:443"), passed("[2001:db8::1]:4000", "[2001:db8::2]:443")]
        {
            for version in [HeaderVersion::V1, HeaderVersion::V2] {
                let mut bytes = header(version, pair);
                let length = bytes.len();
                for cut in 0..length {
                    assert_eq!(parse_header(&bytes[..cut]), Header::Incomplete, "{version:?} {cut}");
                }
                bytes.extend(b"GET /");
                assert_eq!(parse_header(&bytes), Header::Present { version, length, passed: Some(pair) });
            }
        }
        // Two families: both as IPv6.
        let mixed = header(HeaderVersion::V2, passed("192.0.2.1:1", "[2001:db8::2]:2"));
        let Header::Present { passed: Some(read), .. } = parse_header(&mixed) else { panic!("{mixed:?}") };
        assert_eq!(read.source, "[::ffff:192.0.2.1]:1".parse().unwrap());
    }

    #[test]
    fn the_examples_of_the_specification_are_read() {
        let line = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
        let Header::Present { length, passed: Some(_), .. } = parse_header(line) else { panic!() };
        assert_eq!(length, line.len());
        for text in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n"] {
            assert!(matches!(parse_header(text.as_bytes()), Header::Present { passed: None, .. }), "{text}");
        }
        let local = [SIGNATURE, &[0x20, 0, 0, 0]].concat();
        assert!(matches!(parse_header(&local), Header::Present { length: 16, passed: None, .. }));
    }

    #[test]
    fn what_begins_as_a_header_and_is_none_is_not_taken_for_the_clients_words() {
        for text in [
            "PROXY TCP4 192.0.2.1 198.51.100.2 4000\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 4000 +443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 4000 65536\r\n",
            "PROXY TCP4 ::1 ::2 4000 443\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.2 4000 443\r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.2 4000 443\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.2 4000 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 4000 443\n",
        ] {
            assert_eq!(parse_header(text.as_bytes()), Header::Malformed, "{text}");
        }
        let long = format!("PROXY UNKNOWN {}", "x".repeat(200));
        assert_eq!(parse_header(long.as_bytes()), Header::Malformed);
        for head in [[0x11, 0x11, 0, 12], [0x21, 0x12, 0, 0], [0x22, 0x11, 0, 0], [0x21, 0x11, 0xff, 0xff]] {
            let bytes = [SIGNATURE, &head, &[0; 12]].concat();
            assert_eq!(parse_header(&bytes), Header::Malformed, "{head:?}");
        }
        let short = [SIGNATURE, &[0x21, 0x21, 0, 12], &[0; 12]].concat();
        assert_eq!(parse_header(&short), Header::Malformed);
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"PROXYX"] {
            assert_eq!(parse_header(other), Header::Absent);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), first in 0..3) {
            let prefix: &[u8] = [&b""[..], b"PROXY TCP4 ", SIGNATURE][first as usize];
            parse_header(&[prefix, &bytes].concat());
        }
    }
}
