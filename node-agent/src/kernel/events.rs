//! Reading flow events.

use std::io;

use aya::maps::{MapData, RingBuf};
use ebpf_shared::FlowEvent;
use tokio::io::unix::AsyncFd;

/// The ring that the programs write to. It is pinned: events that were written while no agent ran are still
/// there, up to its size; those that did not fit are counted by [`super::Kernel::lost`].
pub struct EventRing {
    ring: RingBuf<MapData>,
}

impl EventRing {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// The oldest event that has not been read, if there is one.
    pub fn try_next(&mut self) -> Option<FlowEvent> {
        while let Some(record) = self.ring.next() {
            if let Some(event) = decode(&record) {
                return Some(event);
            }
        }
        None
    }

    /// For waiting within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The runtime can't watch the ring's file descriptor.
    pub fn into_stream(self) -> io::Result<EventStream> {
        // SAFETY: the ring owns its file descriptor, never changes it, and closes it when it is dropped
        // itself.
        let ring = unsafe { AsyncFd::register_with_interest(Readable(self), tokio::io::Interest::READABLE) }?;
        Ok(EventStream { ring })
    }
}

/// Flow events as they come.
pub struct EventStream {
    ring: AsyncFd<Readable>,
}

impl EventStream {
    /// Waits for the next event. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    ///
    /// The runtime is shutting down.
    pub async fn next(&mut self) -> io::Result<FlowEvent> {
        loop {
            if let Some(event) = self.ring.get_mut().0.try_next() {
                return Ok(event);
            }
            let mut guard = self.ring.readable_mut().await?;
            // Between the look above and this one an event may have come: only an empty ring may be waited
            // for.
            if let Some(event) = guard.get_inner_mut().0.try_next() {
                return Ok(event);
            }
            guard.clear_ready();
        }
    }
}

struct Readable(EventRing);

impl std::os::fd::AsRawFd for Readable {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.ring.as_raw_fd()
    }
}

/// The record's bytes as the event they were written as; `None` if it has another size.
fn decode(record: &[u8]) -> Option<FlowEvent> {
    if record.len() != size_of::<FlowEvent>() {
        return None;
    }
    // SAFETY: `FlowEvent` is plain data for which every bit pattern is valid, and the record has its size;
    // its alignment is not relied on.
    Some(unsafe { std::ptr::read_unaligned(record.as_ptr().cast::<FlowEvent>()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_size_is_no_event() {
        assert!(decode(&[0; 8]).is_none());
        assert_eq!(decode(&[0; size_of::<FlowEvent>()]), Some(FlowEvent::default()));
    }
}
