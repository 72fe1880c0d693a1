//! What the binary refuses before it does anything.

use std::process::Command;

#[test]
fn the_admin_endpoint_is_on_a_loopback_address_only() {
    for address in ["0.0.0.0:15000", "192.0.2.1:15000", "[::]:15000"] {
        let refused = Command::new(env!("CARGO_BIN_EXE_proxy"))
            .args(["run", "--agent-socket", "/nonexistent/agent.sock", "--node-id", "proxy~shop/web"])
            .args(["--admin", address])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(64), "{said}");
        assert!(said.contains(address) && said.contains("loopback"), "{said}");
    }
}
