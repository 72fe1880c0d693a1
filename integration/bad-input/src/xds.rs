//! What an xDS client may say, in any order, while the model changes.

pub(crate) fn xds(bytes: &[u8]) {
    control_plane::xds::session::fuzz::play(bytes);
}
