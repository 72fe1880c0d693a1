//! Clusters and clusters. Joining is one call; afterwards, on each side, the leader subscribes to the other and
//! commits what it hears through its own raft.

pub mod join;
pub mod liveness;
mod peer;
pub mod service;
pub mod subscribe;

use clustermesh::trust::Own;
use mesh_model::records::ClusterInfo;
use tonic::Status;
use xds_proto::isthmus::federation::v1::ClusterDescription;

use crate::app::App;

/// Server name of every mesh door: identity comes from the certificate's SPIFFE ID, so that this only has to
/// be some name.
pub(crate) const DOOR_NAME: &str = "replica.isthmus";

/// This cluster, as peers may know it.
fn describe(app: &App) -> Result<ClusterDescription, Status> {
    app.views.description().ok_or_else(|| Status::unavailable("the cluster is not initialised"))
}

fn own(cluster: &ClusterInfo) -> Own<'_> {
    Own {
        cluster: &cluster.name,
        trust_domain: &cluster.trust_domain,
        mesh_domain: &cluster.mesh_domain,
        roots: &cluster.roots,
    }
}
