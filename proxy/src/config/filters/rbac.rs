//! `envoy.filters.http.rbac`, and its settings on routes.

use xds_proto::envoy::extensions::filters::http::rbac::v3::{Rbac as WireRbac, RbacPerRoute};

use super::Manager;
use crate::{
    config::{
        error::Path,
        rbac::{self, Scope},
        wire::Result,
    },
    policy::Rbac,
};

pub(super) fn filter(path: &Path<'_>, wire: WireRbac, manager: Manager) -> Result<Rbac> {
    rbac::http(path, wire, Scope::Http { uses_remote_address: manager.uses_remote_address })
}

/// Without rules of its own a route denies nothing.
pub(super) fn route(path: &Path<'_>, RbacPerRoute { rbac }: RbacPerRoute) -> Result<Rbac> {
    // A route does not know by which connection managers it will be used.
    rbac::http(&path.field("rbac"), rbac.unwrap_or_default(), Scope::Http { uses_remote_address: false })
}
