//! A measure for HTTP/2 frames that cost the client nothing and this proxy work: floods of SETTINGS, PING, PRIORITY,
//! RST_STREAM, WINDOW_UPDATE or empty DATA (RFC 9113 10.5). The HTTP library has no limit for most of them, so this looks at the
//! frames' headers on their way in. Pure: time is passed in.

use std::time::Duration;

use crate::limits;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// Bytes written that allow for one WINDOW_UPDATE more: less than a frame of data has.
const BYTES_PER_UPDATE: u64 = 16;

/// Follows the frames of a client.
#[derive(Debug)]
pub(super) struct Frames {
    /// How much of the preface has been seen.
    preface: usize,
    head: [u8; HEAD],
    seen: usize,
    /// Bytes of the payload that are still to come.
    skip: usize,
    /// Frames that may still come.
    left: u64,
    filled: Duration,
    updates: u64,
}

/// What is known of a connection after some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// It may be HTTP/2, or is.
    Measured,
    /// It is not HTTP/2.
    Other,
    /// Too many frames that say nothing.
    Flood,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            preface: 0,
            head: [0; HEAD],
            seen: 0,
            skip: 0,
            left: limits::H2_CONTROL_FRAMES,
            filled: Duration::ZERO,
            updates: 0,
        }
    }

    /// So much was written: that many windows may be given back.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.updates = self.updates.saturating_add(bytes as u64).min(u64::MAX / 2);
    }

    /// Looks at the next bytes. `now` counts from the beginning of the connection.
    pub(super) fn scan(&mut self, mut bytes: &[u8], now: Duration) -> Flow {
        while self.preface < PREFACE.len() {
            let Some((first, rest)) = bytes.split_first() else { return Flow::Measured };
            if PREFACE.get(self.preface) != Some(first) {
                return Flow::Other;
            }
            self.preface += 1;
            bytes = rest;
        }
        let mut flow = Flow::Measured;
        while !bytes.is_empty() {
            let step = self.skip.min(bytes.len());
            self.skip -= step;
            bytes = bytes.get(step..).unwrap_or_default();
            let room = self.head.get_mut(self.seen..).unwrap_or_default();
            let taken = room.len().min(bytes.len());
            room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            self.seen += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.seen == HEAD {
                self.seen = 0;
                let [l0, l1, l2, kind, flags, ..] = self.head;
                self.skip = u32::from_be_bytes([0, l0, l1, l2]) as usize;
                if !self.allows(kind, flags, now) {
                    flow = Flow::Flood;
                }
            }
        }
        flow
    }

    fn allows(&mut self, kind: u8, flags: u8, now: Duration) -> bool {
        match kind {
            // The library has limits for these.
            HEADERS | CONTINUATION => return true,
            DATA if self.skip > 0 || flags & END_STREAM != 0 => return true,
            WINDOW_UPDATE if self.updates >= BYTES_PER_UPDATE => {
                self.updates -= BYTES_PER_UPDATE;
                return true;
            }
            _ => {}
        }
        if self.left == 0 {
            let since = now.saturating_sub(self.filled).as_millis();
            let more =
                u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(limits::H2_CONTROL_FRAMES) / 1000;
            self.left = more.min(limits::H2_CONTROL_FRAMES);
            self.filled = now;
        }
        self.left.checked_sub(1).is_some_and(|left| {
            self.left = left;
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const UPDATE: [u8; 13] = [0, 0, 4, WINDOW_UPDATE, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    fn begun() -> Frames {
        let mut frames = Frames::new();
        assert_eq!(frames.scan(PREFACE, Duration::ZERO), Flow::Measured);
        frames
    }

    fn flood(frames: &mut Frames, frame: &[u8], now: Duration) -> u64 {
        (0..).take_while(|_| frames.scan(frame, now) == Flow::Measured).count() as u64
    }

    #[test]
    fn so_many_pings_a_second_and_no_more() {
        let mut frames = begun();
        assert_eq!(flood(&mut frames, &PING, Duration::ZERO), limits::H2_CONTROL_FRAMES);
        assert_eq!(flood(&mut frames, &PING, Duration::from_millis(500)), limits::H2_CONTROL_FRAMES / 2);
        assert_eq!(flood(&mut frames, &PING, Duration::from_secs(900)), limits::H2_CONTROL_FRAMES);
    }

    #[test]
    fn data_and_windows_for_what_was_written_are_no_flood() {
        let mut frames = begun();
        let data = [&[0, 0, 1, DATA, 0, 0, 0, 0, 1][..], b"x"].concat();
        let end = [0, 0, 0, DATA, END_STREAM, 0, 0, 0, 1];
        for _ in 0..limits::H2_CONTROL_FRAMES * 3 {
            frames.wrote(BYTES_PER_UPDATE as usize);
            for bytes in [&data[..], &end, &UPDATE] {
                assert_eq!(frames.scan(bytes, Duration::ZERO), Flow::Measured);
            }
        }
        assert_eq!(flood(&mut frames, &UPDATE, Duration::ZERO), limits::H2_CONTROL_FRAMES);
    }

    #[test]
    fn what_is_not_http2_is_left_alone() {
        assert_eq!(Frames::new().scan(b"GET / HTTP/1.1\r\n", Duration::ZERO), Flow::Other);
        assert_eq!(Frames::new().scan(b"PRI * HTTP/1.1\r\n", Duration::ZERO), Flow::Other);
        assert_eq!(Frames::new().scan(b"PRI", Duration::ZERO), Flow::Measured);
    }

    proptest! {
        #[test]
        fn where_bytes_are_cut_does_not_matter(
            bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(1_usize..30, 1..20),
        ) {
            let (mut whole, mut pieces) = (begun(), begun());
            whole.scan(&bytes, Duration::ZERO);
            let (mut rest, mut cuts) = (&bytes[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (head, tail) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                pieces.scan(head, Duration::ZERO);
                rest = tail;
            }
            prop_assert_eq!((whole.left, whole.skip, whole.seen), (pieces.left, pieces.skip, pieces.seen));
        }
    }
}
