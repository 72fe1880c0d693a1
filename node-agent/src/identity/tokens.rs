//! JWT-SVIDs of the workloads of this node: asked of the control plane, kept for half their life, and verified here.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use mesh_model::{identity::SpiffeId, resource::NamespacedName};
use mesh_tls::{
    Sources,
    jwt::{self, JwtSvid},
};
use tonic::Status;
use xds_proto::isthmus::bootstrap::v1::{SignJwtRequest, certificates_client::CertificatesClient};

use crate::{bootstrap::Upstream, engine::Engine};

/// Tokens that are kept of all workloads together, and of one.
const MOST: usize = 1_024;
const MOST_OF_WORKLOAD: usize = 32;
/// Tokens of one workload that are being asked for.
const ASKING: usize = 4;

/// Gets and verifies tokens. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    upstream: Upstream,
    engine: Engine,
    kept: Arc<Mutex<Kept>>,
    asking: Sources<NamespacedName>,
}

impl Tokens {
    /// With none kept.
    pub fn new(upstream: Upstream, engine: Engine) -> Self {
        Self { upstream, engine, kept: Arc::default(), asking: Sources::at_most(ASKING) }
    }

    /// A token of a workload for these audiences, with half of its life before it at least.
    ///
    /// # Errors
    /// What is wrong with the audiences; `UNAVAILABLE`: the workload, or the control plane, is not known to be there;
    /// what the control plane answers.
    pub(super) async fn fetch(
        &self,
        workload: &NamespacedName,
        audiences: Vec<String>,
        now_unix: u64,
    ) -> Result<(SpiffeId, String), Status> {
        jwt::check_audiences(&audiences).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let id = self.id(workload)?;
        let wanted = Wanted { workload: workload.clone(), audiences };
        if let Some(token) = self.kept().get(&wanted, &id, now_unix) {
            return Ok((id, token));
        }
        let _asking = self.asking.enter(workload.clone()).ok_or_else(|| {
            Status::resource_exhausted(format!("{ASKING} tokens of {workload} are being asked for already"))
        })?;
        let request = SignJwtRequest {
            namespace: workload.namespace.clone(),
            workload: workload.name.clone(),
            audiences: wanted.audiences.clone(),
            ttl_seconds: 0,
        };
        let ask = |channel| {
            let request = request.clone();
            async move { CertificatesClient::new(channel).sign_jwt(request).await }
        };
        let signed = self.upstream.call(ask).await?;
        // It may have become another's meanwhile.
        if signed.spiffe_id != id.to_string() || self.id(workload)? != id {
            return Err(Status::unavailable(format!("{workload} is changing its identity; try again")));
        }
        self.kept().put(wanted, id.clone(), signed.token.clone(), (now_unix, signed.expires_unix));
        Ok((id, signed.token))
    }

    /// Verifies a token, by the keys of its own trust domain.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with what is wrong with it.
    pub(super) fn verify(&self, token: &str, audience: &str, now_unix: u64) -> Result<JwtSvid, Status> {
        let keys = |domain: &_| {
            self.engine.resources(|resources| Some(resources.bundles.get(domain)?.jwt_keys.clone()))
        };
        jwt::verify(token, audience, now_unix, keys)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }

    /// The keys of every trust domain that has some, as JWK sets by its SPIFFE ID.
    pub(super) fn bundles(&self) -> HashMap<String, Vec<u8>> {
        self.engine.resources(|resources| {
            let known = resources.bundles.iter().filter(|(_, bundle)| !bundle.jwt_keys.is_empty());
            known
                .map(|(domain, bundle)| {
                    (format!("spiffe://{domain}"), jwt::jwk_set(&bundle.jwt_keys).into_bytes())
                })
                .collect()
        })
    }

    fn id(&self, workload: &NamespacedName) -> Result<SpiffeId, Status> {
        let id = self.engine.resources(|r| r.locals.get(workload).map(|local| local.spiffe_id.clone()));
        id.ok_or_else(|| Status::unavailable(format!("the control plane has not told of {workload} yet")))
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    workload: NamespacedName,
    audiences: Vec<String>,
}

#[derive(Debug)]
struct Token {
    id: SpiffeId,
    token: String,
    /// Given out until then, in seconds since 1970.
    until_unix: u64,
}

/// Tokens that may be given out once more. PURE.
#[derive(Debug, Default)]
struct Kept(BTreeMap<Wanted, Token>);

impl Kept {
    fn get(&self, wanted: &Wanted, id: &SpiffeId, now_unix: u64) -> Option<String> {
        let kept = self.0.get(wanted).filter(|kept| kept.id == *id && now_unix < kept.until_unix);
        kept.map(|kept| kept.token.clone())
    }

    fn put(&mut self, wanted: Wanted, id: SpiffeId, token: String, (made, ends): (u64, u64)) {
        self.0.retain(|_, kept| made < kept.until_unix);
        let of_workload = |(known, _): &(&Wanted, &Token)| known.workload == wanted.workload;
        let soonest = |kept: &mut dyn Iterator<Item = (&Wanted, &Token)>| {
            kept.min_by_key(|(_, kept)| kept.until_unix).map(|(wanted, _)| wanted.clone())
        };
        // Whoever asks for many displaces its own.
        let displaced = if self.0.iter().filter(of_workload).count() >= MOST_OF_WORKLOAD {
            soonest(&mut self.0.iter().filter(of_workload))
        } else if self.0.len() >= MOST {
            soonest(&mut self.0.iter())
        } else {
            None
        };
        if let Some(displaced) = displaced {
            self.0.remove(&displaced);
        }
        let until_unix = made + ends.saturating_sub(made) / 2;
        self.0.insert(wanted, Token { id, token, until_unix });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(workload: &str, audience: usize) -> Wanted {
        let workload = NamespacedName::new("shop", workload);
        Wanted { workload, audiences: vec![audience.to_string()] }
    }

    fn id(account: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://west.example/ns/shop/sa/{account}")).unwrap()
    }

    #[test]
    fn a_token_is_given_out_for_half_its_life_and_to_nobody_else() {
        let mut kept = Kept::default();
        kept.put(wanted("pay", 1), id("pay"), "t".into(), (1_000, 1_300));
        assert_eq!(kept.get(&wanted("pay", 1), &id("pay"), 1_149).as_deref(), Some("t"));
        assert_eq!(kept.get(&wanted("pay", 1), &id("pay"), 1_150), None);
        assert_eq!(kept.get(&wanted("pay", 2), &id("pay"), 1_000), None);
        assert_eq!(kept.get(&wanted("web", 1), &id("pay"), 1_000), None);
        assert_eq!(kept.get(&wanted("pay", 1), &id("other"), 1_000), None, "its service account changed");
        kept.put(wanted("web", 1), id("web"), "u".into(), (1_150, 1_450));
        assert_eq!(kept.0.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn a_workload_that_asks_for_many_displaces_its_own_and_all_together_have_a_limit() {
        let mut kept = Kept::default();
        kept.put(wanted("web", 0), id("web"), "w".into(), (0, 10));
        for audience in 0..=MOST_OF_WORKLOAD {
            let ends = 1_000 + audience as u64;
            kept.put(wanted("pay", audience), id("pay"), "t".into(), (0, ends * 2));
        }
        assert_eq!(kept.0.len(), MOST_OF_WORKLOAD + 1);
        assert!(kept.get(&wanted("web", 0), &id("web"), 0).is_some());
        assert!(kept.get(&wanted("pay", 0), &id("pay"), 0).is_none());
        for number in 0..MOST {
            kept.put(wanted(&format!("w{number}"), 0), id("w"), "t".into(), (0, 100_000));
        }
        assert_eq!(kept.0.len(), MOST);
        assert!(kept.get(&wanted("web", 0), &id("web"), 0).is_none(), "what ends first");
    }
}
