//! One SDS stream, state of the world or incremental. PURE: requests and secrets in, responses out.

use std::collections::{BTreeMap, BTreeSet};

use xds_proto::{
    Message,
    envoy::{
        extensions::transport_sockets::tls::v3::Secret,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
        },
    },
    google::protobuf::Any,
    to_any, type_url,
};

/// Most names that one stream may ask for.
const MAX_NAMES: usize = 64;

/// What a stream has asked for and been given.
#[derive(Debug, Default)]
pub(super) struct Session {
    wanted: BTreeSet<String>,
    /// Name to the version that was sent last; an empty version says that its absence was told.
    sent: BTreeMap<String, String>,
    /// Name to the version that was ACKed last.
    acked: BTreeMap<String, String>,
    nonce: u64,
}

/// Why a stream is ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionError {
    #[error("type {0:?} is not served here, only secrets are")]
    Type(String),
    #[error("{0} names are subscribed to, at most {MAX_NAMES} are allowed")]
    TooMany(usize),
}

impl Session {
    /// A state-of-the-world request: the names are all that is wanted from now on.
    pub(super) fn on_request(&mut self, request: &DiscoveryRequest) -> Result<(), SessionError> {
        check_type(&request.type_url)?;
        let wanted: BTreeSet<String> = request.resource_names.iter().cloned().collect();
        self.check_count(wanted.len())?;
        self.sent.retain(|name, _| wanted.contains(name));
        self.acked.retain(|name, _| wanted.contains(name));
        self.wanted = wanted;
        self.hear(&request.response_nonce, request.error_detail.is_some());
        Ok(())
    }

    /// An incremental request.
    pub(super) fn on_delta_request(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), SessionError> {
        check_type(&request.type_url)?;
        for name in &request.resource_names_unsubscribe {
            self.wanted.remove(name);
            self.sent.remove(name);
        }
        let subscribed = request.resource_names_subscribe.iter().filter(|name| *name != "*");
        for name in subscribed {
            self.wanted.insert(name.clone());
            // Asking again means: send again.
            self.sent.remove(name);
        }
        for (name, version) in &request.initial_resource_versions {
            if self.wanted.contains(name) {
                self.sent.insert(name.clone(), version.clone());
            }
        }
        self.acked.retain(|name, _| self.wanted.contains(name));
        self.hear(&request.response_nonce, request.error_detail.is_some());
        self.check_count(self.wanted.len())
    }

    /// An answer to the newest response is an answer to all of them: streams are in order. A refusal is none.
    fn hear(&mut self, nonce: &str, refused: bool) {
        if !refused && self.nonce > 0 && nonce == self.nonce.to_string() {
            self.acked.clone_from(&self.sent);
        }
    }

    /// Names that are subscribed to.
    pub(super) fn wanted(&self) -> &BTreeSet<String> {
        &self.wanted
    }

    /// Name to the version that was ACKed last.
    pub(super) fn acked(&self) -> &BTreeMap<String, String> {
        &self.acked
    }

    fn check_count(&self, count: usize) -> Result<(), SessionError> {
        if count <= MAX_NAMES { Ok(()) } else { Err(SessionError::TooMany(count)) }
    }

    /// What is to be sent, if anything: all wanted secrets that exist, when one of them is new.
    pub(super) fn respond(&mut self, secret: impl Fn(&str) -> Option<Secret>) -> Option<DiscoveryResponse> {
        let found = self.found(secret);
        if found.iter().all(|(name, (version, _))| self.sent.get(name) == Some(version)) {
            return None;
        }
        self.nonce += 1;
        let mut versions = String::new();
        let mut resources = Vec::new();
        for (name, (version, any)) in found {
            versions.push_str(&version);
            resources.push(any);
            self.sent.insert(name, version);
        }
        Some(DiscoveryResponse {
            version_info: fingerprint(versions.as_bytes()),
            resources,
            type_url: type_url::<Secret>(),
            nonce: self.nonce.to_string(),
            ..Default::default()
        })
    }

    /// What is to be sent, if anything: what changed. A secret that does not exist (yet) is not spoken of: the
    /// certificate of a workload that has just started is on its way, and "removed" would fail the
    /// listener that waits for it.
    pub(super) fn respond_delta(
        &mut self,
        secret: impl Fn(&str) -> Option<Secret>,
    ) -> Option<DeltaDiscoveryResponse> {
        let mut changed = self.found(secret);
        changed.retain(|name, (version, _)| self.sent.get(name) != Some(version));
        if changed.is_empty() {
            return None;
        }
        self.nonce += 1;
        let mut resources = Vec::new();
        for (name, (version, any)) in changed {
            resources.push(Resource {
                name: name.clone(),
                version: version.clone(),
                resource: Some(any),
                ..Default::default()
            });
            self.sent.insert(name, version);
        }
        Some(DeltaDiscoveryResponse {
            resources,
            type_url: type_url::<Secret>(),
            nonce: self.nonce.to_string(),
            ..Default::default()
        })
    }

    fn found(&self, secret: impl Fn(&str) -> Option<Secret>) -> BTreeMap<String, (String, Any)> {
        let found = self.wanted.iter().filter_map(|name| {
            let any = to_any(&secret(name)?);
            Some((name.clone(), (version_of(&any), any)))
        });
        found.collect()
    }
}

/// The version of a secret.
pub(super) fn version(secret: &Secret) -> String {
    version_of(&to_any(secret))
}

fn version_of(any: &Any) -> String {
    fingerprint(&any.encode_to_vec())
}

fn check_type(found: &str) -> Result<(), SessionError> {
    // On a stream of one type, the type may be left out.
    if found.is_empty() || found == type_url::<Secret>() {
        return Ok(());
    }
    Err(SessionError::Type(found.chars().take(256).collect()))
}

/// Versions are opaque: the same secret has the same one, also after a restart of the agent.
fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(version: u32) -> impl Fn(&str) -> Option<Secret> {
        move |name| {
            let known = matches!(name, "default" | "ROOTCA");
            (known && version > 0).then(|| Secret { name: format!("{name}-{version}"), r#type: None })
        }
    }

    fn request(names: &[&str]) -> DiscoveryRequest {
        DiscoveryRequest { resource_names: names.iter().map(|n| (*n).into()).collect(), ..Default::default() }
    }

    #[test]
    fn a_secret_is_sent_once_and_again_when_it_is_rotated() {
        let mut session = Session::default();
        session.on_request(&request(&["default"])).unwrap();
        let first = session.respond(store(1)).unwrap();
        assert_eq!((first.resources.len(), first.nonce.as_str()), (1, "1"));
        session.on_request(&request(&["default"])).unwrap();
        assert!(session.respond(store(1)).is_none(), "an ACK is not answered");
        let second = session.respond(store(2)).unwrap();
        assert_ne!(first.version_info, second.version_info);
    }

    #[test]
    fn a_secret_that_is_not_there_yet_is_waited_for() {
        let mut session = Session::default();
        session.on_request(&request(&["default"])).unwrap();
        assert!(session.respond(store(0)).is_none());
        assert!(session.respond(store(1)).is_some());

        let mut delta = Session::default();
        let subscribe = DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["default".into(), "nobody".into()],
            ..Default::default()
        };
        delta.on_delta_request(&subscribe).unwrap();
        assert!(delta.respond_delta(store(0)).is_none());
        let response = delta.respond_delta(store(1)).unwrap();
        assert_eq!(response.resources.len(), 1);
        assert!(response.removed_resources.is_empty());
    }

    #[test]
    fn a_delta_client_that_reconnects_with_its_version_is_sent_nothing() {
        let mut before = Session::default();
        let mut subscribe =
            DeltaDiscoveryRequest { resource_names_subscribe: vec!["ROOTCA".into()], ..Default::default() };
        before.on_delta_request(&subscribe).unwrap();
        let held = before.respond_delta(store(1)).unwrap().resources.remove(0);
        subscribe.initial_resource_versions.insert(held.name, held.version);
        let mut after = Session::default();
        after.on_delta_request(&subscribe).unwrap();
        assert!(after.respond_delta(store(1)).is_none());
        assert!(after.respond_delta(store(2)).is_some());
    }

    #[test]
    fn other_types_and_endless_lists_are_refused() {
        let mut session = Session::default();
        let mut wrong = request(&["default"]);
        wrong.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
        assert!(session.on_request(&wrong).unwrap_err().to_string().contains("Cluster"));
        let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let many = DiscoveryRequest { resource_names: many, ..Default::default() };
        assert_eq!(session.on_request(&many), Err(SessionError::TooMany(100)));
    }
}
