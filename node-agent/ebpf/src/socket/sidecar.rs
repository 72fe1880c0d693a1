//! Ports that a sidecar has taken over from its application.

use aya_ebpf::programs::SockAddrContext;
use ebpf_shared::CapturedKey;

use super::translate::{in_sidecar_pod, netns_cookie, protocol_of};
use crate::maps::CAPTURED;

/// Whether the pod's proxy listens on this port at the pod's address, so that an application that binds it on
/// all addresses has to be content with loopback.
#[inline(always)]
pub fn captures(ctx: &SockAddrContext, port: u16) -> bool {
    if port == 0 || !in_sidecar_pod(ctx) {
        return false;
    }
    let key = CapturedKey::new(netns_cookie(ctx), port, protocol_of(ctx));
    // SAFETY: only its presence is used.
    unsafe { CAPTURED.get(key) }.is_some()
}
