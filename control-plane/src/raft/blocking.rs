//! Long computations, kept from the threads that carry heartbeats.

use mesh_store::{Command, Envelope};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Up to so many objects are encoded, decoded or applied within a millisecond or so. Heartbeats can wait for that, and
/// another thread that takes over costs a good part of it.
const FEW_OBJECTS: usize = 128;
/// The same in bytes of JSON.
const FEW_BYTES: usize = 128 * 1024;

/// Does work in place. If it is long, the other tasks of this thread move to another one first.
///
/// A runtime with one thread has no other: there, and outside a runtime, it is just done.
pub(crate) fn blocking<T>(long: bool, work: impl FnOnce() -> T) -> T {
    let threads = Handle::try_current().is_ok_and(|now| now.runtime_flavor() == RuntimeFlavor::MultiThread);
    if long && threads { tokio::task::block_in_place(work) } else { work() }
}

/// Whether commands take long to encode, to decode or to apply.
pub(crate) fn are_long<'a>(envelopes: impl IntoIterator<Item = &'a Envelope>) -> bool {
    let objects = envelopes.into_iter().map(|envelope| match &envelope.command {
        Command::Apply { objects, .. } => objects.len(),
        Command::Delete { keys } => keys.len(),
        Command::ImportServices { upserts, removals, .. } => upserts.len() + removals.len(),
        _ => 1,
    });
    objects.sum::<usize>() > FEW_OBJECTS
}

/// Whether JSON takes long to decode.
pub(crate) fn is_long(json: &[u8]) -> bool {
    json.len() > FEW_BYTES
}
