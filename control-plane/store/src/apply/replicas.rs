//! Who is to be a member of the raft group. The group itself follows these records.

use mesh_model::records::ReplicaRecord;

use super::{Done, authority, transaction::Transaction, valid};
use crate::{Granted, Refusal, limits::MAX_REPLICAS};

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
    if !tx.state().replicas.contains_key(&id) {
        if id <= last {
            return Err(Refusal::invalid(
                "replica.id",
                id,
                "was a removed replica's: ids are not used again",
            ));
        }
        valid::at_most("replicas", tx.state().replicas.len() + 1, MAX_REPLICAS)?;
    }
    tx.cursors().replica = last.max(id);
    tx.set_replica(id, Some(ReplicaRecord { id, ..replica.clone() }));
    Ok(Granted::Replica(id).into())
}

pub(super) fn remove(tx: &mut Transaction<'_>, id: u64) -> Result<Done, Refusal> {
    if !tx.state().replicas.contains_key(&id) {
        return Err(Refusal::Unknown { what: "replica".to_owned(), name: id.to_string() });
    }
    if tx.state().replicas.len() == 1 {
        return Err(Refusal::invalid("replica.id", id, "is the last replica"));
    }
    tx.set_replica(id, None);
    authority::replica_removed(tx, id);
    Ok(Done::default())
}
