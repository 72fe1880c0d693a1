//! Answers of backends to packets that `pod_asks` has translated: after the verdict, which is about the backend.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use ebpf_shared::nat::place;

use crate::nat::at_place;

#[classifier]
pub fn pod_answered(ctx: TcContext) -> i32 {
    at_place::<{ place::TO_POD }>(&ctx)
}
