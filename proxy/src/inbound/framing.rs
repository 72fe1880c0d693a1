//! Refuses HTTP/1.1 requests that others could read differently: RFC 9112 lets a server forgive what smuggling is made of.
//!
//! Refused are a `content-length` beside a `transfer-encoding`, more than one of either, a `transfer-encoding` other than `chunked`,
//! and lines that end without CR. The HTTP library would take some of these, and hides from its user that they were there; so this
//! looks at the bytes on their way in: it follows requests just far enough to know where heads and chunks are, and makes what
//! is ambiguous malformed, which the library answers with 400. Where it loses track it stops looking: the library's own rules
//! still hold. After a request to switch protocols it cannot know what the bytes are: such a request is the last of its
//! connection if it is refused.

/// Longest part of a line that is looked at: the two names and any length fit.
const CARRY: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    RequestLine,
    Header(Seen),
    Body(u64),
    ChunkSize,
    Chunk(u64),
    Trailer,
    Off,
}

/// What the head of a request has had so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    length: Option<u64>,
    chunked: bool,
    switches: bool,
}

/// Follows the bytes of one direction.
#[derive(Debug)]
pub(super) struct Framing {
    at: At,
    line: [u8; CARRY],
    length: usize,
    /// The last byte of an unfinished line.
    last: u8,
    /// Heads that have begun.
    heads: u64,
    spoiled: bool,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self { at: At::RequestLine, line: [0; CARRY], length: 0, last: 0, heads: 0, spoiled: false }
    }

    /// Which head has begun and not ended, if one has.
    pub(super) fn head(&self) -> Option<u64> {
        let within = match self.at {
            At::RequestLine => self.length > 0,
            At::Header(_) => true,
            At::Body(_) | At::ChunkSize | At::Chunk(_) | At::Trailer | At::Off => false,
        };
        within.then_some(self.heads)
    }

    /// Whether it has made something malformed.
    pub(super) fn has_spoiled(&self) -> bool {
        self.spoiled
    }

    /// Whether it looks at nothing any more.
    pub(super) fn is_off(&self) -> bool {
        self.at == At::Off
    }

    /// Looks at the next bytes, and spoils those of an ambiguous head.
    pub(super) fn scan(&mut self, bytes: &mut [u8]) {
        let mut from = 0;
        while let Some(rest) = bytes.get(from..).filter(|rest| !rest.is_empty()) {
            match self.at {
                At::Off => return,
                At::Body(left) | At::Chunk(left) => {
                    let step = left.min(rest.len() as u64);
                    from += step as usize;
                    let chunk = matches!(self.at, At::Chunk(_));
                    self.at = match (left - step, chunk) {
                        (0, true) => At::ChunkSize,
                        (0, false) => At::RequestLine,
                        (left, true) => At::Chunk(left),
                        (left, false) => At::Body(left),
                    };
                }
                _ => {
                    let end = rest.iter().position(|b| *b == b'\n');
                    let part = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
                    let room = self.line.get_mut(self.length..).unwrap_or_default();
                    let taken = part.len().min(room.len());
                    room.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
                    if self.at == At::RequestLine && self.length == 0 && taken > 0 {
                        self.heads += 1;
                    }
                    self.length += taken;
                    let last = part.last().copied().unwrap_or(self.last);
                    let Some(end) = end else {
                        self.last = last;
                        return;
                    };
                    self.last = 0;
                    let newline = from + end;
                    from = newline + 1;
                    if self.line_ended(last == b'\r')
                        && let Some(byte) = bytes.get_mut(newline)
                    {
                        // No value may have it, so that the library refuses the head.
                        *byte = 0;
                        self.spoiled = true;
                        self.at = At::Off;
                    }
                }
            }
        }
    }

    /// A whole line has been seen. Whether the message is ambiguous.
    fn line_ended(&mut self, carriage_return: bool) -> bool {
        let line = self.line.get(..self.length).unwrap_or_default();
        // What is not seen in full is taken for the worst where it matters.
        let cut = self.length == CARRY;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // RFC 9112 2.2 lets a recipient take LF alone for the end of a line; not all do.
        let mut ambiguous = !carriage_return;
        self.at = match self.at {
            // Empty lines before a request are skipped (RFC 9112 2.2).
            At::RequestLine if line.is_empty() => At::RequestLine,
            At::RequestLine if line == b"PRI * HTTP/2.0" => At::Off,
            At::RequestLine => {
                At::Header(Seen { switches: line.starts_with(b"CONNECT "), ..Seen::default() })
            }
            At::Header(seen) if line.is_empty() => match seen {
                Seen { switches: true, .. } => At::Off,
                Seen { chunked: true, .. } => At::ChunkSize,
                Seen { length: Some(length), .. } if length > 0 => At::Body(length),
                Seen { .. } => At::RequestLine,
            },
            At::Header(mut seen) => {
                let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
                let (name, value) = line.split_at(colon);
                let value = value.get(1..).unwrap_or_default().trim_ascii();
                if name.eq_ignore_ascii_case(b"content-length") {
                    // What is no number is refused by the library.
                    let number = std::str::from_utf8(value).ok().and_then(|d| d.parse().ok());
                    ambiguous |= cut || seen.chunked || seen.length.replace(number.unwrap_or(0)).is_some();
                } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                    ambiguous |= cut || seen.chunked || seen.length.is_some();
                    ambiguous |= !value.eq_ignore_ascii_case(b"chunked");
                    seen.chunked = true;
                } else if name.eq_ignore_ascii_case(b"upgrade") {
                    // An offer of `h2c` is never taken up.
                    seen.switches |= !value.eq_ignore_ascii_case(b"h2c");
                }
                At::Header(seen)
            }
            At::ChunkSize => {
                let digits: &[u8] = line.split(|b| !b.is_ascii_hexdigit()).next().unwrap_or_default();
                let size = std::str::from_utf8(digits).ok().and_then(|d| u64::from_str_radix(d, 16).ok());
                match size {
                    Some(0) => At::Trailer,
                    // With the line end that follows the data.
                    Some(size) if size < u64::MAX - 2 => At::Chunk(size + 2),
                    _ => At::Off,
                }
            }
            At::Trailer if line.is_empty() => At::RequestLine,
            other => other,
        };
        self.length = 0;
        ambiguous
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spoiled(text: &str, cut: usize) -> bool {
        let mut bytes = text.as_bytes().to_vec();
        let mut framing = Framing::new();
        let cut = cut.min(bytes.len());
        let (head, tail) = bytes.split_at_mut(cut);
        framing.scan(head);
        framing.scan(tail);
        bytes != text.as_bytes()
    }

    const AMBIGUOUS: &str =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

    #[test]
    fn a_head_with_both_is_spoiled_wherever_it_is_cut() {
        let reversed = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nX: y\r\ncontent-length: 3\r\n\r\n";
        for cut in 0..AMBIGUOUS.len() {
            assert!(spoiled(AMBIGUOUS, cut), "{cut}");
            assert!(spoiled(reversed, cut), "{cut}");
        }
    }

    #[test]
    fn what_others_may_read_differently_is_spoiled() {
        for lines in [
            "Content-Length: 3\r\ncontent-length: 3\r\n",
            "Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "X: y\n",
            "X: y\r\nY: z\n",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
            assert!((0..text.len()).all(|cut| spoiled(&text, cut)), "{text:?}");
        }
        for text in [
            format!("{CHUNKED}5\nhello\r\n0\r\n\r\n"),
            format!("{CHUNKED}5\r\nhello\r\n0\r\nx: y\n\r\n"),
            format!("POST / HTTP/1.1\r\nContent-Length:{}3\r\n\r\nabc", " ".repeat(60)),
            "GET / HTTP/1.1\n\n".to_owned(),
        ] {
            assert!((0..text.len()).all(|cut| spoiled(&text, cut)), "{text:?}");
        }
    }

    #[test]
    fn what_follows_a_switch_of_protocols_is_left_alone() {
        for lines in ["GET / HTTP/1.1\r\nUpgrade: websocket\r\n", "CONNECT a:80 HTTP/1.1\r\n"] {
            let text = format!("{lines}\r\n\x01\x05hello\n\n{AMBIGUOUS}");
            assert!((0..text.len()).all(|cut| !spoiled(&text, cut)), "{text:?}");
        }
        let offer = format!("GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n{AMBIGUOUS}");
        assert!(spoiled(&offer, 0));
    }

    #[test]
    fn it_knows_which_head_has_begun_and_not_ended() {
        let mut framing = Framing::new();
        for (bytes, expected) in [
            ("", None),
            ("G", Some(1)),
            ("ET / HTTP/1.1\r\nHo", Some(1)),
            ("st: a\r\n\r\n", None),
            ("GET / HTTP/1.1\r\n\r\nPOST", Some(3)),
            (" / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", None),
        ] {
            framing.scan(&mut bytes.as_bytes().to_vec());
            assert_eq!(framing.head(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn what_looks_ambiguous_only_in_a_body_passes() {
        let length = format!(
            "POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{AMBIGUOUS}GET / HTTP/1.1\r\n\r\n",
            AMBIGUOUS.len()
        );
        let chunks = format!(
            "{CHUNKED}{:x};ext\r\n{AMBIGUOUS}\r\n0\r\ncontent-length: 3\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            AMBIGUOUS.len()
        );
        for text in [length, chunks, format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{AMBIGUOUS}")] {
            assert!((0..text.len()).all(|cut| !spoiled(&text, cut)), "{text}");
        }
    }

    #[test]
    fn the_request_after_a_body_is_looked_at() {
        let after_length = format!("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello{AMBIGUOUS}");
        let after_chunks = format!("{CHUNKED}5\r\nhello\r\n0\r\n\r\n{AMBIGUOUS}");
        for text in [after_length, after_chunks] {
            assert!((0..text.len()).all(|cut| spoiled(&text, cut)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_the_cuts_do_not_matter(
            parts in prop::collection::vec(prop_oneof![
                Just(AMBIGUOUS.as_bytes().to_vec()), Just(CHUNKED.as_bytes().to_vec()), Just(b"5\r\nhello\r\n0\r\n\r\n".to_vec()),
                prop::collection::vec(any::<u8>(), 0..100),
            ], 0..6),
            cuts in prop::collection::vec(1_usize..50, 1..20),
        ) {
            let bytes = parts.concat();
            let mut whole = bytes.clone();
            Framing::new().scan(&mut whole);
            let mut pieces = bytes;
            let mut framing = Framing::new();
            let (mut from, mut cuts) = (0, cuts.into_iter().cycle());
            while from < pieces.len() {
                let to = (from + cuts.next().unwrap()).min(pieces.len());
                framing.scan(&mut pieces[from..to]);
                from = to;
            }
            prop_assert_eq!(whole, pieces);
        }
    }
}
