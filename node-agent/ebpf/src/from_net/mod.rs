//! Packets that come in by the node's own interface: clients outside the mesh ask for services at the node's addresses and
//! others that are routed to it, and backends elsewhere answer.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use ebpf_shared::nat::place;

use crate::nat::at_place;

#[classifier]
pub fn from_net(ctx: TcContext) -> i32 {
    at_place::<{ place::FROM_NET }>(&ctx)
}
