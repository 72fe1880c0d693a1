//! Socket hooks of the processes in the node's cgroup: services are translated where a socket connects or
//! sends, once per connection instead of once per packet, and sidecars take the place of their applications.
//!
//! Programs of dual-stack runtimes use IPv6 sockets with IPv4-mapped addresses. The maps have IPv4 addresses in that
//! form too, so the hooks for IPv6 look both up in the same way.

mod bind4;
mod bind6;
mod connect4;
mod connect6;
mod getpeername4;
mod getpeername6;
mod recvmsg4;
mod recvmsg6;
mod sendmsg4;
mod sendmsg6;
mod sidecar;
mod translate;

/// The call goes on.
const PROCEED: i32 = 1;
/// The call fails, with the error set before (else EPERM).
const REFUSE: i32 = 0;
