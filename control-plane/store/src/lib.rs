//! Commands, the state they change and who watches it, without I/O.
//!
//! The whole vocabulary of what can change a cluster is [`Command`]; [`apply`] is the only thing that changes
//! a [`State`]. It is a function of its arguments: it reads no clock, draws no random number and iterates over
//! nothing unordered, so that replicas that apply the same envelopes hold the same state, byte for byte.
//! Time and randomness arrive inside the [`Envelope`].
//!
//! A refused command changes nothing, however far it came; a retried one changes nothing twice.
#![forbid(unsafe_code)]

mod apply;
mod authority;
pub mod backup;
mod bytes16;
mod command;
pub mod container;
mod event;
mod history;
mod idempotency;
mod index;
pub mod limits;
mod outcome;
mod rotation;
mod snapshot;
mod state;
mod token;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod property_tests;

pub use apply::{Applying, apply};
pub use authority::{
    AdministratorRecord, Authority, AuthorityCommand, Confirmation, Fingerprint, IssuerRecord, JwtKeyRecord,
    Member, Phase, Revocation, RootRecord, Rotation, SealedKey, Withdrawal, fingerprint_of,
};
pub use bytes16::Bytes16;
pub use command::{Command, Envelope};
pub use event::{Change, Event};
pub use history::{Compacted, History, HistoryStats};
pub use idempotency::AppliedKeys;
pub use mesh_model::records::StoredMeta;
pub use outcome::{Applied, Granted, ObjectChange, ObjectOutcome, Outcome, Refusal};
pub use rotation::{Next, missing, next_step};
pub use snapshot::{FORMAT, SnapshotError, decode, encode, encode_to};
pub use state::{Cursors, State};
pub use token::{TokenPurpose, TokenRecord};
