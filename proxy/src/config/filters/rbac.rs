//! The settings of `envoy.filters.http.rbac` on routes.

use xds_proto::envoy::extensions::filters::http::rbac::v3::RbacPerRoute;

use crate::{
    config::{error::Path, rbac, wire::Result},
    policy::Rbac,
};

/// Without rules of its own a route denies nothing.
pub(super) fn route(path: &Path<'_>, RbacPerRoute { rbac }: RbacPerRoute) -> Result<Rbac> {
    rbac::http(&path.field("rbac"), rbac.unwrap_or_default())
}
