//! What registration gave: the node's key, its certificate and the facts of its cluster.

use std::{io, path::Path};

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_model::identity::TrustDomain;
use mesh_tls::{CertificateDer, Identity, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::persist;

const FILE: &str = "node.json";

/// Why the state directory is of no use.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum StateError {
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error("{path} is damaged ({error}); remove it and start with a new --join token")]
    Damaged { path: String, error: serde_json::Error },
    #[error("{path} holds no usable private key: {reason}")]
    Key { path: String, reason: String },
}

/// Everything that must survive a restart for the node to be who it is. Written to the state directory with
/// mode 0600, because of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct NodeState {
    pub node: String,
    pub cluster: String,
    pub trust_domain: TrustDomain,
    pub mesh_domain: String,
    pub pod_cidr: Ipv4Net,
    /// Of a node that has IPv6, in a cluster that has.
    #[serde(default)]
    pub pod_cidr6: Option<Ipv6Net>,
    pub service_cidr: Ipv4Net,
    /// `host:port` of the replicas' mesh doors.
    pub replicas: Vec<String>,
    /// PKCS#8 DER.
    #[serde(with = "hex")]
    pub key: Vec<u8>,
    /// DER, leaf first.
    #[serde(with = "hex_list")]
    pub chain: Vec<Vec<u8>>,
    /// DER.
    #[serde(with = "hex_list")]
    pub roots: Vec<Vec<u8>>,
}

impl NodeState {
    /// Reads the state directory; `None` if this node was never registered.
    ///
    /// # Errors
    /// The file is there and can't be used.
    pub fn load(dir: &Path) -> Result<Option<Self>, StateError> {
        let path = dir.join(FILE);
        let shown = path.display().to_string();
        let bytes =
            persist::read_optional(&path).map_err(|error| StateError::Io { path: shown.clone(), error })?;
        let Some(bytes) = bytes else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| StateError::Damaged { path: shown, error })
    }

    /// Writes the state directory.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn save(&self, dir: &Path) -> Result<(), StateError> {
        let path = dir.join(FILE);
        let shown = path.display().to_string();
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| StateError::Damaged { path: shown.clone(), error })?;
        persist::private_dir(dir)
            .and_then(|()| persist::write_private(&path, &bytes))
            .map_err(|error| StateError::Io { path: shown, error })
    }

    /// Key and chain as TLS takes them.
    ///
    /// # Errors
    /// The key is no PKCS#8.
    pub fn identity(&self) -> Result<Identity, StateError> {
        Ok(Identity {
            chain: self.chain.iter().cloned().map(CertificateDer::from).collect(),
            key: PrivateKeyDer::try_from(self.key.clone())
                .map_err(|reason| StateError::Key { path: FILE.to_owned(), reason: reason.to_owned() })?,
        })
    }

    /// The roots as TLS takes them.
    pub fn root_certificates(&self) -> Vec<CertificateDer<'static>> {
        self.roots.iter().cloned().map(CertificateDer::from).collect()
    }
}

pub(crate) mod hex {
    //! Bytes as hexadecimal text.
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn encode(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
        if !text.is_ascii() || !text.len().is_multiple_of(2) {
            return None;
        }
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        decode(&text).ok_or_else(|| D::Error::custom("not hexadecimal"))
    }
}

pub(crate) mod hex_list {
    //! A list of [`hex`](super::hex).
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::hex;

    pub(crate) fn serialize<S: Serializer>(list: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|bytes| hex::encode(bytes)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts
            .iter()
            .map(|text| hex::decode(text).ok_or_else(|| D::Error::custom("not hexadecimal")))
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of a node that has registered.
    pub(crate) fn state() -> NodeState {
        NodeState {
            node: "n1".into(),
            cluster: "west".into(),
            trust_domain: TrustDomain::parse("west.example").unwrap(),
            mesh_domain: "mesh.local".into(),
            pod_cidr: "10.1.1.0/24".parse().unwrap(),
            pod_cidr6: None,
            service_cidr: "10.101.0.0/16".parse().unwrap(),
            replicas: vec!["192.0.2.1:9443".into()],
            key: vec![0, 255, 16],
            chain: vec![vec![1], vec![2, 3]],
            roots: vec![vec![4]],
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert!(NodeState::load(dir.path()).unwrap().is_none());
        state().save(dir.path()).unwrap();
        assert_eq!(NodeState::load(dir.path()).unwrap().unwrap(), state());
    }

    #[test]
    fn a_damaged_file_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), b"{\"node\":").unwrap();
        let error = NodeState::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("--join"), "{error}");
    }
}
