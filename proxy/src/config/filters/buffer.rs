//! `envoy.filters.http.buffer`, and its settings on routes.

use xds_proto::envoy::extensions::filters::http::buffer::v3::{
    Buffer, BufferPerRoute, buffer_per_route::Override,
};

use crate::{
    config::{error::Path, wire::Result},
    limits,
};

/// Most bytes of a request.
pub(super) fn filter(path: &Path<'_>, Buffer { max_request_bytes }: Buffer) -> Result<u32> {
    let path = path.field("max_request_bytes");
    match max_request_bytes.ok_or_else(|| path.missing())?.value {
        0 => Err(path.invalid(0, "must be more than 0")),
        max if max > limits::BUFFERED_BYTES => {
            Err(path.invalid(max, format!("is more than {}", limits::BUFFERED_BYTES)))
        }
        max => Ok(max),
    }
}

/// `None`: requests are not buffered.
pub(super) fn route(path: &Path<'_>, wire: BufferPerRoute) -> Result<Option<u32>> {
    match wire.r#override {
        Some(Override::Disabled(true)) => Ok(None),
        Some(Override::Disabled(false)) => Err(path.field("disabled").invalid(false, "must be true")),
        Some(Override::Buffer(wire)) => filter(&path.field("buffer"), wire).map(Some),
        None => Err(path.field("buffer").missing()),
    }
}
