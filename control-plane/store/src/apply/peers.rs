//! Other clusters and what they export.

use std::collections::BTreeSet;

use imbl::OrdMap;
use ipnet::IpNet;
use mesh_model::{
    limits::{MAX_JWT_KEYS, is_jwt_key},
    records::{ClusterInfo, ImportedService, PeerRecord},
    resource::NamespacedName,
};

use super::{Done, authority, cluster::check_roots, services, transaction::Transaction, valid};
use crate::{
    Member, Refusal,
    limits::{
        MAX_ENTRIES_PER_IMPORT, MAX_EXPORT_TO, MAX_IDENTITIES_PER_IMPORT, MAX_IMPORTS_PER_PEER,
        MAX_PEER_DOORS, MAX_PEER_GATEWAYS, MAX_PEERS, MAX_PORTS_PER_IMPORT,
    },
};

pub(super) fn put(tx: &mut Transaction<'_>, peer: &PeerRecord) -> Result<Done, Refusal> {
    check(tx, peer)?;
    let known = tx.state().peers.get(&peer.cluster);
    let (origin_revision, imports) = match known {
        Some(known) => (known.origin_revision, known.imports.clone()),
        None => {
            valid::at_most("peers", tx.state().peers.len() + 1, MAX_PEERS)?;
            (0, OrdMap::new())
        }
    };
    let mut record = PeerRecord { origin_revision, imports, ..peer.clone() };
    let trust = known.map(|known| known.trust.clone()).unwrap_or_default();
    let same_roots = known.is_some_and(|known| known.roots == record.roots);
    record.trust.active_root = String::new();
    record.trust.generation = trust.generation;
    if known.map(|known| known.as_ref()) != Some(&record) {
        if !same_roots {
            record.trust.generation = authority::next_generation(tx);
        }
        tx.set_peer(&peer.cluster, Some(record));
    }
    Ok(Done::default())
}

pub(super) fn import(
    tx: &mut Transaction<'_>,
    cluster: &str,
    origin_revision: u64,
    upserts: &[(NamespacedName, ImportedService)],
    removals: &[NamespacedName],
) -> Result<Done, Refusal> {
    let peer = known(tx, cluster)?;
    if origin_revision < peer.origin_revision {
        return Err(Refusal::PeerWentBack {
            cluster: cluster.to_owned(),
            have: peer.origin_revision,
            got: origin_revision,
        });
    }
    let trust_domain = peer.trust_domain.clone();
    tx.set_origin_revision(cluster, origin_revision);
    let mut touched = BTreeSet::new();
    for name in removals {
        if known(tx, cluster)?.imports.contains_key(name) {
            tx.set_import(cluster, name, None);
            touched.insert(name);
        }
    }
    for (name, service) in upserts {
        check_import(tx.cluster()?, name, service)?;
        // A peer vouches for the identities of its own trust domain only.
        if let Some(foreign) = service.spiffe_ids.iter().find(|id| *id.trust_domain() != trust_domain) {
            let problem = format!("is not of the peer's trust domain {trust_domain}");
            return Err(Refusal::invalid(format!("import {name}: spiffeIds"), foreign, problem));
        }
        if known(tx, cluster)?.imports.get(name).map(|known| known.as_ref()) != Some(service) {
            tx.set_import(cluster, name, Some(service.clone()));
            touched.insert(name);
        }
    }
    let imports = known(tx, cluster)?.imports.len();
    valid::at_most(&format!("services imported from {cluster}"), imports, MAX_IMPORTS_PER_PEER)?;
    for name in touched {
        services::reallocate(tx, name)?;
    }
    Ok(Done::default())
}

pub(super) fn remove(tx: &mut Transaction<'_>, cluster: &str) -> Result<Done, Refusal> {
    let imported: Vec<NamespacedName> = known(tx, cluster)?.imports.keys().cloned().collect();
    tx.set_peer(cluster, None);
    tx.set_confirmation(&Member::Peer(cluster.to_owned()), None);
    for name in &imported {
        services::reallocate(tx, name)?;
    }
    Ok(Done::default())
}

fn known<'a>(tx: &'a Transaction<'_>, cluster: &str) -> Result<&'a PeerRecord, Refusal> {
    tx.state()
        .peers
        .get(cluster)
        .map(|peer| peer.as_ref())
        .ok_or_else(|| Refusal::Unknown { what: "peer".to_owned(), name: cluster.chars().take(80).collect() })
}

/// Names must tell clusters apart, and a trust domain must have one owner.
fn check(tx: &Transaction<'_>, peer: &PeerRecord) -> Result<(), Refusal> {
    valid::label("peer.cluster", &peer.cluster)?;
    check_roots(&peer.roots)?;
    valid::at_most("doors of one peer", peer.doors.len(), MAX_PEER_DOORS)?;
    valid::at_most("JWT keys of one peer", peer.trust.jwt_keys.len(), MAX_JWT_KEYS)?;
    if let Some(key) = peer.trust.jwt_keys.iter().find(|key| !is_jwt_key(key)) {
        return Err(Refusal::invalid("peer.jwtKeys", key.len(), "bytes are no uncompressed point of P-256"));
    }
    valid::at_most("gateways of one peer", peer.gateways.len(), MAX_PEER_GATEWAYS)?;
    peer.doors.iter().try_for_each(|door| valid::host_port("peer.doors", door))?;
    peer.gateways.iter().try_for_each(|gateway| valid::host_port("peer.gateways", gateway))?;
    let own = tx.cluster()?;
    let clash = |what: &str, value: String, holder: String| Refusal::PeerClash {
        cluster: peer.cluster.clone(),
        what: what.to_owned(),
        value,
        holder,
    };
    if peer.cluster == own.name {
        return Err(clash("name", peer.cluster.clone(), "this cluster".to_owned()));
    }
    if peer.trust_domain == own.trust_domain {
        return Err(clash("trust domain", peer.trust_domain.to_string(), "this cluster".to_owned()));
    }
    if peer.mesh_domain != own.mesh_domain {
        let problem = format!("is another mesh: this one is {}", own.mesh_domain);
        return Err(Refusal::invalid("peer.meshDomain", &peer.mesh_domain, problem));
    }
    for other in tx.state().peers.values().filter(|other| other.cluster != peer.cluster) {
        if other.trust_domain == peer.trust_domain {
            let holder = format!("peer {}", other.cluster);
            return Err(clash("trust domain", peer.trust_domain.to_string(), holder));
        }
    }
    // Whoever holds the name may not hand it to another trust domain: that takes a removal first.
    match tx.state().peers.get(&peer.cluster) {
        Some(known) if known.trust_domain != peer.trust_domain => {
            let holder = format!("a peer of trust domain {}", known.trust_domain);
            Err(clash("name", peer.cluster.clone(), holder))
        }
        _ => Ok(()),
    }
}

fn check_import(
    cluster: &ClusterInfo,
    name: &NamespacedName,
    service: &ImportedService,
) -> Result<(), Refusal> {
    valid::label("import.namespace", &name.namespace)?;
    valid::label("import.name", &name.name)?;
    valid::at_most(
        &format!("namespaces of the import {name}"),
        service.visibility.only().count(),
        MAX_EXPORT_TO,
    )?;
    valid::at_most(&format!("ports of the import {name}"), service.ports.len(), MAX_PORTS_PER_IMPORT)?;
    valid::at_most(
        &format!("identities of the import {name}"),
        service.spiffe_ids.len(),
        MAX_IDENTITIES_PER_IMPORT,
    )?;
    valid::at_most(&format!("entries of the import {name}"), service.entries.len(), MAX_ENTRIES_PER_IMPORT)?;
    // A peer says where its nodes are, not where our pods and services are.
    let own: Vec<IpNet> = cluster.pod_cidrs().chain(cluster.service_cidrs()).collect();
    if let Some(entry) = service.entries.iter().find(|e| own.iter().any(|own| own.contains(&e.at.ip()))) {
        let problem = "is of this cluster's own pods or services";
        return Err(Refusal::invalid(format!("import {name}: entry"), entry.at, problem));
    }
    if service.ports.iter().any(|port| port.port == 0) {
        return Err(Refusal::invalid(format!("import {name}: port"), 0, "is not a port"));
    }
    Ok(())
}
