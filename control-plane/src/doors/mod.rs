//! The two ways in: the mesh door (mTLS, for replicas, nodes, peers and administrators) and the local socket.

pub mod bucket;
pub mod gate;
pub mod limits;
pub mod local;
pub mod mesh;

use mesh_model::identity::TrustDomain;
use mesh_tls::grpc::PeerInfo;
use nix::unistd::Uid;
use tonic::{Extensions, transport::server::UdsConnectInfo};

use crate::authz::{self, Caller};

/// Largest request of an administrator: many objects in one all-or-nothing apply.
pub const MAX_ADMIN_MESSAGE: usize = 16 << 20;
/// Largest request of a node, peer or newcomer.
pub const MAX_SMALL_MESSAGE: usize = 1 << 20;
/// Streams that one connection may have open.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 1_024;

/// Who is at the other end of a request, by what its connection proved.
pub fn caller(
    extensions: &Extensions,
    own: &TrustDomain,
    is_peer: impl FnOnce(&TrustDomain) -> bool,
) -> Caller {
    if let Some(socket) = extensions.get::<UdsConnectInfo>() {
        let user = socket.peer_cred.map(|cred| Uid::from_raw(cred.uid()));
        let trusted = user.is_some_and(|user| user.is_root() || user == Uid::current());
        return if trusted { Caller::LocalRoot } else { Caller::Anonymous };
    }
    let certificate = extensions.get::<PeerInfo>().and_then(|peer| peer.spiffe_id.as_ref());
    authz::caller(certificate, own, is_peer)
}
