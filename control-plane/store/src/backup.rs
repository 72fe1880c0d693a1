//! A backup: one revision of a cluster in a file.
//!
//! **In it**: every object, identity number, node, binding, allocation, peer with its roots, unused token (as a
//! hash), replica record, and the cluster's root certificates. **Not in it**: private keys in clear. Those of
//! replicas are on their disks, those of workloads on their nodes.

use std::io::{Read, Write};

use mesh_model::records::ReplicaRecord;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    AppliedKeys, SnapshotError, State,
    container::{ContainerError, Kind, Reader, Writer},
    decode, encode_to,
    limits::{RECOVERY_REGISTRATIONS, RECOVERY_REPLICAS},
};

/// How a backup begins.
pub const KIND: Kind = Kind { magic: *b"isthbkup", name: "backup of a cluster" };
/// Bytes of a state, at most.
pub const MAX_STATE_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// By how much the revision of a restored cluster is ahead of its backup's, to begin with,
pub const REVISION_JUMP: u64 = 1_000_000;
/// and for each second since. No cluster commits that many, so no client has seen a revision that the restored
/// cluster will give to something else.
pub const REVISIONS_PER_SECOND: u64 = 10_000;

/// The last registration: seven bytes of a serial hold it.
const MAX_REGISTRATION: u64 = (1 << 56) - 1;

/// What a backup says of itself. Everything in it is checked against the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Name of the cluster.
    pub cluster: String,
    #[allow(missing_docs)]
    pub trust_domain: String,
    #[allow(missing_docs)]
    pub mesh_domain: String,
    /// What it is a backup of.
    pub revision: u64,
    /// When it was made, seconds since 1970.
    pub created_unix: u64,
    /// Which release made it.
    pub release: String,
    /// Objects in it.
    pub objects: u64,
}

/// Why a file is no backup, or there can be none.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum BackupError {
    #[error("this cluster is not initialised: there is nothing to back up")]
    NotInitialised,
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("its header can't be read: {0}")]
    Header(serde_json::Error),
    #[error(transparent)]
    State(#[from] SnapshotError),
    #[error("its header says {field} {said}, but its content says {found}")]
    Contradiction { field: &'static str, said: String, found: String },
}

impl Header {
    /// What a backup of this state says.
    ///
    /// # Errors
    /// There is no cluster yet.
    pub fn of(state: &State, now_unix: u64, release: &str) -> Result<Self, BackupError> {
        let cluster = state.cluster.as_ref().ok_or(BackupError::NotInitialised)?;
        Ok(Self {
            cluster: cluster.name.clone(),
            trust_domain: cluster.trust_domain.to_string(),
            mesh_domain: cluster.mesh_domain.clone(),
            revision: state.revision,
            created_unix: now_unix,
            release: release.to_owned(),
            objects: state.objects.len() as u64,
        })
    }
}

/// Writes a backup.
///
/// # Errors
/// There is no cluster, or those of the writer.
pub fn write<W: Write>(state: &State, now_unix: u64, release: &str, writer: W) -> Result<W, BackupError> {
    let header = serde_json::to_vec(&Header::of(state, now_unix, release)?).map_err(BackupError::Header)?;
    let mut writer = Writer::new(writer, KIND, &header).map_err(ContainerError::Io)?;
    encode_to(state, &mut writer)?;
    Ok(writer.finish().map_err(ContainerError::Io)?.0)
}

/// Reads a backup and checks all of it: nothing of a file that is not whole is returned.
///
/// # Errors
/// What is wrong with it.
pub fn read(reader: impl Read) -> Result<(Header, State), BackupError> {
    let (reader, header) = Reader::open(reader, KIND)?;
    let header: Header = serde_json::from_slice(&header).map_err(BackupError::Header)?;
    let state = decode(&reader.rest(MAX_STATE_BYTES)?)?;
    let found = Header::of(&state, header.created_unix, &header.release)?;
    for (field, said, found) in [
        ("cluster", &header.cluster, &found.cluster),
        ("trust domain", &header.trust_domain, &found.trust_domain),
        ("mesh domain", &header.mesh_domain, &found.mesh_domain),
        ("revision", &header.revision.to_string(), &found.revision.to_string()),
        ("number of objects", &header.objects.to_string(), &found.objects.to_string()),
    ] {
        if said != found {
            return Err(BackupError::Contradiction { field, said: said.clone(), found: found.clone() });
        }
    }
    Ok((header, state))
}

/// The state with which a cluster of one replica goes on from a backup. The revision, the replica's number and the
/// numbers of certificates to come are ahead of all that the lost cluster can have given out since, so that nothing of
/// it is taken for something of the new one: not a certificate that was withdrawn after the backup either. Each second
/// counts, so that the same holds for two clusters made of one backup.
pub fn restored(mut state: State, header: &Header, address: &str, now_unix: u64) -> (State, u64) {
    let since = now_unix.saturating_sub(header.created_unix);
    let jump = REVISION_JUMP.saturating_add(since.saturating_mul(REVISIONS_PER_SECOND));
    state.revision = state.revision.saturating_add(jump);
    let last = state.replicas.keys().copied().max().unwrap_or(0).max(state.cursors.replica);
    let id = last.saturating_add(RECOVERY_REPLICAS).saturating_add(since);
    state.cursors.replica = id;
    let jump = RECOVERY_REGISTRATIONS.saturating_add(since);
    state.cursors.registration = state.cursors.registration.saturating_add(jump).min(MAX_REGISTRATION);
    state.replicas =
        [(id, ReplicaRecord { id, address: address.to_owned(), learner: false })].into_iter().collect();
    // Writes of the lost cluster are not repeated here.
    state.applied_keys = AppliedKeys::default();
    (state, id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::populated;

    fn backup() -> Vec<u8> {
        write(&populated(), 1_000, "0.1.0", Vec::new()).expect("memory")
    }

    #[test]
    fn a_backup_is_read_back_whole() {
        let (header, state) = read(&backup()[..]).expect("whole");
        assert_eq!(state, populated());
        assert_eq!((header.cluster.as_str(), header.objects), ("west", 2));
        assert!(matches!(write(&State::default(), 0, "", Vec::new()), Err(BackupError::NotInitialised)));
    }

    #[test]
    fn a_header_that_belongs_to_another_backup_is_refused() {
        let mut other = populated();
        other.revision += 1;
        let header = Header::of(&other, 0, "x").expect("initialised");
        let header = serde_json::to_vec(&header).expect("plain data");
        let mut writer = Writer::new(Vec::new(), KIND, &header).expect("memory");
        encode_to(&populated(), &mut writer).expect("memory");
        let file = writer.finish().expect("memory").0;
        let error = read(&file[..]).expect_err("it contradicts itself");
        assert!(matches!(error, BackupError::Contradiction { field: "revision", .. }), "{error}");
    }

    #[test]
    fn a_restored_cluster_gives_no_revision_and_no_replica_number_twice() {
        let (header, state) = read(&backup()[..]).expect("whole");
        let (after, id) = restored(state.clone(), &header, "10.0.0.9:9443", 1_060);
        assert_eq!(after.revision, state.revision + 1_600_000);
        assert_eq!(id, 1_061, "replica 1 was the lost one, and it may have had more since");
        assert_eq!(after.replicas.keys().copied().collect::<Vec<_>>(), [id]);
        assert_eq!(after.cursors.replica, id);
        assert_eq!(after.cursors.registration, state.cursors.registration + 1_000_060);
        assert_eq!((&after.objects, &after.identities), (&state.objects, &state.identities));
        // A clock that went back, or any other, takes nothing away.
        assert_eq!(restored(state.clone(), &header, "a:1", 0).0.revision, state.revision + REVISION_JUMP);
        let (last, id) = restored(state, &header, "a:1", u64::MAX);
        assert_eq!((last.revision, id), (u64::MAX, u64::MAX));
    }

    proptest! {
        #[test]
        fn damage_anywhere_is_found(at in 0usize..4_000, bit in 0u8..8) {
            let mut file = backup();
            let at = at % file.len();
            file[at] ^= 1 << bit;
            prop_assert!(read(&file[..]).is_err());
        }
    }
}
