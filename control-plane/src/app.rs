//! What the services of one replica share.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_store::State;
use mesh_tls::{SharedBundles, TrustBundles, grpc::PeerInfo};
use tokio_util::sync::CancellationToken;
use tonic::{Extensions, Status};

use crate::{
    authz::{self, Action, Caller},
    ca::{Ca, unix},
    config::Config,
    doors::{self, gate::Gate, methods::Method},
    federation::liveness::Liveness,
    raft::{ReadError, Replica, WriteError},
    replicas::Replicas,
    shown,
    telemetry::flows::FlowRing,
    views::ModelViews,
    xds::Subscribers,
};

/// How long a stream may outlive the certificate that opened it, where nothing else changes.
const SECOND_LOOK: Duration = Duration::from_secs(10);

/// One replica, as its services see it.
#[derive(Debug)]
pub struct App {
    #[allow(missing_docs)]
    pub config: Config,
    #[allow(missing_docs)]
    pub ca: Ca,
    /// Own roots and those of every peer, rebuilt when the state changes.
    pub bundles: SharedBundles,
    #[allow(missing_docs)]
    pub replica: Arc<Replica>,
    /// Who subscribes to this replica.
    pub subscribers: Arc<Subscribers>,
    #[allow(missing_docs)]
    pub views: Arc<ModelViews>,
    #[allow(missing_docs)]
    pub flows: FlowRing,
    /// The other replicas of this cluster.
    pub replicas: Replicas,
    /// When each peer was last heard, by this replica.
    pub liveness: Liveness,
    /// The limits of its doors, and what they have refused.
    pub gate: Arc<Gate>,
    /// Cancelled when the replica drains: streams that would never end, end.
    pub stop: CancellationToken,
}

impl App {
    /// Whose certificates are this cluster's own.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.ca.replica().trust_domain
    }

    /// Who sent a request, and whether the table lets them.
    ///
    /// # Errors
    /// The refusal that the caller gets to read.
    pub fn admit(&self, extensions: &Extensions, action: Action) -> Result<Caller, Status> {
        // What the mesh door has asked for by the headers is this, or its list is wrong.
        if let Some(method) = extensions.get::<&'static Method>()
            && !method.actions.contains(&action)
        {
            tracing::error!(path = method.path(), ?action, "is not the right that the door has asked for");
            return Err(Status::internal(format!("{} is not listed under {action:?}", method.path())));
        }
        self.let_in(self.caller(extensions), extensions, action)
    }

    /// The refusal of a call by its headers; none if its service is to decide.
    ///
    /// # Errors
    /// That of [`App::admit`], if the caller may take none of the actions of the method.
    pub fn refuse_by_headers(&self, extensions: &Extensions, method: &Method) -> Result<(), Status> {
        let caller = match method.is_raft() {
            true => self.proven(extensions, &self.replica.applied()),
            false => self.caller(extensions),
        };
        match method.actions {
            actions if actions.iter().any(|action| authz::allowed(caller.role(), *action)) => Ok(()),
            // Who may not subscribe is told so as often as it asks: that is no request of its own to be rationed.
            [.., action @ Action::SubscribeAsNode] => authz::check(&caller, *action).inspect_err(|refusal| {
                self.gate.denied(caller.role());
                tracing::debug!(%caller, %refusal, "refused a stream");
            }),
            [.., action] => self.let_in(caller, extensions, *action).map(drop),
            [] => Err(Status::internal(format!("{} is open to nobody", method.path()))),
        }
    }

    fn let_in(&self, caller: Caller, extensions: &Extensions, action: Action) -> Result<Caller, Status> {
        // First, so that a caller who may not do anything can't ask for it as often as it likes.
        let address = extensions.get::<PeerInfo>().map(|peer| peer.addr.ip().to_string()).unwrap_or_default();
        self.gate.rate(&caller, &address, action, Instant::now())?;
        if let Err(refusal) = authz::check(&caller, action) {
            self.gate.denied(caller.role());
            tracing::info!(%caller, %address, ?action, "refused");
            return Err(refusal);
        }
        Ok(caller)
    }

    /// Who sent a request. A replica that was removed is a stranger, though its certificate is good for a day yet.
    pub fn caller(&self, extensions: &Extensions) -> Caller {
        let state = self.replica.applied();
        match self.proven(extensions, &state) {
            Caller::Replica(id) if id <= state.cursors.replica && !state.replicas.contains_key(&id) => {
                Caller::Stranger(SpiffeId::replica(self.trust_domain(), id))
            }
            caller => caller,
        }
    }

    /// Which replica sent a request to the raft door. One that was removed may still be needed to remove it, and is
    /// told by that door itself.
    ///
    /// # Errors
    /// The caller is no replica.
    pub fn admit_raft(&self, extensions: &Extensions) -> Result<u64, Status> {
        let caller = self.proven(extensions, &self.replica.applied());
        authz::check(&caller, Action::Raft)?;
        match caller {
            Caller::Replica(id) => Ok(id),
            other => Err(Status::permission_denied(format!("{other} is no replica of this cluster"))),
        }
    }

    fn proven(&self, extensions: &Extensions, state: &State) -> Caller {
        let is_peer = |domain: &TrustDomain| state.peers.values().any(|p| &p.trust_domain == domain);
        let caller = doors::caller(extensions, self.trust_domain(), is_peer);
        let registration = extensions.get::<PeerInfo>().and_then(|peer| peer.registration);
        let record = |number| state.authority.administrators.get(&number).cloned();
        caller
            .unless_revoked(registration, state.cursors.registration, |name| {
                state.nodes.get(name).map(|node| node.registration)
            })
            .unless_withdrawn(registration, record, self.now_unix())
    }

    /// Resolves with a refusal once whoever opened a stream may not have it any more; never for those whose rights end
    /// with their connection, or by other means.
    pub async fn refused_later(&self, extensions: Extensions, action: Action) -> Status {
        let mut changes = self.replica.changes();
        loop {
            changes.borrow_and_update();
            let caller = self.caller(&extensions);
            if !matches!(caller, Caller::Admin(_) | Caller::Revoked(_)) {
                std::future::pending::<()>().await;
            }
            if let Err(refusal) = authz::check(&caller, action) {
                tracing::info!(%caller, ?action, "ended a stream");
                return refusal;
            }
            // Certificates end by themselves, too. A closed channel means that the replica is going.
            let _ = tokio::time::timeout(SECOND_LOOK, changes.changed()).await;
        }
    }

    /// The caller's node.
    ///
    /// # Errors
    /// The caller is no node, or the table says no.
    pub fn admit_node(&self, extensions: &Extensions, action: Action) -> Result<String, Status> {
        match self.admit(extensions, action)? {
            Caller::Node(name) => Ok(name),
            other => Err(Status::permission_denied(format!("{other} is no node"))),
        }
    }

    /// Now, in seconds since 1970.
    pub fn now_unix(&self) -> u64 {
        unix(SystemTime::now())
    }
}

/// Own roots and those of every peer.
///
/// A peer whose roots can't be used is left out: nobody of its domain is trusted, and everyone else still is.
pub fn trust_bundles(ca: &Ca, state: &State) -> TrustBundles {
    let mut bundles = TrustBundles::new();
    let roots = state.cluster.as_ref().map(|cluster| cluster.roots.iter().cloned().map(Into::into).collect());
    // Of administrators every request is checked: they are told why they are refused.
    let revoked = state.authority.revoked.keys().copied().collect();
    let own = (ca.replica().trust_domain.clone(), roots.unwrap_or_else(|| ca.roots()), revoked);
    let peers = state.peers.values().map(|peer| {
        let roots = peer.roots.iter().map(|der| der.clone().into()).collect();
        (peer.trust_domain.clone(), roots, peer.trust.revoked.clone())
    });
    // The own roots last: no peer can put others in their place.
    for (domain, roots, revoked) in peers.chain([own]) {
        if let Err(error) = bundles.insert_but(domain.clone(), roots, revoked) {
            tracing::error!(trust_domain = %domain, %error, "unusable roots: nobody of this domain is trusted");
        }
    }
    bundles
}

/// A refused or failed write, as its caller gets to read it.
pub fn write_status(error: WriteError) -> Status {
    match error {
        WriteError::Refused(refusal) if refusal.is_conflict() => Status::aborted(shown::sentence(refusal)),
        WriteError::Refused(refusal) => Status::failed_precondition(shown::sentence(refusal)),
        other => Status::unavailable(other.to_string()),
    }
}

/// A failed linearizable read.
pub fn read_status(error: ReadError) -> Status {
    Status::unavailable(error.to_string())
}
