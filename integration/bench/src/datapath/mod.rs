//! The kernel data plane: what it adds to packets, connections and pods, beside plain links and routes, nftables and
//! iptables in the same run.
//!
//! Everything happens in network namespaces, a mount namespace and a cgroup of its own, made for one area and gone with it.
//! The sandbox, the pods and the least of a control plane are those of the node agent's tests. What can't be made is a
//! panic that says so: there is nobody to whom half a measurement is of use.

mod agent;
mod area;
pub mod client;
mod cni;
#[allow(dead_code, clippy::unwrap_used, reason = "the tests of the agent look at all of it")]
#[path = "../../../../node-agent/tests/node/control_plane.rs"]
mod control_plane;
mod empty;
mod forward;
mod kube_proxy;
mod memory;
mod node;
mod packets;
mod policy;
mod services;
mod sockets;
mod streams;
#[path = "../../../../node-agent/tests/support/mod.rs"]
mod support;

pub use area::{Area, Scale, measure};

/// How long something took, in nanoseconds.
fn nanoseconds(work: impl FnOnce()) -> f64 {
    let start = std::time::Instant::now();
    work();
    start.elapsed().as_nanos() as f64
}

/// Each minus its partner.
fn minus(of: &[f64], what: &[f64]) -> Vec<f64> {
    of.iter().zip(what).map(|(a, b)| a - b).collect()
}

/// A number as people write it: 100,000.
fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([1, 999, 1_000, 100_000].map(super::count), ["1", "999", "1,000", "100,000"]);
    }
}
