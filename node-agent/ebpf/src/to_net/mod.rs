//! Packets that go out by the node's own interface: backends here answer clients outside the mesh, who asked for a
//! service.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use ebpf_shared::nat::place;

use crate::nat::at_place;

#[classifier]
pub fn to_net(ctx: TcContext) -> i32 {
    at_place::<{ place::TO_NET }>(&ctx)
}
