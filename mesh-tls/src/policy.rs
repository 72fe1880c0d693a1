//! Which authenticated peers are accepted on a connection.

use std::fmt;

use mesh_model::identity::{Role, SpiffeId, TrustDomain};

use crate::Error;

/// Who may be at the other end, once the certificate has proved who that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerPolicy {
    /// Any identity of any trusted domain.
    AnyMeshIdentity,
    /// One of these. An empty list accepts nobody.
    OneOf(Vec<SpiffeId>),
    /// Any identity of this trust domain.
    TrustDomain(TrustDomain),
    /// A control-plane replica of this trust domain. What agents and peers want of the mesh door: with
    /// `TrustDomain`, any workload with a certificate could pose as the control plane.
    Replicas(TrustDomain),
}

impl PeerPolicy {
    /// Whether the peer is accepted.
    ///
    /// # Errors
    /// [`Error::Refused`] with who came and who was expected.
    pub fn check(&self, id: &SpiffeId) -> Result<(), Error> {
        let accepted = match self {
            Self::AnyMeshIdentity => true,
            Self::OneOf(ids) => ids.contains(id),
            Self::TrustDomain(domain) => id.trust_domain() == domain,
            Self::Replicas(domain) => id.trust_domain() == domain && matches!(id.role(), Role::Replica(_)),
        };
        if accepted { Ok(()) } else { Err(Error::Refused { id: id.clone(), wanted: self.to_string() }) }
    }
}

impl fmt::Display for PeerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyMeshIdentity => f.write_str("any identity of the mesh"),
            Self::OneOf(ids) => match ids.as_slice() {
                [] => f.write_str("nobody"),
                [one] => write!(f, "{one}"),
                [first, rest @ ..] => write!(f, "{first} or {} others", rest.len()),
            },
            Self::TrustDomain(domain) => write!(f, "an identity of {domain}"),
            Self::Replicas(domain) => write!(f, "a control-plane replica of {domain}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_cannot_pose_as_a_replica() {
        let west = TrustDomain::parse("west.example").unwrap();
        let east = TrustDomain::parse("east.example").unwrap();
        let policy = PeerPolicy::Replicas(west.clone());
        assert!(policy.check(&SpiffeId::replica(&west, 1)).is_ok());
        assert!(policy.check(&SpiffeId::replica(&east, 1)).is_err());
        assert!(policy.check(&SpiffeId::workload(&west, "shop", "pay")).is_err());
        let error = policy.check(&SpiffeId::node(&west, "n1")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "peer is spiffe://west.example/isthmus/node/n1, \
             but a control-plane replica of west.example is expected here"
        );
    }

    #[test]
    fn an_empty_list_accepts_nobody() {
        let west = TrustDomain::parse("west.example").unwrap();
        assert!(PeerPolicy::OneOf(vec![]).check(&SpiffeId::node(&west, "n1")).is_err());
    }
}
