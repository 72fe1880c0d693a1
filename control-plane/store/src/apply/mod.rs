//! The state machine.

mod address;
mod administrators;
mod authority;
mod cluster;
mod identities;
mod node_ports;
mod nodes;
mod objects;
mod overflow;
mod peers;
mod replace;
mod replicas;
mod services;
mod tokens;
mod transaction;
mod valid;

#[cfg(test)]
mod authority_tests;
#[cfg(test)]
mod tests;

use crate::{
    Applied, Command, Envelope, Event, Granted, ObjectOutcome, Outcome, Refusal, State,
    limits::{KEY_MEMORY_MS, MAX_KEYS},
};
pub(crate) use objects::json_bytes;
use transaction::Transaction;

/// What became of an envelope, and what there is to tell about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Applying {
    /// For the caller.
    pub outcome: Outcome,
    /// For watchers; empty unless the state changed, and then all of the outcome's revision.
    pub events: Vec<Event>,
}

/// What a command did, before it has a revision.
#[derive(Default)]
struct Done {
    outcomes: Vec<ObjectOutcome>,
    granted: Granted,
}

impl From<Granted> for Done {
    fn from(granted: Granted) -> Self {
        Done { outcomes: Vec::new(), granted }
    }
}

/// Applies one envelope: whole, or not at all.
///
/// The revision goes up by one if something changed, and stays if nothing did.
pub fn apply(state: &mut State, envelope: &Envelope) -> Applying {
    if let Some(answer) = state.applied_keys.answer(&envelope.key) {
        let outcome = Ok(Applied { replayed: true, ..answer.clone() });
        return Applying { outcome, events: Vec::new() };
    }
    // It may have been applied and forgotten since. Doing nothing is the one answer that is right either way.
    if envelope.first_unix_ms.is_some_and(|first| first <= state.applied_keys.forgotten_until()) {
        let refusal = Refusal::RetryTooLate {
            seconds_ago: envelope.now_unix_ms.saturating_sub(envelope.first_unix_ms.unwrap_or(0)) / 1000,
            limit_seconds: KEY_MEMORY_MS / 1000,
            limit_writes: MAX_KEYS,
        };
        return Applying { outcome: Err(refusal), events: Vec::new() };
    }
    let dry_run = matches!(envelope.command, Command::Apply { dry_run: true, .. });
    let mut transaction = Transaction::begin(state, envelope);
    let done = match run(&mut transaction, &envelope.command) {
        Ok(done) => done,
        Err(refusal) => {
            transaction.roll_back();
            return Applying { outcome: Err(refusal), events: Vec::new() };
        }
    };
    let events = if dry_run {
        transaction.roll_back();
        Vec::new()
    } else {
        transaction.commit()
    };
    let applied =
        Applied { revision: state.revision, outcomes: done.outcomes, granted: done.granted, replayed: false };
    if !dry_run {
        state.applied_keys.remember(envelope.key, envelope.now_unix_ms, applied.clone());
    }
    Applying { outcome: Ok(applied), events }
}

fn run(tx: &mut Transaction<'_>, command: &Command) -> Result<Done, Refusal> {
    if let Command::Init(info) = command {
        return cluster::init(tx, info);
    }
    tx.cluster()?;
    match command {
        Command::Init(info) => cluster::init(tx, info),
        Command::Apply { objects, .. } => objects::apply(tx, objects),
        Command::Delete { keys } => objects::delete(tx, keys),
        Command::RegisterNode { name, address, address6 } => nodes::register(tx, name, *address, *address6),
        Command::ReportNode { name, facts } => nodes::report(tx, name, facts),
        Command::RemoveNode { name } => nodes::remove(tx, name),
        Command::BindWorkload { workload, binding } => nodes::bind(tx, workload, binding),
        Command::UnbindWorkload { workload, node } => nodes::unbind(tx, workload, node),
        Command::CreateToken { id, token } => tokens::create(tx, id, token),
        Command::RevokeToken { id } => tokens::revoke(tx, id),
        Command::UseToken { id, secret_sha256, purpose, bearer } => {
            tokens::redeem(tx, id, secret_sha256, purpose, bearer)
        }
        Command::PutReplica(replica) => replicas::put(tx, replica),
        Command::AdmitReplica { token, secret_sha256, address } => {
            replicas::admit(tx, token, secret_sha256, address)
        }
        Command::SetReplicaRole { id, learner } => replicas::set_role(tx, *id, *learner),
        Command::ReplaceReplica { old, address } => replace::replace(tx, *old, address),
        Command::RemoveReplica { id } => replicas::remove(tx, *id),
        Command::Authority(command) => authority::run(tx, command),
        Command::KeepOnlyReplica { id } => replicas::keep_only(tx, *id),
        Command::PutPeer(peer) => peers::put(tx, peer),
        Command::ImportServices { cluster, origin_revision, upserts, removals } => {
            peers::import(tx, cluster, *origin_revision, upserts, removals)
        }
        Command::SetOverflow { shares } => overflow::set(tx, shares),
        Command::RemovePeer { cluster } => peers::remove(tx, cluster),
    }
}
