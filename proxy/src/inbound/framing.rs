//! Refuses HTTP/1.1 requests with both `content-length` and `transfer-encoding`.
//!
//! RFC 9112 6.3 lets a server take them as chunked, which the HTTP library does after removing the length; but such a
//! request is most likely an attempt at smuggling, and Envoy refuses it. The library hides the header from its
//! user, so this looks at the bytes on their way in: it follows requests just far enough to know where heads are, and makes the
//! head of an ambiguous one malformed, which the library answers with 400. Where it loses track it stops looking: the
//! library's own rules still hold.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest part of a line that is looked at: the two names and any length fit.
const CARRY: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    RequestLine,
    Header { length: Option<u64>, chunked: bool },
    Body(u64),
    ChunkSize,
    Chunk(u64),
    Trailer,
    Off,
}

/// Follows the bytes of one direction.
#[derive(Debug)]
pub(super) struct Framing {
    at: At,
    line: [u8; CARRY],
    length: usize,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self { at: At::RequestLine, line: [0; CARRY], length: 0 }
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
                    self.length += taken;
                    let Some(end) = end else { return };
                    let newline = from + end;
                    from = newline + 1;
                    if self.line_ended()
                        && let Some(byte) = bytes.get_mut(newline)
                    {
                        // No value may have it, so that the library refuses the head.
                        *byte = 0;
                        self.at = At::Off;
                    }
                }
            }
        }
    }

    /// A whole line has been seen. Whether the head is ambiguous.
    fn line_ended(&mut self) -> bool {
        let line = self.line.get(..self.length).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut ambiguous = false;
        self.at = match self.at {
            // Empty lines before a request are skipped (RFC 9112 2.2).
            At::RequestLine if line.is_empty() => At::RequestLine,
            At::RequestLine if line == b"PRI * HTTP/2.0" => At::Off,
            At::RequestLine => At::Header { length: None, chunked: false },
            At::Header { length, chunked } if line.is_empty() => match (length, chunked) {
                (_, true) => At::ChunkSize,
                (Some(length), false) if length > 0 => At::Body(length),
                (_, false) => At::RequestLine,
            },
            At::Header { mut length, mut chunked } => {
                let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
                let (name, value) = line.split_at(colon);
                if name.eq_ignore_ascii_case(b"content-length") {
                    let digits = value.get(1..).unwrap_or_default().trim_ascii();
                    // What is no number is refused by the library.
                    let number = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok());
                    length = Some(number.unwrap_or(0));
                } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                    chunked = true;
                }
                ambiguous = length.is_some() && chunked;
                At::Header { length, chunked }
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

/// A client's connection with the bytes looked at on their way in.
#[derive(Debug)]
pub(super) struct Framed<T> {
    io: T,
    framing: Option<Framing>,
}

impl<T> Framed<T> {
    /// `http1`: whether HTTP/1.1 may be spoken.
    pub(super) fn new(io: T, http1: bool) -> Self {
        Self { io, framing: http1.then(Framing::new) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Framed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Some(framing) = &mut self.framing
            && let Some(new) = buf.filled_mut().get_mut(before..)
        {
            framing.scan(new);
            if framing.at == At::Off {
                self.framing = None;
            }
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Framed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
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
