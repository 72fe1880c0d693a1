//! Who is to be a member of the raft group. The group itself follows these records.

use mesh_model::records::ReplicaRecord;

use super::{Done, authority, tokens, transaction::Transaction, valid};
use crate::{
    Granted, Refusal, TokenPurpose,
    limits::{MAX_REPLICAS, RECOVERY_REGISTRATIONS, RECOVERY_REPLICAS, RECOVERY_REVISIONS},
};

pub(super) fn put(tx: &mut Transaction<'_>, replica: &ReplicaRecord) -> Result<Done, Refusal> {
    valid::host_port("replica.address", &replica.address)?;
    let holder = tx.state().replicas.values().find(|other| other.address == replica.address);
    match holder {
        Some(other) if other.id == replica.id => return Ok(Granted::Replica(other.id).into()),
        Some(other) => {
            let problem = format!("is the address of replica {} already", other.id);
            return Err(Refusal::invalid("replica.address", &replica.address, problem));
        }
        None => {}
    }
    let last = tx.state().cursors.replica;
    let id = if replica.id == 0 { last + 1 } else { replica.id };
    let learner = match tx.state().replicas.get(&id) {
        Some(known) => known.learner,
        None => {
            if id <= last {
                return Err(Refusal::invalid(
                    "replica.id",
                    id,
                    "was a removed replica's: ids are not used again",
                ));
            }
            valid::at_most("replicas", tx.state().replicas.len() + 1, MAX_REPLICAS)?;
            replica.learner
        }
    };
    tx.cursors().replica = last.max(id);
    tx.set_replica(id, Some(ReplicaRecord { id, learner, ..replica.clone() }));
    Ok(Granted::Replica(id).into())
}

pub(super) fn admit(
    tx: &mut Transaction<'_>,
    token: &str,
    secret_sha256: &str,
    address: &str,
) -> Result<Done, Refusal> {
    let bearer = format!("replica {address}");
    tokens::redeem(tx, token, secret_sha256, &TokenPurpose::Replica, &bearer)?;
    let learner = tx.state().tokens.get(token).is_some_and(|token| token.learner);
    put(tx, &ReplicaRecord { id: 0, address: address.to_owned(), learner })
}

pub(super) fn set_role(tx: &mut Transaction<'_>, id: u64, learner: bool) -> Result<Done, Refusal> {
    let known = known(tx, id)?;
    if known.learner == learner {
        return Ok(Done::default());
    }
    if learner {
        another_voter(tx, id)?;
    }
    tx.set_replica(id, Some(ReplicaRecord { learner, ..known }));
    Ok(Done::default())
}

pub(super) fn remove(tx: &mut Transaction<'_>, id: u64) -> Result<Done, Refusal> {
    known(tx, id)?;
    if tx.state().replicas.len() == 1 {
        return Err(Refusal::invalid("replica.id", id, "is the last replica"));
    }
    another_voter(tx, id)?;
    tx.set_replica(id, None);
    authority::replica_removed(tx, id);
    Ok(Done::default())
}

pub(super) fn keep_only(tx: &mut Transaction<'_>, id: u64) -> Result<Done, Refusal> {
    let survivor = known(tx, id)?;
    let others: Vec<u64> = tx.state().replicas.keys().copied().filter(|other| *other != id).collect();
    for other in others {
        tx.set_replica(other, None);
        authority::replica_removed(tx, other);
    }
    tx.skip_revisions(RECOVERY_REVISIONS);
    let cursors = tx.cursors();
    cursors.replica = cursors.replica.saturating_add(RECOVERY_REPLICAS);
    cursors.registration = cursors.registration.saturating_add(RECOVERY_REGISTRATIONS);
    tx.set_replica(id, Some(ReplicaRecord { learner: false, ..survivor }));
    Ok(Done::default())
}

fn known(tx: &Transaction<'_>, id: u64) -> Result<ReplicaRecord, Refusal> {
    let known = tx.state().replicas.get(&id).cloned();
    known.ok_or_else(|| Refusal::Unknown { what: "replica".to_owned(), name: id.to_string() })
}

/// A group without a voter could never decide anything again.
fn another_voter(tx: &Transaction<'_>, id: u64) -> Result<(), Refusal> {
    if tx.state().replicas.values().any(|other| other.id != id && !other.learner) {
        return Ok(());
    }
    Err(Refusal::invalid("replica.id", id, "is the last voter: promote another replica first"))
}
