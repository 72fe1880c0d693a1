//! Proof that the stream is alive. Pure: the time is an argument.
//!
//! A connection answers pings even if nobody behind it serves it any more. So a client that asks for heartbeats
//! (`isthmus.agent.v1.Heartbeat`) ACKs each, and gives up a stream on which they stop. A server that does not know them
//! sends none, and then nothing is expected.

use std::time::{Duration, Instant};

use xds_proto::isthmus::agent::v1::Heartbeat;

use crate::Update;

/// Heartbeats that may be missing before the stream is given up.
const MISSING: u32 = 3;
/// The least time that is waited for one.
const LEAST: Duration = Duration::from_secs(10);
/// Longest interval that is believed.
const LONGEST: Duration = Duration::from_secs(600);

/// Watches over one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watchdog {
    patience: Option<Duration>,
    heard: Instant,
}

impl Watchdog {
    /// Nothing has been heard.
    pub(crate) fn new(now: Instant) -> Self {
        Self { patience: None, heard: now }
    }

    /// Something came, whatever it is.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// A heartbeat came: the next one is expected.
    pub(crate) fn beat(&mut self, heartbeat: &Heartbeat, now: Instant) {
        let interval = Duration::from_millis(u64::from(heartbeat.interval_ms)).min(LONGEST);
        self.patience = (!interval.is_zero()).then(|| (interval * MISSING).max(LEAST));
        self.heard(now);
    }

    /// When the stream is to be given up; None if nothing is expected.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.patience.map(|patience| self.heard + patience)
    }

    /// How long is waited for a heartbeat.
    pub(crate) fn patience(&self) -> Duration {
        self.patience.unwrap_or_default()
    }
}

/// The heartbeat of an update.
pub(crate) fn of(update: &Update) -> Option<Heartbeat> {
    update.added.last().and_then(|resource| resource.decode().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(interval_ms: u32) -> Heartbeat {
        Heartbeat { interval_ms, ..Default::default() }
    }

    #[test]
    fn nothing_is_expected_of_a_server_that_sends_none() {
        let mut watchdog = Watchdog::new(Instant::now());
        watchdog.heard(Instant::now());
        assert_eq!(watchdog.deadline(), None);
        watchdog.beat(&every(0), Instant::now());
        assert_eq!(watchdog.deadline(), None);
    }

    #[test]
    fn after_a_heartbeat_another_one_or_anything_else_is_expected() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(start);
        watchdog.beat(&every(5_000), start);
        assert_eq!(watchdog.deadline(), Some(start + Duration::from_secs(15)));
        watchdog.heard(start + Duration::from_secs(4));
        assert_eq!(watchdog.deadline(), Some(start + Duration::from_secs(19)));
        watchdog.beat(&every(1), start);
        assert_eq!(watchdog.patience(), LEAST, "no server makes its clients reconnect all the time");
        watchdog.beat(&every(u32::MAX), start);
        assert_eq!(watchdog.patience(), LONGEST * MISSING);
    }
}
