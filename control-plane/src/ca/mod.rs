//! The cluster's certificate authority, as far as it is on this replica.
//!
//! The root key lives on the replica that made the cluster and signs issuers only. Every replica has an issuer
//! of its own and signs leaves with it: of nodes, workloads and itself. No key is ever in the log, in a snapshot
//! or in a log line, and none leaves the machine that made it.

pub mod admission;
pub mod bootstrap;
pub mod certificates;
pub(crate) mod files;
pub mod newcomer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    CertificateDer, CertifiedKey, Identity, SharedIdentity, certificate_info, certified, csr, issue,
    shared_identity,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Own and node certificates are renewed when less than a third of this is left.
pub const NODE_TTL: Duration = issue::LEAF_TTL;
/// Validity of a workload's certificate.
pub const WORKLOAD_TTL: Duration = Duration::from_secs(12 * 3600);

/// Why the authority can't do its work.
#[derive(Debug, Error)]
pub enum CaError {
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{path}: {reason}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] mesh_tls::Error),
    /// Only the replica that made the cluster can sign issuers.
    #[error("this replica does not hold the root key: ask the replica that made the cluster")]
    NoRoot,
}

/// What a replica knows of itself before it has any state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaFile {
    /// Its number in the raft group.
    pub id: u64,
    /// Name of the cluster.
    pub cluster: String,
    #[allow(missing_docs)]
    pub trust_domain: TrustDomain,
    /// Root certificates, base64 of DER.
    pub roots: Vec<String>,
}

/// The authority of one replica.
#[derive(Debug)]
pub struct Ca {
    replica: ReplicaFile,
    roots: Vec<CertificateDer<'static>>,
    root: Option<issue::Root>,
    issuer: issue::Issuer,
    own: SharedIdentity,
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
        let replica = ReplicaFile {
            id: 1,
            cluster: cluster.to_owned(),
            trust_domain: trust_domain.clone(),
            roots: vec![STANDARD.encode(root.certificate())],
        };
        private_folder(folder)?;
        write(&folder.join("root.pem"), root.to_pem().as_bytes())?;
        Self::keep(folder, &replica, &issuer)
    }

    /// Keeps what a cluster gave a replica that joins it.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn keep(folder: &Path, replica: &ReplicaFile, issuer: &issue::Issuer) -> Result<(), CaError> {
        private_folder(folder)?;
        write(&folder.join("issuer.pem"), issuer.to_pem().as_bytes())?;
        let text = serde_json::to_vec_pretty(replica)
            .map_err(|e| CaError::Damaged { path: folder.join("replica.json"), reason: e.to_string() })?;
        // Last: its presence says that the rest is there.
        write(&folder.join("replica.json"), &text)
    }

    /// Opens the folder of a replica that has been set up; None if it has not.
    ///
    /// # Errors
    /// A file is missing, damaged, or readable by others.
    pub fn open(folder: &Path, now: SystemTime) -> Result<Option<Self>, CaError> {
        let path = folder.join("replica.json");
        let Some(text) = read(&path)? else { return Ok(None) };
        let damaged = |reason: String| CaError::Damaged { path: path.clone(), reason };
        let replica: ReplicaFile = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        let roots: Vec<CertificateDer<'static>> = replica
            .roots
            .iter()
            .map(|text| STANDARD.decode(text).map(CertificateDer::from))
            .collect::<Result<_, _>>()
            .map_err(|e| damaged(format!("roots: {e}")))?;
        let issuer_path = folder.join("issuer.pem");
        let text = read(&issuer_path)?.ok_or_else(|| CaError::Damaged {
            path: issuer_path,
            reason: "is missing; let the replica join again with an empty data folder".to_owned(),
        })?;
        let issuer = issue::Issuer::from_pem(&text)?;
        let root = read(&folder.join("root.pem"))?.map(|text| issue::Root::from_pem(&text)).transpose()?;
        let ca = Self { replica, roots, root, issuer, own: shared_identity(None) };
        ca.renew_own(now)?;
        Ok(Some(ca))
    }

    /// What this replica is.
    pub fn replica(&self) -> &ReplicaFile {
        &self.replica
    }

    /// Roots of the trust domain, DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The replica's own certificate, renewed in place.
    pub fn own(&self) -> &SharedIdentity {
        &self.own
    }

    /// Whether this replica can admit others.
    pub fn holds_root(&self) -> bool {
        self.root.is_some()
    }

    /// Signs a leaf. Of the request only the key is used.
    ///
    /// # Errors
    /// The request is malformed, or the issuer has expired.
    pub fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<Vec<u8>>, CaError> {
        Ok(self.issuer.sign(csr, id, ttl, now)?.iter().map(|c| c.to_vec()).collect())
    }

    /// Signs the issuer of another replica.
    ///
    /// # Errors
    /// [`CaError::NoRoot`] on any replica but the first, or a malformed request.
    pub fn sign_issuer(&self, csr: &[u8], now: SystemTime) -> Result<CertificateDer<'static>, CaError> {
        let root = self.root.as_ref().ok_or(CaError::NoRoot)?;
        Ok(root.sign_issuer(csr, now)?)
    }

    /// Gives this replica a fresh certificate; connections that stand keep the one they have.
    ///
    /// # Errors
    /// The issuer has expired.
    pub fn renew_own(&self, now: SystemTime) -> Result<(), CaError> {
        let id = SpiffeId::replica(&self.replica.trust_domain, self.replica.id);
        let (request, key) = csr::generate(&id)?;
        let mut chain = self.issuer.sign(&request, &id, NODE_TTL, now)?;
        // Those who know us by a token's fingerprint must see the root.
        chain.extend(self.roots.iter().cloned());
        self.own.store(Some(certified(Identity { chain, key })?));
        Ok(())
    }

    /// Seconds until the own certificate should be replaced: two thirds of its life.
    pub fn own_renewal_due(&self, now: SystemTime) -> Duration {
        let info =
            self.own.load().as_ref().and_then(|own: &Arc<CertifiedKey>| certificate_info(&own.cert[0]).ok());
        let Some(info) = info else { return Duration::ZERO };
        let renew_at = info.not_after_unix.saturating_sub(NODE_TTL.as_secs() / 3);
        Duration::from_secs(renew_at.saturating_sub(unix(now)))
    }

    /// The certificates that this replica works with, for `status`: root, issuer, own.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let own = self.own.load().as_ref().and_then(|own| own.cert.first().cloned());
        self.roots.iter().cloned().chain([self.issuer.certificate().clone()]).chain(own).collect()
    }
}

/// Seconds since 1970.
pub fn unix(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn private_folder(path: &Path) -> Result<(), CaError> {
    files::private_folder(path).map_err(|source| CaError::File { path: path.to_owned(), source })
}

fn write(path: &Path, contents: &[u8]) -> Result<(), CaError> {
    files::write_private(path, contents).map_err(|source| CaError::File { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    files::read_private(path).map_err(|source| CaError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_tls::{PeerPolicy, TrustBundles, Usage, verify_peer};

    fn west() -> TrustDomain {
        TrustDomain::parse("west.example").unwrap()
    }

    fn made(folder: &Path) -> Ca {
        Ca::create(folder, "west", &west(), SystemTime::now()).unwrap();
        Ca::open(folder, SystemTime::now()).unwrap().unwrap()
    }

    #[test]
    fn an_empty_folder_is_no_replica() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Ca::open(folder.path(), SystemTime::now()).unwrap().is_none());
    }

    #[test]
    fn the_authority_survives_a_restart_and_its_replica_verifies() {
        let folder = tempfile::tempdir().unwrap();
        let roots = made(folder.path()).roots().to_vec();
        let ca = Ca::open(folder.path(), SystemTime::now()).unwrap().unwrap();
        assert_eq!(ca.roots(), roots);
        let mut bundles = TrustBundles::new();
        bundles.insert(west(), roots).unwrap();
        let chain = ca.own().load().as_ref().unwrap().cert.clone();
        let now = rustls::pki_types::UnixTime::now();
        let id = verify_peer(&bundles, &PeerPolicy::Replicas(west()), &chain, Usage::Server, now).unwrap();
        assert_eq!(id, SpiffeId::replica(&west(), 1));
    }

    #[test]
    fn a_second_replica_gets_an_issuer_and_cannot_make_others() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = made(one.path());
        let key = issue::Issuer::generate().unwrap();
        let certificate = first.sign_issuer(&key.csr(&west()).unwrap(), SystemTime::now()).unwrap();
        let replica = ReplicaFile { id: 2, ..first.replica().clone() };
        Ca::keep(two.path(), &replica, &key.certified(certificate).unwrap()).unwrap();
        let second = Ca::open(two.path(), SystemTime::now()).unwrap().unwrap();
        assert!(!second.holds_root());
        let key = issue::Issuer::generate().unwrap();
        let request = key.csr(&west()).unwrap();
        assert!(matches!(second.sign_issuer(&request, SystemTime::now()), Err(CaError::NoRoot)));
    }

    #[test]
    fn no_key_is_in_a_debug_text() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("{:?}", made(folder.path()));
        assert!(!text.contains("PRIVATE") && !text.to_ascii_lowercase().contains("pkcs8"), "{text}");
    }
}
