//! Packets that reach a pod: the egress hook of its host-side interface. The pod's ingress policy.

mod service;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use ebpf_shared::{Direction, Reason};

use crate::verdict::at_door;

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    at_door(&ctx, Direction::Ingress, |endpoint, ip| {
        // The verdict is about the endpoint's addresses; a packet to another one has not been judged.
        (!endpoint.owns(&ip.dst)).then_some(Reason::WrongDestination)
    })
}
