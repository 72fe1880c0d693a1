//! A replica that has lost its log comes back as another one.

use super::{Done, replicas, transaction::Transaction};
use crate::Refusal;

/// Removes one number and gives the next. A repeated request is known by its key: the state does not say which
/// number came of which, and one that is guessed might be a living replica's.
pub(super) fn replace(tx: &mut Transaction<'_>, old: u64, address: &str) -> Result<Done, Refusal> {
    let known = tx.state().replicas.get(&old).cloned();
    let mut record =
        known.ok_or_else(|| Refusal::Unknown { what: "replica".to_owned(), name: old.to_string() })?;
    replicas::remove(tx, old)?;
    record.id = 0;
    record.address = address.to_owned();
    replicas::put(tx, &record)
}

#[cfg(test)]
mod tests {
    use mesh_model::records::ReplicaRecord;

    use super::*;
    use crate::{Command, Granted, fixtures::Store};

    #[test]
    fn a_replaced_replica_has_the_next_number_and_its_old_one_is_gone() {
        let mut store = Store::initialised();
        for address in ["a:1", "b:1", "c:1"] {
            let record = ReplicaRecord { id: 0, address: address.to_owned(), learner: false };
            store.run(Command::PutReplica(record)).expect("added");
        }
        let replace = |old, address: &str| Command::ReplaceReplica { old, address: address.to_owned() };
        let granted = |store: &mut Store, command| store.run(command).expect("replaced").granted;
        assert_eq!(granted(&mut store, replace(2, "b:1")), Granted::Replica(4));
        assert_eq!(store.state.replicas.keys().copied().collect::<Vec<_>>(), [1, 3, 4]);
        assert!(matches!(store.refused(replace(2, "b:1")), Refusal::Unknown { .. }));
        assert!(matches!(store.refused(replace(9, "z:1")), Refusal::Unknown { .. }));
        assert!(store.run(replace(3, "a:1")).is_err(), "the address is another's");
        assert!(store.state.replicas.contains_key(&3), "whole or not at all");
    }

    #[test]
    fn the_last_replica_is_not_replaced_by_an_empty_one() {
        let mut store = Store::initialised();
        store
            .run(Command::PutReplica(ReplicaRecord { id: 1, address: "a:1".to_owned(), learner: false }))
            .expect("added");
        store.refused(Command::ReplaceReplica { old: 1, address: "a:1".to_owned() });
    }
}
