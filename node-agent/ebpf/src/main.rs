//! The kernel programs of one node: the doors to and from each pod, the node's own interface, and the socket hooks of
//! the node's pods.
//!
//! Folders are named after the packet's way. The verdict is not here but in `ebpf_shared::decide`.
#![no_std]
#![no_main]

mod asked;
mod balance;
mod conntrack;
mod established;
mod flow;
mod fragment;
mod frame;
mod from_net;
mod from_pod;
mod host;
mod maps;
mod nat;
mod net_xdp;
mod overlay;
mod policy;
mod redirect;
mod refuse;
mod socket;
mod to_net;
mod to_pod;
mod verdict;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could loop.
    loop {}
}

/// No helper that is reserved to GPL programs is used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
