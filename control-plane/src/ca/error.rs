//! Why the authority can't do its work.

use std::path::PathBuf;

use thiserror::Error;

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
    /// Nothing is sealed to this replica yet, or not any more.
    #[error(
        "this replica has no copy of the key of root {root}: the others seal one to it while they run; ask another replica"
    )]
    NoRoot {
        /// The first digits of its fingerprint.
        root: String,
    },
    /// It slept too long, and can't renew it.
    #[error(
        "this replica's issuing certificate has expired and it has no copy of the root key: remove it from the cluster and let it join again with an empty data folder"
    )]
    Expired,
}
