//! What another replica may send.

pub(crate) fn raft(bytes: &[u8]) {
    let _ = control_plane::raft::is_frame(bytes);
}
