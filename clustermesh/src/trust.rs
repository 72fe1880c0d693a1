//! What one cluster accepts of another's description of itself.
//!
//! A description comes from outside, through a door that a token opened: every part is checked, and what
//! results is a [`PeerRecord`] that can be committed. A peer can never take the name, the trust domain or a
//! root of this cluster or of another peer, so that joining adds trust in *its* identities and nothing else.

use std::net::SocketAddr;

use mesh_model::{
    identity::{SpiffeError, TrustDomain},
    records::{DomainTrust, PeerRecord},
};
use mesh_tls::{CertificateDer, MAX_ROOTS};
use thiserror::Error;
use xds_proto::isthmus::federation::v1::ClusterDescription;

use crate::names::{is_dns_label, is_dns_name, is_host_port, shown};

/// Most mesh doors of a peer.
pub use mesh_model::limits::MAX_PEER_DOORS as MAX_DOORS;
/// Most east-west gateways of a peer.
pub use mesh_model::limits::MAX_PEER_GATEWAYS as MAX_GATEWAYS;
/// Revoked registrations that a description may tell: what a cluster remembers at most.
pub const MAX_REVOKED: usize = 10_000;
/// Largest root certificate, in bytes.
pub use mesh_model::limits::MAX_ROOT_BYTES as MAX_ROOT;
use mesh_model::limits::{MAX_JWT_KEYS, is_jwt_key};
// One number in two crates, neither of which knows the other.
const _: () = assert!(MAX_ROOTS == mesh_model::limits::MAX_ROOTS);

/// Why a description is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TrustError {
    /// Nothing was sent.
    #[error("the peer did not describe itself")]
    Missing,
    /// A field has a value that is not allowed there.
    #[error("peer's {field} {value:?} {problem}")]
    Field {
        /// As in the proto, with an index where it is a list.
        field: String,
        /// What stands there, shortened.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Too few or too many.
    #[error("peer's {field} has {count} entries, {min} to {max} are allowed")]
    Count {
        /// As in the proto.
        field: &'static str,
        /// How many there are.
        count: usize,
        /// Fewest.
        min: usize,
        /// Most.
        max: usize,
    },
    /// The name of this cluster.
    #[error("both clusters are called {0:?}; clusters of a mesh need different names")]
    OwnName(String),
    /// The trust domain of this cluster.
    #[error("both clusters have the trust domain {0}; clusters of a mesh need different ones")]
    OwnTrustDomain(TrustDomain),
    /// The name belongs to a peer with another trust domain.
    #[error(
        "peer {cluster:?} is known with the trust domain {known}, not {claimed}; remove it first if it was made anew"
    )]
    Changed {
        /// The name.
        cluster: String,
        /// What we hold.
        known: TrustDomain,
        /// What it says now.
        claimed: TrustDomain,
    },
    /// The trust domain belongs to another peer.
    #[error("trust domain {trust_domain} belongs to the peer {holder:?} already")]
    Taken {
        /// The domain.
        trust_domain: TrustDomain,
        /// Whose it is.
        holder: String,
    },
    /// Clusters of one mesh share the suffix of service names.
    #[error("peer's mesh domain is {claimed:?}, ours is {ours:?}; one mesh has one mesh domain")]
    MeshDomain {
        /// Ours.
        ours: String,
        /// The peer's.
        claimed: String,
    },
}

impl TrustError {
    fn field(field: impl Into<String>, value: &str, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), value: shown(value), problem: problem.into() }
    }
}

impl From<(&'static str, &str, SpiffeError)> for TrustError {
    fn from((field, value, error): (&'static str, &str, SpiffeError)) -> Self {
        Self::field(field, value, format!("is invalid: {error}"))
    }
}

/// This cluster, as far as it matters for accepting another.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// Its name.
    pub cluster: &'a str,
    /// Its trust domain.
    pub trust_domain: &'a TrustDomain,
    /// The suffix of service names.
    pub mesh_domain: &'a str,
    /// Its roots, DER.
    pub roots: &'a [Vec<u8>],
}

/// Checks what a peer says of itself, when it joins and whenever its description changes. The result has no
/// imports and the origin revision 0; a caller that holds the peer already keeps its own.
///
/// # Errors
/// Names the field and the value, or the clash.
pub fn validate<'a>(
    description: Option<&ClusterDescription>,
    own: Own<'_>,
    peers: impl IntoIterator<Item = &'a PeerRecord>,
    now_unix: u64,
) -> Result<PeerRecord, TrustError> {
    let d = description.ok_or(TrustError::Missing)?;
    if !is_dns_label(&d.cluster) {
        return Err(TrustError::field("cluster", &d.cluster, "is no DNS label"));
    }
    let trust_domain = TrustDomain::parse(&d.trust_domain)
        .map_err(|e| TrustError::from(("trust_domain", d.trust_domain.as_str(), e)))?;
    if !is_dns_name(&d.mesh_domain) {
        return Err(TrustError::field("mesh_domain", &d.mesh_domain, "is no DNS name"));
    }
    if d.cluster == own.cluster {
        return Err(TrustError::OwnName(d.cluster.clone()));
    }
    if &trust_domain == own.trust_domain {
        return Err(TrustError::OwnTrustDomain(trust_domain));
    }
    if d.mesh_domain != own.mesh_domain {
        return Err(TrustError::MeshDomain {
            ours: own.mesh_domain.to_owned(),
            claimed: d.mesh_domain.clone(),
        });
    }
    count("doors", d.doors.len(), 1, MAX_DOORS)?;
    each("doors", &d.doors, is_host_port, "is not host:port")?;
    // Endpoints carry addresses: a name would have to be resolved by every data plane.
    count("gateways", d.gateways.len(), 0, MAX_GATEWAYS)?;
    let is_address = |g: &str| {
        g.parse::<SocketAddr>()
            .is_ok_and(|a| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast())
    };
    each("gateways", &d.gateways, is_address, "is not <IP address>:<port>")?;
    count("revoked", d.revoked.len(), 0, MAX_REVOKED)?;
    count("jwt_keys", d.jwt_keys.len(), 0, MAX_JWT_KEYS)?;
    if let Some(at) = d.jwt_keys.iter().position(|key| !is_jwt_key(key)) {
        let shown = format!("{} bytes", d.jwt_keys.get(at).map_or(0, Vec::len));
        return Err(TrustError::field(
            format!("jwt_keys[{at}]"),
            &shown,
            "are no uncompressed point of P-256",
        ));
    }
    check_roots(d, &trust_domain, own.roots, "this cluster", now_unix)?;
    for peer in peers {
        match (peer.cluster == d.cluster, peer.trust_domain == trust_domain) {
            (true, true) => {}
            (true, false) => {
                return Err(TrustError::Changed {
                    cluster: d.cluster.clone(),
                    known: peer.trust_domain.clone(),
                    claimed: trust_domain,
                });
            }
            (false, true) => {
                return Err(TrustError::Taken { trust_domain, holder: peer.cluster.clone() });
            }
            (false, false) => {
                no_root_of(d, &peer.roots, &format!("the peer {:?}", peer.cluster))?;
            }
        }
    }
    Ok(PeerRecord {
        cluster: d.cluster.clone(),
        trust_domain,
        mesh_domain: d.mesh_domain.clone(),
        roots: d.roots.clone(),
        trust: DomainTrust {
            revoked: d.revoked.iter().copied().collect(),
            jwt_keys: d.jwt_keys.clone(),
            ..Default::default()
        },
        doors: d.doors.clone(),
        gateways: d.gateways.clone(),
        origin_revision: 0,
        imports: Default::default(),
    })
}

fn check_roots(
    d: &ClusterDescription,
    trust_domain: &TrustDomain,
    own_roots: &[Vec<u8>],
    own_name: &str,
    now_unix: u64,
) -> Result<(), TrustError> {
    count("roots", d.roots.len(), 1, MAX_ROOTS)?;
    for (i, der) in d.roots.iter().enumerate() {
        let bad = |problem: String| TrustError::Field {
            field: format!("roots[{i}]"),
            value: format!("({} bytes)", der.len()),
            problem,
        };
        if der.len() > MAX_ROOT {
            return Err(bad(format!("is larger than {MAX_ROOT} bytes")));
        }
        let certificate = CertificateDer::from(der.as_slice());
        let info =
            mesh_tls::parse_root(&certificate, trust_domain).map_err(|e| bad(format!("is unusable: {e}")))?;
        if info.not_after_unix <= now_unix {
            return Err(bad(format!("expired {} s ago", now_unix - info.not_after_unix)));
        }
    }
    no_root_of(d, own_roots, own_name)
}

fn no_root_of(d: &ClusterDescription, roots: &[Vec<u8>], whose: &str) -> Result<(), TrustError> {
    match d.roots.iter().position(|root| roots.contains(root)) {
        Some(i) => Err(TrustError::Field {
            field: format!("roots[{i}]"),
            value: format!("({} bytes)", d.roots[i].len()),
            problem: format!("is a root of {whose}"),
        }),
        None => Ok(()),
    }
}

fn count(field: &'static str, count: usize, min: usize, max: usize) -> Result<(), TrustError> {
    if (min..=max).contains(&count) { Ok(()) } else { Err(TrustError::Count { field, count, min, max }) }
}

fn each(
    field: &'static str,
    values: &[String],
    good: impl Fn(&str) -> bool,
    problem: &str,
) -> Result<(), TrustError> {
    for (i, value) in values.iter().enumerate() {
        if !good(value) {
            return Err(TrustError::field(format!("{field}[{i}]"), value, problem));
        }
        if values[..i].contains(value) {
            return Err(TrustError::field(format!("{field}[{i}]"), value, "is named twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_tls::issue::Root;
    use std::time::{Duration, UNIX_EPOCH};

    const NOW: u64 = 1_790_000_000;

    fn td(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    fn root(name: &str) -> Vec<u8> {
        let made = UNIX_EPOCH + Duration::from_secs(NOW);
        Root::generate(td(name), made).unwrap().certificate().to_vec()
    }

    fn east() -> ClusterDescription {
        ClusterDescription {
            cluster: "east".to_owned(),
            trust_domain: "east.example".to_owned(),
            mesh_domain: "mesh.local".to_owned(),
            roots: vec![root("east.example")],
            revoked: vec![],
            jwt_keys: vec![vec![4; 65]],
            doors: vec!["192.0.2.2:9443".to_owned()],
            gateways: vec!["192.0.2.3:15443".to_owned()],
        }
    }

    fn check(d: &ClusterDescription, peers: &[PeerRecord]) -> Result<PeerRecord, TrustError> {
        check_with(d, peers, &[])
    }

    fn check_with(
        d: &ClusterDescription,
        peers: &[PeerRecord],
        roots: &[Vec<u8>],
    ) -> Result<PeerRecord, TrustError> {
        let trust_domain = td("west.example");
        let own = Own { cluster: "west", trust_domain: &trust_domain, mesh_domain: "mesh.local", roots };
        validate(Some(d), own, peers, NOW)
    }

    #[test]
    fn a_sound_description_becomes_a_record_and_may_be_renewed() {
        let record = check(&east(), &[]).unwrap();
        assert_eq!(record.trust_domain, td("east.example"));
        assert!(record.imports.is_empty());
        assert_eq!(record.trust.jwt_keys, [vec![4; 65]]);
        let mut again = east();
        again.gateways.clear();
        assert!(check(&again, &[record]).unwrap().gateways.is_empty());
    }

    #[test]
    fn every_field_is_checked_and_named() {
        type Spoil = fn(&mut ClusterDescription);
        let cases: [(&str, Spoil); 17] = [
            ("jwt_keys", |d| d.jwt_keys = vec![vec![4; 65]; 65]),
            ("jwt_keys[1]", |d| d.jwt_keys.push(vec![4; 64])),
            ("cluster", |d| d.cluster = "East!".into()),
            ("trust_domain", |d| d.trust_domain = "EAST".into()),
            ("mesh_domain", |d| d.mesh_domain = "..".into()),
            ("roots", |d| d.roots.clear()),
            ("roots", |d| d.roots = vec![vec![]; 17]),
            ("roots[0]", |d| d.roots[0] = vec![0x30, 0]),
            ("roots[0]", |d| d.roots[0] = vec![0; MAX_ROOT + 1]),
            ("roots[1]", |d| d.roots.push(root("north.example"))),
            ("doors", |d| d.doors.clear()),
            ("doors", |d| d.doors = vec!["192.0.2.2:1".into(); 17]),
            ("doors[0]", |d| d.doors[0] = "nowhere".into()),
            ("doors[1]", |d| d.doors.push("192.0.2.2:9443".into())),
            ("gateways[0]", |d| d.gateways[0] = "gateway.example:15443".into()),
            ("gateways[0]", |d| d.gateways[0] = "0.0.0.0:15443".into()),
            ("gateways", |d| d.gateways = vec!["192.0.2.3:1".into(); 65]),
        ];
        for (field, spoil) in cases {
            let mut d = east();
            spoil(&mut d);
            let error = check(&d, &[]).unwrap_err();
            assert!(error.to_string().contains(field), "{field}: {error}");
        }
        let own_domain = td("west.example");
        let own = Own { cluster: "west", trust_domain: &own_domain, mesh_domain: "mesh.local", roots: &[] };
        assert_eq!(validate(None, own, [], NOW), Err(TrustError::Missing));
    }

    #[test]
    fn a_peer_cannot_take_what_is_ours() {
        let mut d = east();
        d.cluster = "west".into();
        assert!(matches!(check(&d, &[]), Err(TrustError::OwnName(_))));
        let mut d = east();
        d.trust_domain = "west.example".into();
        assert!(matches!(check(&d, &[]), Err(TrustError::OwnTrustDomain(_))));
        let mut d = east();
        d.mesh_domain = "other.local".into();
        assert!(matches!(check(&d, &[]), Err(TrustError::MeshDomain { .. })));
        let d = east();
        let error = check_with(&d, &[], &d.roots).unwrap_err();
        assert!(error.to_string().contains("root of this cluster"), "{error}");
    }

    #[test]
    fn a_peer_cannot_take_what_is_another_peers() {
        let east_record = check(&east(), &[]).unwrap();
        let mut same_domain = east();
        same_domain.cluster = "north".into();
        let error = check(&same_domain, std::slice::from_ref(&east_record)).unwrap_err();
        assert!(matches!(error, TrustError::Taken { .. }), "{error}");
        let mut same_name = east();
        same_name.trust_domain = "north.example".into();
        same_name.roots = vec![root("north.example")];
        let error = check(&same_name, &[east_record]).unwrap_err();
        assert!(matches!(error, TrustError::Changed { .. }), "{error}");
    }

    #[test]
    fn an_expired_root_is_refused() {
        let mut d = east();
        let long_ago = UNIX_EPOCH + Duration::from_secs(NOW - 11 * 365 * 24 * 3600);
        d.roots = vec![Root::generate(td("east.example"), long_ago).unwrap().certificate().to_vec()];
        let error = check(&d, &[]).unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
    }
}
