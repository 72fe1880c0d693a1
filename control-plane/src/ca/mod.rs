//! The certificate authority of a replica.
//!
//! The root's key is in the replicated state, sealed to each replica's own key: every replica can sign issuers, its
//! own when it is time and that of a replica that joins, whatever has become of the first. Each replica signs leaves
//! with an issuer of its own, whose key never leaves its disk. Whoever signs decides name, usages and time.

pub mod administrators;
pub mod admission;
pub mod bootstrap;
pub mod certificates;
mod error;
pub(crate) mod files;
pub mod jwt;
pub mod keeper;
mod keys;
pub mod newcomer;
pub mod restore;
pub mod service;
pub mod trust;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_hubble::names;
use mesh_model::{
    identity::{SpiffeId, TrustDomain},
    records::{ClusterInfo, NodeRecord},
};
use mesh_store::{Authority, Fingerprint, IssuerRecord, SealedKey, State, fingerprint_of};
use mesh_tls::{
    CertificateDer, CertifiedKey, Identity, Life, SharedIdentity, certificate_info, certified, csr, issue,
    seal::{Sealed, SealingKey},
    shared_identity,
};

pub use error::CaError;
pub use keys::ReplicaFile;
use keys::{Contents, Keys};

/// Validity of the certificates of replicas and nodes.
pub const NODE_TTL: Duration = issue::LEAF_TTL;

/// The authority of one replica.
#[derive(Debug)]
pub struct Ca {
    keys: Keys,
    replica: ReplicaFile,
    /// Those of the state, once there is one.
    roots: ArcSwap<Vec<CertificateDer<'static>>>,
    issuer: ArcSwap<issue::Issuer>,
    /// Which root signed the issuer, as last found.
    issuer_signed: ArcSwapOption<Signed>,
    sealing: SealingKey,
    /// The root of a cluster that was just made here.
    unsealed: ArcSwapOption<issue::Root>,
    own: SharedIdentity,
    jwt: jwt::JwtKeys,
    /// DNS names of the own certificate, as the state has them.
    names: ArcSwap<Vec<String>>,
}

/// A signature that was verified.
#[derive(Debug)]
struct Signed {
    issuer: CertificateDer<'static>,
    root: CertificateDer<'static>,
}

impl Ca {
    /// Makes the root of a new cluster, whose first replica this is. Nothing is kept if any part fails.
    ///
    /// # Errors
    /// No randomness, or the folder can't be written.
    pub fn create(
        folder: &Path,
        cluster: &str,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<(), CaError> {
        let root = issue::Root::generate(trust_domain.clone(), now)?;
        let key = issue::Issuer::generate()?;
        let certificate = root.sign_issuer(&key.csr(trust_domain)?, now)?;
        let issuer = key.certified(certificate)?;
        let mut replica = ReplicaFile {
            id: 1,
            cluster: cluster.to_owned(),
            trust_domain: trust_domain.clone(),
            roots: Vec::new(),
        };
        replica.set_roots([root.certificate().as_ref()]);
        Keys::make(folder)?.write_root(&root)?;
        Self::keep(folder, &replica, &issuer, &SealingKey::generate()?)
    }

    /// Keeps what a cluster gave a replica that joins it.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn keep(
        folder: &Path,
        replica: &ReplicaFile,
        issuer: &issue::Issuer,
        sealing: &SealingKey,
    ) -> Result<(), CaError> {
        let keys = Keys::make(folder)?;
        keys.write_issuer(issuer)?;
        keys.write_sealing(sealing)?;
        keys.write_replica(replica)
    }

    /// Opens the folder of a replica that has been set up; None if it has not. Its own certificate is there after
    /// [`Ca::refresh`].
    ///
    /// # Errors
    /// A file is missing, damaged, or readable by others.
    pub fn open(folder: &Path) -> Result<Option<Self>, CaError> {
        let keys = Keys(folder.to_owned());
        let Some(Contents { replica, roots, issuer, sealing, unsealed }) = keys.read()? else {
            return Ok(None);
        };
        Ok(Some(Self {
            keys,
            replica,
            roots: ArcSwap::from_pointee(roots),
            issuer: ArcSwap::from_pointee(issuer),
            issuer_signed: ArcSwapOption::empty(),
            sealing,
            unsealed: ArcSwapOption::from_pointee(unsealed),
            own: shared_identity(None),
            jwt: jwt::JwtKeys::default(),
            names: ArcSwap::default(),
        }))
    }

    /// The same replica under another number of its cluster. It has no certificate until [`Ca::refresh`], and its
    /// copy of the root's key is sealed to it anew.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn renumbered(mut self, id: u64) -> Result<Self, CaError> {
        self.replica.id = id;
        self.keys.write_replica(&self.replica)?;
        self.own.store(None);
        Ok(self)
    }

    /// What this replica is.
    pub fn replica(&self) -> &ReplicaFile {
        &self.replica
    }

    /// Roots of the trust domain, DER.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.load().to_vec()
    }

    /// Takes over the roots of a newer state, and keeps them for the next start.
    ///
    /// # Errors
    /// The folder can't be written; the roots are used all the same.
    pub fn set_roots(&self, roots: &[Vec<u8>]) -> Result<(), CaError> {
        let same = self.roots.load().iter().map(CertificateDer::as_ref).eq(roots.iter().map(Vec::as_slice));
        if same || roots.is_empty() {
            return Ok(());
        }
        self.roots.store(Arc::new(roots.iter().cloned().map(CertificateDer::from).collect()));
        let mut replica = self.replica.clone();
        replica.set_roots(roots.iter().map(Vec::as_slice));
        self.keys.write_replica(&replica)
    }

    /// The replica's own certificate, renewed in place.
    pub fn own(&self) -> &SharedIdentity {
        &self.own
    }

    /// Whether this replica made its cluster and the root's key is not sealed in the state yet.
    pub fn is_founder(&self) -> bool {
        self.unsealed.load().is_some()
    }

    /// The root whose key this replica has in clear.
    pub fn unsealed_root(&self) -> Option<Fingerprint> {
        self.unsealed.load().as_ref().map(|root| fingerprint_of(root.certificate()))
    }

    /// Keys that sign JWT-SVIDs.
    pub fn jwt(&self) -> &jwt::JwtKeys {
        &self.jwt
    }

    /// The public half of the key that others seal to.
    pub fn sealing_key(&self) -> &[u8] {
        self.sealing.public()
    }

    /// Signs a leaf. Of the request only the key is used. `registration` is that of the node it is for, or on
    /// whose behalf; zero for a replica.
    ///
    /// # Errors
    /// The request is malformed, or the issuer has expired.
    pub fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        registration: u64,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<Vec<u8>>, CaError> {
        Ok(self.issuer.load().sign_for(csr, id, registration, ttl, now)?.iter().map(|c| c.to_vec()).collect())
    }

    /// As [`Ca::sign`], for a node: with the DNS name that its flows are served under, which follows from the node's name
    /// and the cluster's and never from the request.
    ///
    /// # Errors
    /// As [`Ca::sign`].
    pub fn sign_node(
        &self,
        csr: &[u8],
        node: &NodeRecord,
        cluster: &ClusterInfo,
        now: SystemTime,
    ) -> Result<Vec<Vec<u8>>, CaError> {
        let id = SpiffeId::node(&cluster.trust_domain, &node.name);
        let names: Vec<String> =
            names::of_node(&node.name, &cluster.name, &cluster.mesh_domain).into_iter().collect();
        let issuer = self.issuer.load();
        let chain = issuer.sign_named(csr, &id, &names, node.registration, NODE_TTL, now)?;
        Ok(chain.iter().map(|c| c.to_vec()).collect())
    }

    /// The root that issuers are to be signed by now, with its key.
    ///
    /// # Errors
    /// [`CaError::NoRoot`] if no copy is sealed to this replica.
    pub fn active_root(&self, state: &State) -> Result<Arc<issue::Root>, CaError> {
        self.root(state, &state.authority.active)
    }

    /// A root with its key: opened each time, so that it is in memory no longer than it is used.
    ///
    /// # Errors
    /// [`CaError::NoRoot`] if no copy is sealed to this replica, [`CaError::Tls`] if it is damaged.
    pub fn root(&self, state: &State, fingerprint: &str) -> Result<Arc<issue::Root>, CaError> {
        if let Some(root) = self.unsealed.load_full() {
            // Before the state is there, there is no other.
            if fingerprint.is_empty() || fingerprint_of(root.certificate()) == fingerprint {
                return Ok(root);
            }
        }
        let missing = || CaError::NoRoot { root: fingerprint.chars().take(16).collect() };
        let record = state.authority.roots.get(fingerprint).ok_or_else(missing)?;
        let sealed = record.sealed.get(&self.replica.id).ok_or_else(missing)?;
        let roots = state.cluster.iter().flat_map(|cluster| &cluster.roots);
        let certificate =
            roots.into_iter().find(|der| fingerprint_of(der) == fingerprint).ok_or_else(missing)?;
        let root = issue::Root::open(
            CertificateDer::from(certificate.clone()),
            &Sealed { encapsulated: sealed.encapsulated.clone(), ciphertext: sealed.ciphertext.clone() },
            self.replica.id,
            &self.sealing,
        )?;
        Ok(Arc::new(root))
    }

    /// Signs the issuer of another replica.
    ///
    /// # Errors
    /// As [`Ca::active_root`], or a malformed request.
    pub fn sign_issuer(
        &self,
        state: &State,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, CaError> {
        Ok(self.active_root(state)?.sign_issuer(csr, now)?)
    }

    /// The root's key in clear goes from the disk once this replica can open its sealed copy.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn forget_unsealed(&self, state: &State) -> Result<bool, CaError> {
        let Some(root) = self.unsealed.load_full() else { return Ok(false) };
        let fingerprint = fingerprint_of(root.certificate());
        let sealed = state.authority.roots.get(&fingerprint);
        if sealed.is_none_or(|record| !record.sealed.contains_key(&self.replica.id)) {
            return Ok(false);
        }
        self.unsealed.store(None);
        match self.root(state, &fingerprint) {
            Ok(_) => self.keys.remove_root().map(|()| true),
            Err(error) => {
                self.unsealed.store(Some(root));
                Err(error)
            }
        }
    }

    /// A new issuer, with a new key, under the root that is active in this state, and a leaf of it for this replica.
    /// Connections that stand keep the certificates they have.
    ///
    /// # Errors
    /// As [`Ca::active_root`], or the folder can't be written.
    pub fn renew_issuer(&self, state: &State, now: SystemTime) -> Result<(), CaError> {
        let root = self.active_root(state)?;
        let key = issue::Issuer::generate()?;
        let certificate = root.sign_issuer(&key.csr(&self.replica.trust_domain)?, now)?;
        let issuer = key.certified(certificate)?;
        // Before it signs anything: after a crash the record of it must not be of a key that is lost.
        self.keys.write_issuer(&issuer)?;
        self.issuer.store(Arc::new(issuer));
        self.renew_own(now)
    }

    /// What is to be renewed now is renewed: the issuer, if it is due or not of the active root; the own certificate.
    /// `jitter` moves both. Says whether the issuer is another one.
    ///
    /// # Errors
    /// What could not be renewed; [`CaError::Expired`] if this replica can't go on without.
    pub fn refresh(&self, state: &State, now: SystemTime, jitter: f64) -> Result<bool, CaError> {
        let mut renewed = false;
        let cluster = state.cluster.as_deref();
        let name = cluster.and_then(|cluster| names::of_cluster(&cluster.name, &cluster.mesh_domain));
        let names: Vec<String> = name.into_iter().collect();
        let named = self.own.load().as_ref().and_then(|own| own.cert.first().map(mesh_tls::dns_names));
        let named = named.is_some_and(|named| named == names);
        self.names.store(Arc::new(names));
        if self.issuer_due_in(state, now, jitter).is_zero() {
            match self.renew_issuer(state, now) {
                Ok(()) => renewed = true,
                Err(CaError::NoRoot { .. }) if self.issuer_life()?.is_over(unix(now)) => {
                    return Err(CaError::Expired);
                }
                // Signs on with the one it has; tried again soon.
                Err(error) => tracing::warn!(%error, "the issuing certificate was not renewed"),
            }
        }
        if !named || self.own_due_in(now, jitter).is_zero() {
            self.renew_own(now)?;
        }
        Ok(renewed)
    }

    /// Gives this replica a fresh certificate; connections that stand keep the one they have.
    ///
    /// # Errors
    /// The issuer has expired.
    pub fn renew_own(&self, now: SystemTime) -> Result<(), CaError> {
        let id = SpiffeId::replica(&self.replica.trust_domain, self.replica.id);
        let (request, key) = csr::generate(&id)?;
        let issuer = self.issuer.load();
        let mut chain = issuer.sign_named(&request, &id, &self.names.load(), 0, NODE_TTL, now)?;
        // Those who know us by a token's fingerprint must see the root.
        chain.extend(self.roots());
        self.own.store(Some(certified(Identity { chain, key })?));
        Ok(())
    }

    /// How long until the issuer is to be replaced; zero if it is time, or if another root is to sign it.
    pub fn issuer_due_in(&self, state: &State, now: SystemTime, jitter: f64) -> Duration {
        let active = &state.authority.active;
        if !active.is_empty() && self.issuer_root().as_ref() != Some(active) {
            return Duration::ZERO;
        }
        self.issuer_life().map_or(Duration::ZERO, |life| life.due_in(unix(now), jitter))
    }

    /// How long until the own certificate is to be replaced; zero if it is time.
    pub fn own_due_in(&self, now: SystemTime, jitter: f64) -> Duration {
        let own = self.own.load();
        let life = own.as_ref().and_then(|own: &Arc<CertifiedKey>| Life::of(own.cert.first()?).ok());
        life.map_or(Duration::ZERO, |life| life.due_in(unix(now), jitter))
    }

    fn issuer_life(&self) -> Result<Life, CaError> {
        Ok(Life::of(self.issuer.load().certificate())?)
    }

    /// The root that the issuer chains to.
    pub fn issuer_root(&self) -> Option<Fingerprint> {
        let issuer = self.issuer.load();
        let roots = self.roots.load();
        // Asked after every write: a signature is verified once.
        if let Some(found) = &*self.issuer_signed.load()
            && found.issuer == *issuer.certificate()
            && roots.contains(&found.root)
        {
            return Some(fingerprint_of(&found.root));
        }
        let root = roots.iter().find(|root| mesh_tls::is_signed_by(issuer.certificate(), root))?;
        let found = Signed { issuer: issuer.certificate().clone(), root: root.clone() };
        self.issuer_signed.store(Some(Arc::new(found)));
        Some(fingerprint_of(root))
    }

    /// What the cluster is to know of this replica's issuer.
    ///
    /// # Errors
    /// The certificate can't be read.
    pub fn issuer_record(&self, longest_leaf: Duration) -> Result<IssuerRecord, CaError> {
        let info = certificate_info(self.issuer.load().certificate())?;
        Ok(IssuerRecord {
            serial: info.serial,
            root: self.issuer_root().unwrap_or_default(),
            not_before_unix: info.not_before_unix,
            not_after_unix: info.not_after_unix,
            leaf_seconds: longest_leaf.max(NODE_TTL).as_secs(),
        })
    }

    /// The certificates that this replica works with, for `status`: roots, issuer, own.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let own = self.own.load().as_ref().and_then(|own| own.cert.first().cloned());
        self.roots().into_iter().chain([self.issuer.load().certificate().clone()]).chain(own).collect()
    }
}

/// Seals a root's key to every replica that has told its key.
///
/// # Errors
/// A key is unusable.
pub fn seal_to_all(
    root: &issue::Root,
    authority: &Authority,
) -> Result<std::collections::BTreeMap<u64, SealedKey>, CaError> {
    authority.sealing_keys.iter().map(|(id, public)| Ok((*id, seal_to(root, *id, public)?))).collect()
}

/// Seals a root's key to one replica.
///
/// # Errors
/// The key is unusable.
pub fn seal_to(root: &issue::Root, replica: u64, public: &[u8]) -> Result<SealedKey, CaError> {
    let Sealed { encapsulated, ciphertext } = root.seal_to(replica, public)?;
    Ok(SealedKey { encapsulated, ciphertext })
}

/// Seconds since 1970.
pub fn unix(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests;
