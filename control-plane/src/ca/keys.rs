//! The folder of a replica's keys.
//!
//! `replica.json` says what the replica is, `issuer.pem` is what it signs with, `sealing.key` opens what is sealed
//! to it. `root.pem` is there for a moment only: from the making of a cluster until the root's key is sealed in the
//! replicated state.

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_model::identity::TrustDomain;
use mesh_tls::{CertificateDer, issue, seal::SealingKey};
use serde::{Deserialize, Serialize};

use super::{CaError, files};

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

impl ReplicaFile {
    pub(super) fn set_roots<'a>(&mut self, roots: impl IntoIterator<Item = &'a [u8]>) {
        self.roots = roots.into_iter().map(|der| STANDARD.encode(der)).collect();
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, base64::DecodeError> {
        self.roots.iter().map(|text| STANDARD.decode(text).map(CertificateDer::from)).collect()
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct Keys(pub(super) PathBuf);

/// What is in it.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) replica: ReplicaFile,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) issuer: issue::Issuer,
    pub(super) sealing: SealingKey,
    pub(super) unsealed: Option<issue::Root>,
}

impl Keys {
    pub(super) fn make(folder: &Path) -> Result<Self, CaError> {
        files::private_folder(folder).map_err(|source| CaError::File { path: folder.to_owned(), source })?;
        Ok(Self(folder.to_owned()))
    }

    pub(super) fn write_root(&self, root: &issue::Root) -> Result<(), CaError> {
        self.write("root.pem", root.to_pem().as_bytes())
    }

    pub(super) fn write_issuer(&self, issuer: &issue::Issuer) -> Result<(), CaError> {
        self.write("issuer.pem", issuer.to_pem().as_bytes())
    }

    pub(super) fn write_sealing(&self, key: &SealingKey) -> Result<(), CaError> {
        self.write("sealing.key", key.to_text().as_bytes())
    }

    /// To be written last: its presence says that the rest is there.
    pub(super) fn write_replica(&self, replica: &ReplicaFile) -> Result<(), CaError> {
        let text = serde_json::to_vec_pretty(replica)
            .map_err(|e| CaError::Damaged { path: self.0.join("replica.json"), reason: e.to_string() })?;
        self.write("replica.json", &text)
    }

    /// The root's key in clear goes. Its blocks may stay on the disk, which holds the sealing key anyway.
    pub(super) fn remove_root(&self) -> Result<(), CaError> {
        let path = self.0.join("root.pem");
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(CaError::File { path, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Everything; None if the replica has not been set up.
    pub(super) fn read(&self) -> Result<Option<Contents>, CaError> {
        let Some(text) = self.text("replica.json")? else { return Ok(None) };
        let damaged = |reason: String| CaError::Damaged { path: self.0.join("replica.json"), reason };
        let replica: ReplicaFile = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        let roots = replica.certificates().map_err(|e| damaged(format!("roots: {e}")))?;
        let text = self.text("issuer.pem")?.ok_or_else(|| CaError::Damaged {
            path: self.0.join("issuer.pem"),
            reason: "is missing; let the replica join again with an empty data folder".to_owned(),
        })?;
        let issuer = issue::Issuer::from_pem(&text)?;
        let sealing = match self.text("sealing.key")? {
            Some(text) => SealingKey::from_text(&text)?,
            // A folder of an earlier release.
            None => {
                let key = SealingKey::generate()?;
                self.write_sealing(&key)?;
                key
            }
        };
        let unsealed = self.text("root.pem")?.map(|text| issue::Root::from_pem(&text)).transpose()?;
        Ok(Some(Contents { replica, roots, issuer, sealing, unsealed }))
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<(), CaError> {
        let path = self.0.join(name);
        files::write_private(&path, contents).map_err(|source| CaError::File { path, source })
    }

    fn text(&self, name: &str) -> Result<Option<String>, CaError> {
        let path = self.0.join(name);
        files::read_private(&path).map_err(|source| CaError::File { path, source })
    }
}
