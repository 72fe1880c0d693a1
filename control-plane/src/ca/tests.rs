use std::collections::BTreeMap;

use super::*;
use mesh_model::records::{ClusterInfo, ReplicaRecord};
use mesh_store::{AuthorityCommand, Bytes16, Command, Envelope, apply};
use mesh_tls::{PeerPolicy, TrustBundles, Usage, verify_peer};

fn west() -> TrustDomain {
    TrustDomain::parse("west.example").unwrap()
}

fn made(folder: &Path) -> Ca {
    Ca::create(folder, "west", &west(), SystemTime::now()).unwrap();
    opened(folder)
}

fn opened(folder: &Path) -> Ca {
    let ca = Ca::open(folder).unwrap().unwrap();
    ca.refresh(&State::default(), SystemTime::now(), 0.0).unwrap();
    ca
}

/// A state that is changed as the keeper changes it.
struct Store(State, u128);

impl Store {
    fn of(ca: &Ca) -> Self {
        let mut store = Self(State::default(), 0);
        store.write(Command::Init(ClusterInfo {
            name: "west".into(),
            trust_domain: west(),
            mesh_domain: "mesh.local".into(),
            pod_cidr: "10.1.0.0/16".parse().unwrap(),
            pod_cidr6: None,
            service_cidr6: None,
            service_cidr: "10.101.0.0/16".parse().unwrap(),
            roots: ca.roots().iter().map(|root| root.to_vec()).collect(),
            trust: Default::default(),
        }));
        store.member(ca);
        store.seal(ca);
        store
    }

    fn write(&mut self, command: Command) {
        self.1 += 1;
        let key = Bytes16(self.1.to_be_bytes());
        let envelope = Envelope { key, now_unix_ms: 1, first_unix_ms: None, random: key, command };
        apply(&mut self.0, &envelope).outcome.unwrap();
    }

    fn member(&mut self, ca: &Ca) {
        let (id, public) = (ca.replica().id, ca.sealing_key().to_vec());
        self.write(Command::PutReplica(ReplicaRecord {
            id,
            address: format!("10.0.0.{id}:9443"),
            learner: false,
        }));
        self.write(Command::Authority(AuthorityCommand::SealingKey { replica: id, public }));
    }

    /// Everybody gets a copy, from this replica.
    fn seal(&mut self, ca: &Ca) {
        let root = self.0.authority.active.clone();
        let copies = seal_to_all(&ca.root(&self.0, &root).unwrap(), &self.0.authority).unwrap();
        let keys: BTreeMap<u64, Vec<u8>> = self.0.authority.sealing_keys.clone();
        for (replica, sealed) in copies {
            let public = keys[&replica].clone();
            self.write(Command::Authority(AuthorityCommand::Seal {
                root: root.clone(),
                replica,
                public,
                sealed,
            }));
        }
    }
}

fn joined(folder: &Path, by: &Ca, state: &State, id: u64) -> Ca {
    let key = issue::Issuer::generate().unwrap();
    let certificate = by.sign_issuer(state, &key.csr(&west()).unwrap(), SystemTime::now()).unwrap();
    let replica = ReplicaFile { id, ..by.replica().clone() };
    let sealing = SealingKey::generate().unwrap();
    Ca::keep(folder, &replica, &key.certified(certificate).unwrap(), &sealing).unwrap();
    opened(folder)
}

fn verified(ca: &Ca, roots: Vec<CertificateDer<'static>>) -> Result<SpiffeId, mesh_tls::Error> {
    let mut bundles = TrustBundles::new();
    bundles.insert(west(), roots).unwrap();
    let chain = ca.own().load().as_ref().unwrap().cert.clone();
    let now = rustls::pki_types::UnixTime::now();
    verify_peer(&bundles, &PeerPolicy::Replicas(west()), &chain, Usage::Server, now)
}

#[test]
fn an_empty_folder_is_no_replica() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Ca::open(folder.path()).unwrap().is_none());
}

#[test]
fn the_authority_survives_a_restart_and_its_replica_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let roots = made(folder.path()).roots();
    let ca = opened(folder.path());
    assert_eq!(ca.roots(), roots);
    assert_eq!(verified(&ca, roots).unwrap(), SpiffeId::replica(&west(), 1));
}

#[test]
fn a_replica_bears_the_name_of_its_cluster_as_soon_as_there_is_a_state_and_a_node_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let ca = made(folder.path());
    let names = |ca: &Ca| mesh_tls::dns_names(&ca.own().load().as_ref().unwrap().cert[0]);
    assert!(names(&ca).is_empty());
    let store = Store::of(&ca);
    ca.refresh(&store.0, SystemTime::now(), 0.0).unwrap();
    assert_eq!(names(&ca), ["west.hubble-relay.mesh.local"]);
    let own = ca.own().load_full();
    ca.refresh(&store.0, SystemTime::now(), 0.0).unwrap();
    assert!(Arc::ptr_eq(&own.unwrap(), &ca.own().load_full().unwrap()), "it has the name already");

    let record = mesh_model::records::NodeRecord {
        name: "n1".into(),
        address: [10, 0, 0, 2].into(),
        address6: None,
        pod_cidr: "10.1.0.0/24".parse().unwrap(),
        registration: 7,
        facts: Default::default(),
    };
    let cluster = store.0.cluster.as_ref().unwrap();
    // Whatever the request asks for.
    let (csr, _) = csr::generate(&SpiffeId::node(&west(), "n2")).unwrap();
    let chain = ca.sign_node(&csr, &record, cluster, SystemTime::now()).unwrap();
    let leaf = CertificateDer::from(chain[0].clone());
    assert_eq!(mesh_tls::dns_names(&leaf), ["n1.west.hubble-grpc.mesh.local"]);
    assert_eq!(mesh_tls::registration(&leaf), Some(7));
    let leaf = std::slice::from_ref(&leaf);
    assert_eq!(mesh_tls::peer_spiffe_id(leaf).unwrap(), SpiffeId::node(&west(), "n1"));
}

#[test]
fn once_sealed_the_key_is_nowhere_in_clear_and_every_replica_can_admit_another() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = made(folders[0].path());
    assert!(first.is_founder() && folders[0].path().join("root.pem").exists());
    let mut store = Store::of(&first);
    assert!(first.forget_unsealed(&store.0).unwrap());
    assert!(!first.is_founder() && !folders[0].path().join("root.pem").exists());

    let second = joined(folders[1].path(), &first, &store.0, 2);
    let request = issue::Issuer::generate().unwrap().csr(&west()).unwrap();
    let refused = second.sign_issuer(&store.0, &request, SystemTime::now());
    assert!(matches!(refused, Err(CaError::NoRoot { .. })), "nothing is sealed to it yet");
    store.member(&second);
    store.seal(&first);
    // The first replica and its disk are gone for good.
    drop((first, std::fs::remove_dir_all(folders[0].path())));
    let third = joined(folders[2].path(), &second, &store.0, 3);
    assert_eq!(verified(&third, second.roots()).unwrap(), SpiffeId::replica(&west(), 3));
}

#[test]
fn an_issuer_is_renewed_at_half_its_life_and_even_after_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let ca = made(folder.path());
    let store = Store::of(&ca);
    let serial = || ca.issuer_record(NODE_TTL).unwrap().serial;
    let (before, now) = (serial(), SystemTime::now());
    let day = Duration::from_secs(24 * 3600);
    assert!(!ca.refresh(&store.0, now + 44 * day, 0.0).unwrap(), "not yet");
    assert_eq!(serial(), before);
    assert!(ca.refresh(&store.0, now + 46 * day, 0.0).unwrap());
    assert_ne!(serial(), before);
    let later = Ca::open(folder.path()).unwrap().unwrap();
    assert!(later.refresh(&store.0, now + 400 * day, 0.0).unwrap(), "a replica that slept for a year");
    assert!(later.own().load().is_some());
}

#[test]
fn a_replica_whose_issuer_ended_and_that_has_no_copy_of_the_root_says_so() {
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = made(folders[0].path());
    let store = Store::of(&first);
    joined(folders[1].path(), &first, &store.0, 2);
    let second = Ca::open(folders[1].path()).unwrap().unwrap();
    let late = SystemTime::now() + Duration::from_secs(91 * 24 * 3600);
    assert!(matches!(second.refresh(&store.0, late, 0.0), Err(CaError::Expired)));
}

#[test]
fn a_rotation_moves_the_issuer_to_the_new_root_and_back_to_one_root() {
    let folder = tempfile::tempdir().unwrap();
    let ca = made(folder.path());
    let mut store = Store::of(&ca);
    ca.forget_unsealed(&store.0).unwrap();
    let old = ca.roots();
    let next = issue::Root::generate(west(), SystemTime::now()).unwrap();
    store.write(Command::Authority(AuthorityCommand::BeginRotation {
        certificate: next.certificate().to_vec(),
        sealed: seal_to_all(&next, &store.0.authority).unwrap(),
    }));
    let follow = |store: &Store| {
        ca.set_roots(&store.0.cluster.as_ref().unwrap().roots).unwrap();
        ca.refresh(&store.0, SystemTime::now(), 0.0).unwrap()
    };
    assert!(!follow(&store), "the new root signs nothing yet");
    assert!(verified(&ca, old.clone()).is_ok() && ca.roots().len() == 2);
    let end = |store: &mut Store, phase| {
        store.write(Command::Authority(AuthorityCommand::EndPhase { number: 1, phase }));
    };
    end(&mut store, mesh_store::Phase::Preparing);
    assert!(follow(&store));
    assert!(verified(&ca, old.clone()).is_err());
    assert!(verified(&ca, vec![next.certificate().clone()]).is_ok());
    end(&mut store, mesh_store::Phase::Activating);
    end(&mut store, mesh_store::Phase::Reissuing);
    assert!(!follow(&store));
    assert_eq!(ca.roots(), [next.certificate().clone()]);
    assert!(store.0.authority.rotation.is_none() && store.0.authority.roots.len() == 1);
}

#[test]
fn no_key_is_in_a_debug_text() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{:?}", made(folder.path()));
    assert!(!text.contains("PRIVATE") && !text.to_ascii_lowercase().contains("pkcs8"), "{text}");
}
