//! Whether the first bytes of a connection without TLS are HTTP, and which. Pure and total.

use crate::limits;

/// How HTTP/2 begins with prior knowledge (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// Too few to say.
    Incomplete,
    /// `http/1.0`, `http/1.1` or `h2c`, the names that filter chains match.
    Http(&'static str),
    /// Something else.
    Other,
}

/// Reads the first bytes of a connection: a preface, or a request line (RFC 9112 3).
pub fn spoken(bytes: &[u8]) -> Spoken {
    // RFC 9112 2.2: an empty line before the request is ignored.
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    if bytes == b"\r" {
        return Spoken::Incomplete;
    }
    if bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes) {
        return Spoken::Incomplete;
    }
    if bytes.starts_with(PREFACE) {
        return Spoken::Http("h2c");
    }
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = bytes.iter().take_while(|byte| is_token(byte)).count();
    match bytes.get(method) {
        None if method <= limits::METHOD_BYTES => return Spoken::Incomplete,
        Some(b' ') if (1..=limits::METHOD_BYTES).contains(&method) => {}
        _ => return Spoken::Other,
    }
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let line = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\r') {
        return Spoken::Other;
    }
    if end.is_none() {
        return Spoken::Incomplete;
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.ends_with(b" HTTP/1.1") {
        Spoken::Http("http/1.1")
    } else if line.ends_with(b" HTTP/1.0") {
        Spoken::Http("http/1.0")
    } else {
        Spoken::Other
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_known_by_their_line_and_others_as_soon_as_they_can_be() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\nhost: a\r\n"[..], Spoken::Http("http/1.1")),
            (b"\r\nM-SEARCH * HTTP/1.0\n", Spoken::Http("http/1.0")),
            (PREFACE, Spoken::Http("h2c")),
            (b"PRI * HTTP/2.0\r\n\r\n", Spoken::Incomplete),
            (b"", Spoken::Incomplete),
            (b"GET /abc", Spoken::Incomplete),
            (b"GET / HTTP/3.0\r\n", Spoken::Other),
            (b"GET /\r\n", Spoken::Other),
            (b"\x00\x01", Spoken::Other),
            (b"SSH-2.0-OpenSSH\r\n", Spoken::Other),
            (b"GET \x00\x00", Spoken::Other),
            (&[b'A'; 200], Spoken::Other),
        ] {
            assert_eq!(spoken(bytes), expected, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_decided_is_not_taken_back(bytes in prop::collection::vec(any::<u8>(), 0..80), cut in 0_usize..80) {
            let cut = cut.min(bytes.len());
            match spoken(&bytes[..cut]) {
                Spoken::Incomplete => {}
                decided => prop_assert_eq!(decided, spoken(&bytes)),
            }
        }
    }
}
