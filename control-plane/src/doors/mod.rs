//! The two ways in: the mesh door (mTLS, for replicas, nodes, peers and administrators) and the local socket.

pub mod admission;
pub mod bucket;
pub mod connections;
pub mod gate;
pub mod limits;
pub mod local;
pub mod mesh;
pub mod methods;

use mesh_model::identity::TrustDomain;
use mesh_tls::grpc::PeerInfo;
use nix::unistd::Uid;
use tonic::{Extensions, transport::server::UdsConnectInfo};

use crate::authz::{self, Caller};

/// Largest request of an administrator: many objects in one all-or-nothing apply.
pub const MAX_ADMIN_MESSAGE: usize = 16 << 20;
/// Largest request of a node or peer.
pub const MAX_SMALL_MESSAGE: usize = 1 << 20;
/// Largest request of `Bootstrap`, which is open to everybody: a token, two requests for certificates and an address.
pub const MAX_BOOTSTRAP_MESSAGE: usize = 64 << 10;
/// Largest request of `Federation`, of which `Join` is: 16 roots of 16 KiB at most, and what else describes a cluster.
pub const MAX_JOIN_MESSAGE: usize = 512 << 10;
/// Streams that one connection may have open: an agent relays those of its node's proxies over one.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 1_024;
/// The same without a certificate.
pub const MAX_NEWCOMER_STREAMS: u32 = 16;
/// Bytes of one stream that may be under way unread, without a certificate.
pub const NEWCOMER_STREAM_WINDOW: u32 = 64 << 10;
/// The same of all streams of its connection.
pub const NEWCOMER_CONNECTION_WINDOW: u32 = 256 << 10;

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
