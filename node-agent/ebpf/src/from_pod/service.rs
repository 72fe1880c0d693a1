//! Packets that a pod sends to a service, from sockets that the hooks did not see: before the verdict, which is then about
//! the backend.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use ebpf_shared::nat::place;

use crate::nat::at_place;

#[classifier]
pub fn pod_asks(ctx: TcContext) -> i32 {
    at_place::<{ place::FROM_POD }>(&ctx)
}
