//! Keeps the authority of this replica in order: sealed copies of the root's key for whoever lacks one, its own
//! issuer and certificate fresh, and the record of them in the state.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_store::{
    AuthorityCommand, Command, Confirmation, Fingerprint, Member, Next, Phase, State, next_step,
};
use rand::Rng;

use super::{Ca, CaError, seal_to, trust};
use crate::app::App;

/// How often it is looked at, besides when the state changes. Clocks jump, so no wait is longer.
const LOOK: Duration = Duration::from_secs(2);
/// The least time between two looks: most changes of the state are none of the authority's.
const CALM: Duration = Duration::from_millis(50);

/// What this replica has to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// The others are to know which key to seal to.
    TellKey,
    /// A replica lacks a copy of a root's key that this one has.
    Seal {
        /// Which root.
        root: Fingerprint,
        /// For whom.
        replica: u64,
        /// To which key.
        public: Vec<u8>,
    },
    /// The state knows of another issuer than this replica has.
    TellIssuer,
    /// The others are to know of another key for tokens: its point.
    TellJwtKey(Vec<u8>),
    /// Revocations of which no certificate can be valid any more, and keys of which no token can be.
    ForgetRevoked,
    /// This replica trusts the roots of the state, and shows certificates under its issuer's.
    Confirm(Confirmation),
    /// The rotation goes on: everybody has confirmed its phase.
    EndPhase {
        /// Of the rotation.
        number: u64,
        #[allow(missing_docs)]
        phase: Phase,
    },
}

/// What a replica has to write. PURE.
///
/// Copies are sealed by the leader; by the others only if it has none itself.
pub fn tasks(state: &State, own: Own<'_>, leader: Option<u64>, now_unix: u64) -> Vec<Task> {
    let authority = &state.authority;
    if !state.replicas.contains_key(&own.id) {
        return Vec::new();
    }
    let mut tasks = Vec::new();
    if authority.sealing_keys.get(&own.id).map(Vec::as_slice) != Some(own.sealing_key) {
        tasks.push(Task::TellKey);
    }
    for (root, record) in &authority.roots {
        let has = |id: u64| record.sealed.contains_key(&id);
        let mine = has(own.id) || own.unsealed == Some(root);
        let leads = leader == Some(own.id) || leader.is_some_and(|leader| !has(leader));
        if !mine || !leads {
            continue;
        }
        let lacking = authority.sealing_keys.iter().filter(|(id, _)| !has(**id));
        tasks.extend(lacking.map(|(replica, public)| Task::Seal {
            root: root.clone(),
            replica: *replica,
            public: public.clone(),
        }));
    }
    if authority.issuers.get(&own.id) != Some(own.issuer) {
        tasks.push(Task::TellIssuer);
    }
    tasks.extend(own.jwt_key.map(|point| Task::TellJwtKey(point.to_vec())));
    if own.trusts_all {
        let confirmation = Confirmation { generation: authority.generation, under: own.issuer.root.clone() };
        if authority.confirmed_replicas.get(&own.id) != Some(&confirmation) {
            tasks.push(Task::Confirm(confirmation));
        }
    }
    if leader == Some(own.id)
        && let (Next::EndPhase(phase), Some(rotation)) = (next_step(state, now_unix), &authority.rotation)
    {
        tasks.push(Task::EndPhase { number: rotation.number, phase });
    }
    let over = |revocation: &mesh_store::Revocation| revocation.until_unix <= now_unix;
    let ended = |record: &mesh_store::AdministratorRecord| record.until_unix <= now_unix;
    let forgettable = authority.revoked.values().any(over)
        || authority.administrators.values().any(ended)
        || authority.jwt_keys.iter().any(|key| key.until_unix <= now_unix);
    if leader == Some(own.id) && forgettable {
        tasks.push(Task::ForgetRevoked);
    }
    tasks
}

/// What a replica knows of itself.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Own<'a> {
    pub id: u64,
    pub sealing_key: &'a [u8],
    /// The root whose key it has in clear, because it made the cluster just now.
    pub unsealed: Option<&'a Fingerprint>,
    pub issuer: &'a mesh_store::IssuerRecord,
    /// That is to be told of.
    pub jwt_key: Option<&'a [u8]>,
    /// Its handshakes use the roots of the state.
    pub trusts_all: bool,
}

/// Runs until the task is aborted.
pub async fn run(app: Arc<App>) {
    let mut changes = app.replica.changes();
    // One draw for each certificate would do; one for each process is as good, and the same at every look.
    let jitter = rand::rng().random_range(0.0..1.0);
    let mut told = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        match look(&app, jitter).await {
            // What was written may lead to more.
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the certificate authority has something left to do"),
        }
        confirm_to_peers(&app, &mut told).await;
        // A closed channel means that the replica is going; then the task is ended from outside.
        let calm = tokio::time::sleep(CALM);
        let _ = tokio::time::timeout(LOOK, changes.changed()).await;
        calm.await;
    }
}

/// Says whether anything was written.
async fn look(app: &App, jitter: f64) -> Result<bool, CaError> {
    let now = SystemTime::now();
    let state = app.replica.applied();
    if let Some(cluster) = &state.cluster {
        app.ca.set_roots(&cluster.roots)?;
    }
    if app.ca.refresh(&state, now, jitter)? {
        tracing::info!(revision = state.revision, "renewed the issuing certificate of this replica");
    }
    if app.ca.forget_unsealed(&state)? {
        tracing::info!(revision = state.revision, "the root's key is sealed: its file is removed");
    }
    let issuer = app.ca.issuer_record(app.config.workload_certificate_life)?;
    let unsealed = app.ca.unsealed_root();
    let jwt_key = app.ca.jwt().due(&state.authority, app.ca.replica().id, super::unix(now), false)?;
    let own = Own {
        id: app.ca.replica().id,
        sealing_key: app.ca.sealing_key(),
        unsealed: unsealed.as_ref(),
        issuer: &issuer,
        jwt_key: jwt_key.as_deref(),
        trusts_all: app.bundles.load().says_the_same(&crate::app::trust_bundles(&app.ca, &state)),
    };
    let leader = app.replica.metrics().leader;
    let tasks = tasks(&state, own, leader, super::unix(now));
    for task in &tasks {
        let command = command(&app.ca, &state, task, &issuer)?;
        // Tried again at the next look: there may be no leader just now.
        let revision = match app.replica.write(Command::Authority(command)).await {
            Ok(applied) => applied.revision,
            Err(error) => {
                tracing::debug!(%error, ?task, "not written yet");
                return Ok(false);
            }
        };
        if let Task::EndPhase { number, phase } = task {
            let phase = phase.as_str();
            tracing::info!(
                rotation = number,
                phase,
                revision,
                "everybody has confirmed: the rotation goes on"
            );
        }
    }
    Ok(!tasks.is_empty())
}

/// The leader tells peers whose roots everybody here trusts by now.
async fn confirm_to_peers(app: &App, told: &mut BTreeMap<String, u64>) {
    if !app.replica.is_leader() {
        // Another leader has told others.
        told.clear();
        return;
    }
    let state = app.replica.applied();
    for peer in trust::to_confirm(&state, told) {
        match trust::tell(app, peer).await {
            Ok(()) => drop(told.insert(peer.cluster.clone(), peer.trust.generation)),
            Err(reason) => tracing::debug!(peer = peer.cluster, reason, "not told of our trust yet"),
        }
    }
}

fn command(
    ca: &Ca,
    state: &State,
    task: &Task,
    issuer: &mesh_store::IssuerRecord,
) -> Result<AuthorityCommand, CaError> {
    let id = ca.replica().id;
    Ok(match task {
        Task::TellKey => AuthorityCommand::SealingKey { replica: id, public: ca.sealing_key().to_vec() },
        Task::Seal { root, replica, public } => AuthorityCommand::Seal {
            root: root.clone(),
            replica: *replica,
            public: public.clone(),
            sealed: seal_to(ca.root(state, root)?.as_ref(), *replica, public)?,
        },
        Task::TellIssuer => AuthorityCommand::Issuer { replica: id, issuer: issuer.clone() },
        Task::TellJwtKey(point) => AuthorityCommand::JwtKey { replica: id, point: point.clone() },
        Task::ForgetRevoked => AuthorityCommand::ForgetRevoked,
        Task::Confirm(confirmation) => {
            AuthorityCommand::Confirm { member: Member::Replica(id), confirmation: confirmation.clone() }
        }
        Task::EndPhase { number, phase } => AuthorityCommand::EndPhase { number: *number, phase: *phase },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::records::ReplicaRecord;
    use mesh_store::{IssuerRecord, RootRecord, SealedKey};

    fn issuer() -> IssuerRecord {
        IssuerRecord {
            serial: "1".into(),
            root: "r".into(),
            not_before_unix: 0,
            not_after_unix: 9,
            leaf_seconds: 1,
        }
    }

    /// Three replicas that have told everything; the copies are those of `with`.
    fn state(with: &[u64]) -> State {
        let mut state = State::default();
        for id in 1..=3 {
            state
                .replicas
                .insert(id, ReplicaRecord { id, address: format!("10.0.0.{id}:9443"), learner: false });
            state.authority.sealing_keys.insert(id, vec![id as u8; 32]);
            state.authority.issuers.insert(id, issuer());
        }
        let copy = SealedKey { encapsulated: vec![], ciphertext: vec![] };
        let sealed = with.iter().map(|id| (*id, copy.clone())).collect();
        state.authority.roots.insert("r".into(), RootRecord { sealed, left_with: Default::default() });
        state
    }

    fn tasks_of(state: &State, id: u64, leader: u64) -> Vec<Task> {
        let (key, issuer) = (vec![id as u8; 32], issuer());
        tasks(
            state,
            Own { id, sealing_key: &key, unsealed: None, issuer: &issuer, jwt_key: None, trusts_all: false },
            Some(leader),
            0,
        )
    }

    #[test]
    fn nothing_is_left_to_do_when_everybody_has_a_copy() {
        assert_eq!(tasks_of(&state(&[1, 2, 3]), 1, 1), []);
    }

    #[test]
    fn the_leader_seals_to_whoever_lacks_a_copy_and_another_holder_if_the_leader_has_none() {
        let seal = |replica| Task::Seal { root: "r".into(), replica, public: vec![replica as u8; 32] };
        assert_eq!(tasks_of(&state(&[1, 2]), 1, 1), [seal(3)]);
        assert_eq!(tasks_of(&state(&[1, 2]), 2, 1), []);
        assert_eq!(tasks_of(&state(&[2]), 2, 1), [seal(1), seal(3)]);
        assert_eq!(tasks_of(&state(&[2]), 1, 1), [], "it has nothing to seal");
    }

    #[test]
    fn a_replica_tells_its_key_and_its_issuer_when_the_state_has_others() {
        let mut state = state(&[1, 2, 3]);
        state.authority.sealing_keys.insert(2, vec![9; 32]);
        state.authority.issuers.remove(&2);
        assert_eq!(tasks_of(&state, 2, 1), [Task::TellKey, Task::TellIssuer]);
        state.replicas.remove(&2);
        assert_eq!(tasks_of(&state, 2, 1), [], "a removed replica has no say");
    }

    #[test]
    fn the_founder_seals_the_key_that_it_made() {
        let (state, key, issuer, root) = (state(&[]), vec![1; 32], issuer(), "r".to_owned());
        let own = Own {
            id: 1,
            sealing_key: &key,
            unsealed: Some(&root),
            issuer: &issuer,
            jwt_key: Some(&[4; 65]),
            trusts_all: false,
        };
        let all = tasks(&state, own, Some(1), 0);
        assert_eq!((all.len(), &all[3]), (4, &Task::TellJwtKey(vec![4; 65])));
    }
}
