//! Packets that leave a pod: the ingress hook of its host-side interface. The pod's egress policy.

mod service;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use ebpf_shared::{Direction, Reason};

use crate::verdict::at_door;

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    at_door(&ctx, Direction::Egress, |endpoint, ip| {
        // Identity is derived from addresses, so nobody may borrow one. A link-local one is for the link only.
        (!endpoint.owns(&ip.src)).then_some(Reason::SpoofedSource)
    })
}
