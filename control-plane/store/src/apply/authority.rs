//! Keys, issuers, rotations of the root, and revocations.

use std::collections::BTreeMap;

use mesh_model::{limits::is_jwt_key, records::DomainTrust};

use super::{Done, administrators, cluster::check_roots, nodes, transaction::Transaction, valid};
use crate::{
    Authority, AuthorityCommand, Confirmation, IssuerRecord, JwtKeyRecord, Member, Phase, Refusal,
    Revocation, Rotation, SealedKey, fingerprint_of,
    limits::{JWT_KEY_SECONDS, MAX_JWT_KEYS_OF_A_REPLICA, MAX_REVOKED, MAX_SEALED_BYTES},
};

/// Certificates of nodes and workloads last no longer than this, whatever the flags of the replicas say: 30 days
/// and the five minutes by which clocks may differ.
const LONGEST_LEAF_SECONDS: u64 = 30 * 24 * 3600 + 300;

pub(super) fn run(tx: &mut Transaction<'_>, command: &AuthorityCommand) -> Result<Done, Refusal> {
    match command {
        AuthorityCommand::SealingKey { replica, public } => sealing_key(tx, *replica, public),
        AuthorityCommand::Seal { root, replica, public, sealed } => seal(tx, root, *replica, public, sealed),
        AuthorityCommand::Issuer { replica, issuer } => put_issuer(tx, *replica, issuer),
        AuthorityCommand::JwtKey { replica, point } => jwt_key(tx, *replica, point),
        AuthorityCommand::BeginRotation { certificate, sealed } => begin(tx, certificate, sealed),
        AuthorityCommand::EndPhase { number, phase } => end_phase(tx, *number, *phase),
        AuthorityCommand::Hurry { number, skip_unconfirmed, retire_now } => {
            hurry(tx, *number, *skip_unconfirmed, *retire_now)
        }
        AuthorityCommand::Confirm { member, confirmation } => confirm(tx, member, confirmation),
        AuthorityCommand::RevokeNode { name } => revoke(tx, name),
        AuthorityCommand::AdmitAdministrator { name, asked_by, seconds } => {
            administrators::admit(tx, name, asked_by, *seconds)
        }
        AuthorityCommand::WithdrawAdministrator { name, by, tokens_of } => {
            administrators::withdraw(tx, name, by, tokens_of)
        }
        AuthorityCommand::ForgetRevoked => {
            administrators::forget(tx);
            forget_revoked(tx)
        }
    }
}

/// The first root of a cluster signs until another takes its place.
pub(super) fn founded(tx: &mut Transaction<'_>) {
    tx.change_authority(|authority, cluster| {
        authority.roots = cluster.roots.iter().map(|der| (fingerprint_of(der), Default::default())).collect();
        authority.active = cluster.roots.first().map(|der| fingerprint_of(der)).unwrap_or_default();
        authority.generation = 1;
        publish(authority, cluster);
    });
}

/// A replica that goes takes its copies along; that they are out of our hands is remembered.
pub(super) fn replica_removed(tx: &mut Transaction<'_>, id: u64) {
    tx.change_authority(|authority, cluster| {
        // Whoever has its memory could go on.
        authority.jwt_keys.retain(|key| key.replica != id);
        publish(authority, cluster);
        authority.sealing_keys.remove(&id);
        authority.issuers.remove(&id);
        authority.confirmed_replicas.remove(&id);
        for root in authority.roots.values_mut() {
            if root.sealed.remove(&id).is_some() {
                root.left_with.insert(id);
            }
        }
    });
}

/// The roots of a peer are others now: whoever trusts them is to say so.
pub(super) fn next_generation(tx: &mut Transaction<'_>) -> u64 {
    tx.change_authority(|authority, _| authority.generation += 1);
    tx.state().authority.generation
}

/// A registration has ended: its certificates are refused for as long as one could be valid.
pub(super) fn registration_ended(tx: &mut Transaction<'_>, node: &str, registration: u64) {
    tx.set_confirmation(&Member::Node(node.to_owned()), None);
    if registration == 0 {
        return;
    }
    let at_unix = tx.now_unix();
    let revocation = Revocation {
        node: node.to_owned(),
        at_unix,
        until_unix: at_unix.saturating_add(LONGEST_LEAF_SECONDS),
    };
    tx.change_authority(|authority, cluster| {
        authority.revoked.insert(registration, revocation);
        // Numbers go up, so that the first is the one that ends first.
        while authority.revoked.len() > MAX_REVOKED {
            authority.revoked.pop_first();
        }
        publish(authority, cluster);
    });
}

fn sealing_key(tx: &mut Transaction<'_>, replica: u64, public: &[u8]) -> Result<Done, Refusal> {
    known_replica(tx, replica)?;
    if public.len() != 32 {
        return Err(Refusal::invalid("sealingKey", public.len(), "is not its number of bytes: 32"));
    }
    if tx.state().authority.sealing_keys.get(&replica).map(Vec::as_slice) == Some(public) {
        return Ok(Done::default());
    }
    let public = public.to_vec();
    tx.change_authority(|authority, _| {
        authority.sealing_keys.insert(replica, public);
        // It can't open what was sealed to another key.
        for root in authority.roots.values_mut() {
            root.sealed.remove(&replica);
        }
    });
    Ok(Done::default())
}

fn seal(
    tx: &mut Transaction<'_>,
    root: &str,
    replica: u64,
    public: &[u8],
    sealed: &SealedKey,
) -> Result<Done, Refusal> {
    known_replica(tx, replica)?;
    check_sealed(sealed)?;
    let authority = &tx.state().authority;
    let record = authority
        .roots
        .get(root)
        .ok_or_else(|| Refusal::Unknown { what: "root".to_owned(), name: root.chars().take(64).collect() })?;
    let current = authority.sealing_keys.get(&replica).map(Vec::as_slice) == Some(public);
    if current && !record.sealed.contains_key(&replica) {
        tx.change_authority(|authority, _| {
            if let Some(record) = authority.roots.get_mut(root) {
                record.sealed.insert(replica, sealed.clone());
            }
        });
    }
    Ok(Done::default())
}

fn put_issuer(tx: &mut Transaction<'_>, replica: u64, issuer: &IssuerRecord) -> Result<Done, Refusal> {
    known_replica(tx, replica)?;
    valid::at_most("characters of an issuer's serial", issuer.serial.len(), 64)?;
    valid::at_most("characters of a fingerprint", issuer.root.len(), 64)?;
    if tx.state().authority.issuers.get(&replica) != Some(issuer) {
        tx.change_authority(|authority, _| drop(authority.issuers.insert(replica, issuer.clone())));
    }
    Ok(Done::default())
}

fn jwt_key(tx: &mut Transaction<'_>, replica: u64, point: &[u8]) -> Result<Done, Refusal> {
    known_replica(tx, replica)?;
    if !is_jwt_key(point) {
        return Err(Refusal::invalid("jwtKey", point.len(), "bytes are no uncompressed point of P-256"));
    }
    if tx.state().authority.jwt_keys.iter().any(|known| known.point == point) {
        return Ok(Done::default());
    }
    let since_unix = tx.now_unix();
    let key = JwtKeyRecord {
        replica,
        point: point.to_vec(),
        since_unix,
        until_unix: since_unix.saturating_add(JWT_KEY_SECONDS),
    };
    tx.change_authority(|authority, cluster| {
        authority.jwt_keys.push(key);
        let own = |key: &JwtKeyRecord| key.replica == replica;
        while authority.jwt_keys.iter().filter(|key| own(key)).count() > MAX_JWT_KEYS_OF_A_REPLICA {
            let Some(oldest) = authority.jwt_keys.iter().position(own) else { break };
            authority.jwt_keys.remove(oldest);
        }
        publish(authority, cluster);
    });
    Ok(Done::default())
}

fn begin(
    tx: &mut Transaction<'_>,
    certificate: &[u8],
    sealed: &BTreeMap<u64, SealedKey>,
) -> Result<Done, Refusal> {
    let to = fingerprint_of(certificate);
    let authority = &tx.state().authority;
    if let Some(rotation) = &authority.rotation {
        let problem = format!("is under way already ({})", rotation.phase.as_str());
        return Err(Refusal::invalid("rotation", rotation.number, problem));
    }
    if authority.roots.contains_key(&to) {
        return Err(Refusal::invalid("root", to, "is one of this cluster already"));
    }
    // Whoever has no copy could not renew its issuer.
    if let Some(without) = tx.state().replicas.keys().find(|id| !sealed.contains_key(id)) {
        return Err(Refusal::invalid("root", to, format!("is not sealed to replica {without}")));
    }
    sealed.values().try_for_each(check_sealed)?;
    let mut roots = tx.cluster()?.roots.clone();
    roots.push(certificate.to_vec());
    check_roots(&roots)?;
    let since_unix = tx.now_unix();
    let members: Vec<u64> = tx.state().replicas.keys().copied().collect();
    let copies = sealed.iter().filter(|(id, _)| members.contains(id));
    let record = crate::RootRecord {
        sealed: copies.map(|(id, key)| (*id, key.clone())).collect(),
        left_with: Default::default(),
    };
    tx.change_authority(|authority, cluster| {
        cluster.roots = roots;
        authority.roots.insert(to.clone(), record);
        authority.generation += 1;
        authority.rotations += 1;
        authority.rotation = Some(Rotation {
            number: authority.rotations,
            to,
            phase: Phase::Preparing,
            since_unix,
            generation: authority.generation,
            skip_unconfirmed: false,
            retire_now: false,
        });
        publish(authority, cluster);
    });
    Ok(Done::default())
}

fn end_phase(tx: &mut Transaction<'_>, number: u64, phase: Phase) -> Result<Done, Refusal> {
    let now = tx.now_unix();
    let Some(rotation) = tx.state().authority.rotation.clone().filter(|r| r.number == number) else {
        return Err(Refusal::Unknown { what: "rotation".to_owned(), name: number.to_string() });
    };
    if rotation.phase != phase {
        // Another leader was faster.
        return Ok(Done::default());
    }
    tx.change_authority(|authority, cluster| {
        let next = match phase {
            Phase::Preparing => {
                authority.active.clone_from(&rotation.to);
                Some(Phase::Activating)
            }
            Phase::Activating => Some(Phase::Reissuing),
            Phase::Reissuing => {
                cluster.roots.retain(|der| fingerprint_of(der) == rotation.to);
                authority.roots.retain(|fingerprint, _| *fingerprint == rotation.to);
                authority.generation += 1;
                None
            }
        };
        authority.rotation = next.map(|phase| Rotation { phase, since_unix: now, ..rotation });
        publish(authority, cluster);
    });
    Ok(Done::default())
}

fn hurry(
    tx: &mut Transaction<'_>,
    number: u64,
    skip_unconfirmed: bool,
    retire_now: bool,
) -> Result<Done, Refusal> {
    if tx.state().authority.rotation.as_ref().is_none_or(|rotation| rotation.number != number) {
        return Err(Refusal::Unknown { what: "rotation".to_owned(), name: number.to_string() });
    }
    tx.change_authority(|authority, _| {
        if let Some(rotation) = &mut authority.rotation {
            rotation.skip_unconfirmed |= skip_unconfirmed;
            rotation.retire_now |= retire_now;
        }
    });
    Ok(Done::default())
}

fn confirm(tx: &mut Transaction<'_>, member: &Member, confirmation: &Confirmation) -> Result<Done, Refusal> {
    let (what, name, known) = match member {
        Member::Replica(id) => ("replica", id.to_string(), tx.state().replicas.contains_key(id)),
        Member::Node(name) => ("node", name.clone(), tx.state().nodes.contains_key(name)),
        Member::Peer(name) => ("peer", name.clone(), tx.state().peers.contains_key(name)),
    };
    if !known {
        return Err(Refusal::Unknown { what: what.to_owned(), name: name.chars().take(80).collect() });
    }
    valid::at_most("characters of a fingerprint", confirmation.under.len(), 64)?;
    if tx.state().authority.confirmation(member) != Some(confirmation) {
        tx.set_confirmation(member, Some(confirmation.clone()));
    }
    Ok(Done::default())
}

fn revoke(tx: &mut Transaction<'_>, name: &str) -> Result<Done, Refusal> {
    nodes::remove(tx, name)?;
    // A token that is bound to the node's name may be in the hands of whoever has the node.
    let theirs: Vec<String> = tx
        .state()
        .tokens
        .iter()
        .filter(|(_, token)| {
            token.used_by.is_none()
                && matches!(&token.purpose, crate::TokenPurpose::Node(Some(node)) if node == name)
        })
        .map(|(id, _)| id.clone())
        .collect();
    for id in theirs {
        tx.set_token(&id, None);
    }
    Ok(Done::default())
}

fn forget_revoked(tx: &mut Transaction<'_>) -> Result<Done, Refusal> {
    let now = tx.now_unix();
    let authority = &tx.state().authority;
    let is_over = authority.revoked.values().any(|revocation| revocation.until_unix <= now)
        || authority.jwt_keys.iter().any(|key| key.until_unix <= now);
    if is_over {
        tx.change_authority(|authority, cluster| {
            authority.jwt_keys.retain(|key| key.until_unix > now);
            authority.revoked.retain(|_, revocation| revocation.until_unix > now);
            publish(authority, cluster);
        });
    }
    Ok(Done::default())
}

/// What data planes are told, with the roots.
pub(super) fn publish(authority: &Authority, cluster: &mut mesh_model::records::ClusterInfo) {
    // Nodes are told of the new root when every replica can sign under it.
    let early = authority.rotation.as_ref().filter(|rotation| rotation.phase < Phase::Reissuing);
    let told = match early {
        Some(_) => cluster.trust.active_root.clone(),
        None => authority.active.clone(),
    };
    // Numbers of administrators are of the same row as those of registrations.
    let withdrawn = authority.administrators.iter().filter(|(_, record)| record.withdrawn.is_some());
    let withdrawn = withdrawn.map(|(number, _)| *number);
    cluster.trust = DomainTrust {
        generation: authority.generation,
        active_root: told,
        revoked: authority.revoked.keys().copied().chain(withdrawn).collect(),
        jwt_keys: authority.jwt_keys.iter().map(|key| key.point.clone()).collect(),
    };
}

fn known_replica(tx: &Transaction<'_>, id: u64) -> Result<(), Refusal> {
    if tx.state().replicas.contains_key(&id) {
        return Ok(());
    }
    Err(Refusal::Unknown { what: "replica".to_owned(), name: id.to_string() })
}

fn check_sealed(sealed: &SealedKey) -> Result<(), Refusal> {
    valid::at_most(
        "bytes of a sealed key",
        sealed.encapsulated.len() + sealed.ciphertext.len(),
        MAX_SEALED_BYTES,
    )
}
