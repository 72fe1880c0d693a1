//! Certificates of the workloads of this node, kept fresh.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_model::{identity::SpiffeId, resource::NamespacedName};
use mesh_tls::{CertificateDer, Identity, Life, PrivateKeyDer, certified, csr, peer_spiffe_id, pem};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::AbortHandle};
use xds_proto::{
    envoy::{
        config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
            spiffe_cert_validator_config,
        },
    },
    isthmus::bootstrap::v1::{SignWorkloadRequest, certificates_client::CertificatesClient},
    to_any,
};

use super::{session, trust::Acks};
use crate::{
    bootstrap::{Upstream, hex, hex_list, unix_now},
    engine::Engine,
    persist,
};

/// Name of the secret with the caller's own certificate chain and key.
pub const OWN_CERTIFICATE: &str = "default";
/// Name of the secret with the roots of every trust domain that is trusted.
pub const TRUST_BUNDLE: &str = "ROOTCA";
/// When the root is another one, certificates are replaced within this time, and not all at once.
pub(crate) const RENEWAL_SPREAD: Duration = Duration::from_secs(5);
/// After a refusal or a lost connection.
const RETRY: Duration = Duration::from_secs(2);

/// A certificate with its key, as it is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificate {
    #[serde(with = "hex_list")]
    chain: Vec<Vec<u8>>,
    /// PKCS#8.
    #[serde(with = "hex")]
    key: Vec<u8>,
}

/// What a workload shows and signs with.
pub(super) struct X509 {
    pub(super) id: SpiffeId,
    /// DER, leaf first.
    pub(super) chain: Vec<Vec<u8>>,
    /// PKCS#8.
    pub(super) key: Vec<u8>,
}

impl Certificate {
    fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().cloned().map(CertificateDer::from).collect()
    }

    /// Who it names, and from when to when it is valid; `None` if it is unusable.
    fn facts(&self) -> Option<(SpiffeId, Life)> {
        let chain = self.certificates();
        let id = peer_spiffe_id(&chain).ok()?;
        let life = Life::of(chain.first()?).ok()?;
        let key = PrivateKeyDer::try_from(self.key.clone()).ok()?;
        certified(Identity { chain, key }).ok()?;
        Some((id, life))
    }
}

/// The secrets of all workloads of this node. Cheap to clone.
#[derive(Clone)]
pub struct Secrets {
    engine: Engine,
    upstream: Upstream,
    dir: Arc<PathBuf>,
    inner: Arc<Mutex<BTreeMap<NamespacedName, Entry>>>,
    changes: Arc<watch::Sender<u64>>,
    acks: Acks,
}

struct Entry {
    task: AbortHandle,
    certificate: Option<Certificate>,
}

impl Secrets {
    /// Keeps certificates in a directory below the state directory, mode 0700.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn new(state_dir: &Path, engine: Engine, upstream: Upstream) -> std::io::Result<Self> {
        let dir = state_dir.join("workloads");
        persist::private_dir(&dir)?;
        Ok(Self {
            engine,
            upstream,
            dir: Arc::new(dir),
            inner: Arc::default(),
            changes: Arc::new(watch::Sender::new(0)),
            acks: Acks::default(),
        })
    }

    /// Forgets the certificates that an earlier registration left in a state directory.
    ///
    /// # Errors
    /// They can't be removed.
    pub fn discard(state_dir: &Path) -> std::io::Result<()> {
        match std::fs::remove_dir_all(state_dir.join("workloads")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What the streams that serve these have ACKed.
    pub(super) fn acks(&self) -> &Acks {
        &self.acks
    }

    /// The chains that workloads of this node show, leaf first.
    pub(super) fn chains(&self) -> Vec<Vec<CertificateDer<'static>>> {
        self.lock().values().filter_map(|entry| Some(entry.certificate.as_ref()?.certificates())).collect()
    }

    /// When each workload's certificate ends, in seconds since 1970.
    pub fn expiries(&self) -> Vec<(NamespacedName, u64)> {
        let of = |(name, entry): (&NamespacedName, &Entry)| {
            let (_, life) = entry.certificate.as_ref()?.facts()?;
            Some((name.clone(), life.not_after_unix))
        };
        self.lock().iter().filter_map(of).collect()
    }

    /// The version of a secret, as streams ACK it.
    pub(super) fn version(&self, workload: &NamespacedName, name: &str) -> Option<String> {
        self.secret(workload, name).map(|secret| session::version(&secret))
    }

    /// Obtains a certificate for a workload, and keeps it fresh from now on.
    pub fn keep(&self, workload: &NamespacedName) {
        let mut inner = self.lock();
        if inner.contains_key(workload) {
            return;
        }
        let task = tokio::spawn(self.clone().keep_fresh(workload.clone())).abort_handle();
        inner.insert(workload.clone(), Entry { task, certificate: None });
    }

    /// The workload is gone: its key is destroyed.
    pub fn forget(&self, workload: &NamespacedName) {
        if let Some(entry) = self.lock().remove(workload) {
            entry.task.abort();
        }
        match std::fs::remove_file(self.path(workload)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%workload, %error, "the key of a workload that is gone is still there");
            }
            Ok(()) | Err(_) => {}
        }
        // Streams that serve it look whether it is still there.
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Changes with every certificate. Trust bundles change with the [engine](Engine::changes).
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// When a workload's certificate ends, in seconds since 1970.
    pub fn not_after(&self, workload: &NamespacedName) -> Option<u64> {
        let certificate = self.lock().get(workload)?.certificate.clone()?;
        certificate.facts().map(|(_, life)| life.not_after_unix)
    }

    /// The certificate of a workload as it is; `None` if there is none yet.
    pub(super) fn x509(&self, workload: &NamespacedName) -> Option<X509> {
        let Certificate { chain, key } = self.lock().get(workload)?.certificate.clone()?;
        let certificates: Vec<_> = chain.iter().cloned().map(CertificateDer::from).collect();
        let id = peer_spiffe_id(&certificates).ok()?;
        Some(X509 { id, chain, key })
    }

    /// A secret by its name; `None` if there is none of that name, or not yet.
    pub fn secret(&self, workload: &NamespacedName, name: &str) -> Option<Secret> {
        let kind = match name {
            OWN_CERTIFICATE => {
                let certificate = self.lock().get(workload)?.certificate.clone()?;
                let chain = pem::certificates(certificate.chain.iter().map(Vec::as_slice));
                secret::Type::TlsCertificate(TlsCertificate {
                    certificate_chain: Some(inline(chain)),
                    private_key: Some(inline(pem::private_key(&certificate.key))),
                    ..Default::default()
                })
            }
            TRUST_BUNDLE => secret::Type::ValidationContext(self.validation_context()?),
            _ => return None,
        };
        Some(Secret { name: name.to_owned(), r#type: Some(kind) })
    }

    /// Certificates are verified against the roots of the trust domain that they name, never against another's.
    fn validation_context(&self) -> Option<CertificateValidationContext> {
        let trust_domains: Vec<_> = self.engine.resources(|resources| {
            let bundles = resources.bundles.iter();
            bundles
                .map(|(domain, bundle)| spiffe_cert_validator_config::TrustDomain {
                    name: domain.to_string(),
                    trust_bundle: Some(inline(
                        mesh_tls::revoked_remark(&bundle.revoked)
                            + &pem::certificates(bundle.roots.iter().map(Vec::as_slice)),
                    )),
                    ..Default::default()
                })
                .collect()
        });
        if trust_domains.is_empty() {
            return None;
        }
        let validator = SpiffeCertValidatorConfig { trust_domains, ..Default::default() };
        Some(CertificateValidationContext {
            custom_validator_config: Some(TypedExtensionConfig {
                name: "envoy.tls.cert_validator.spiffe".to_owned(),
                typed_config: Some(to_any(&validator)),
            }),
            ..Default::default()
        })
    }

    /// Signs when there is no certificate of the right name, and at half its life, for ever.
    async fn keep_fresh(self, workload: NamespacedName) {
        let mut current = self.read(&workload);
        if let Some(certificate) = &current {
            self.publish(&workload, certificate.clone());
        }
        let mut engine = self.engine.changes();
        loop {
            engine.borrow_and_update();
            let id = self.engine.resources(|r| r.locals.get(&workload).map(|local| local.spiffe_id.clone()));
            let Some(id) = id else {
                // Not told yet, or not any more: a certificate that is there stays good.
                if engine.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let facts = current.as_ref().and_then(|held| Some((held, held.facts()?)));
            if let Some((held, (_, life))) = facts.filter(|(_, (named, _))| *named == id) {
                let is_active = |engine: &Engine| {
                    engine.resources(|r| {
                        r.bundles.get(id.trust_domain()).is_none_or(|b| b.is_active(&held.certificates()))
                    })
                };
                let (active, jitter) = (is_active(&self.engine), rand::rng().random_range(0.0..1.0));
                let wait = match active {
                    true => life.due_in(unix_now(), jitter).max(Duration::from_secs(1)),
                    // Another root signs now. All workloads of all nodes hear of it at the same moment.
                    false => RENEWAL_SPREAD.mul_f64(jitter).max(Duration::from_millis(500)),
                };
                let due = tokio::time::sleep(wait);
                tokio::pin!(due);
                let changed = loop {
                    tokio::select! {
                        () = &mut due => break false,
                        changed = engine.changed() => {
                            if changed.is_err() {
                                return;
                            }
                            let now = self.engine.resources(|r| r.locals.get(&workload).map(|l| l.spiffe_id.clone()));
                            if now.is_some_and(|now| now != id) || is_active(&self.engine) != active {
                                break true;
                            }
                        }
                    }
                };
                if changed {
                    continue;
                }
            }
            match self.sign(&workload, &id).await {
                Ok(certificate) => {
                    self.write(&workload, &certificate);
                    self.publish(&workload, certificate.clone());
                    current = Some(certificate);
                    tracing::info!(%workload, %id, "certificate signed");
                }
                Err(reason) => {
                    tracing::warn!(%workload, reason, "no certificate; trying again in {RETRY:?}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn sign(&self, workload: &NamespacedName, id: &SpiffeId) -> Result<Certificate, String> {
        let (csr, key) = csr::generate(id).map_err(|error| error.to_string())?;
        let request = SignWorkloadRequest {
            namespace: workload.namespace.clone(),
            workload: workload.name.clone(),
            csr,
        };
        let signed = self
            .upstream
            .call(|channel| {
                let request = request.clone();
                async move { CertificatesClient::new(channel).sign_workload(request).await }
            })
            .await
            .map_err(|status| status.message().to_owned())?;
        let certificate = Certificate { chain: signed.chain, key: key.secret_der().to_vec() };
        match certificate.facts() {
            Some((named, ..)) if named == *id => Ok(certificate),
            Some((named, ..)) => Err(format!("the certificate is of {named}, not of {id}")),
            None => Err("the certificate is unusable".to_owned()),
        }
    }

    fn publish(&self, workload: &NamespacedName, certificate: Certificate) {
        if let Some(entry) = self.lock().get_mut(workload) {
            entry.certificate = Some(certificate);
        }
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Names are DNS labels, so the file is in the directory.
    fn path(&self, workload: &NamespacedName) -> PathBuf {
        self.dir.join(format!("{}_{}.json", workload.namespace, workload.name))
    }

    fn read(&self, workload: &NamespacedName) -> Option<Certificate> {
        let bytes = persist::read_optional(&self.path(workload)).ok()??;
        let certificate: Certificate = serde_json::from_slice(&bytes).ok()?;
        let (_, life) = certificate.facts()?;
        (!life.is_over(unix_now())).then_some(certificate)
    }

    fn write(&self, workload: &NamespacedName, certificate: &Certificate) {
        let written = serde_json::to_vec(certificate)
            .map_err(std::io::Error::other)
            .and_then(|bytes| persist::write_private(&self.path(workload), &bytes));
        if let Err(error) = written {
            tracing::error!(%workload, %error, "the certificate cannot be stored");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NamespacedName, Entry>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn inline(text: String) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text)), ..Default::default() }
}
