//! What a container runtime hands to the CNI plugin: an environment, and a network configuration on standard input.

use node_agent::{
    cni::host_ports,
    cni_plugin::{CniError, Environment, Invocation, PreviousResult, SUPPORTED_VERSIONS, Verb, parse},
};
use xds_proto::isthmus::local::v1::CniPortMapping;

/// The lines before the first empty one are variables, the rest is standard input.
pub(crate) fn cni(bytes: &[u8]) {
    let end = bytes.windows(2).position(|two| two == b"\n\n");
    let (environment, stdin) = end.map_or((bytes, &b""[..]), |at| (&bytes[..at], &bytes[at + 2..]));
    let variables = environment.split(|byte| *byte == b'\n').filter_map(|line| {
        // What is no UTF-8 counts as absent.
        let (name, value) = std::str::from_utf8(line).ok()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    match parse(&Environment::new(variables), stdin) {
        Ok(call) => accepted(&call),
        Err((version, error)) => refused(&version, &error),
    }
}

fn accepted(call: &Invocation) {
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    assert!(is_plain(&call.container_id) && call.container_id.len() <= 255, "{:?}", call.container_id);
    assert!(is_plain(&call.ifname) && call.ifname.len() <= 15, "{:?}", call.ifname);
    assert!(![".", "..", "lo"].contains(&call.ifname.as_str()));
    for label in [&call.namespace, &call.pod] {
        assert!(label.len() <= 63 && is_plain(label) && !label.contains('.'), "{label:?}");
    }
    if matches!(call.verb, Verb::Add | Verb::Check) {
        assert!(!call.container_id.is_empty() && !call.ifname.is_empty() && !call.netns.is_empty());
    }
    if call.verb == Verb::Add {
        assert!(!call.pod.is_empty() && !call.namespace.is_empty());
    }
    let mapped = call.config.runtime_config.port_mappings.iter().flatten().map(|port| CniPortMapping {
        host_port: port.host_port.into(),
        container_port: port.container_port.into(),
        protocol: port.protocol.clone(),
        host_ip: port.host_ip.clone(),
    });
    let mapped: Vec<_> = mapped.collect();
    if let Ok(ports) = host_ports(&mapped) {
        assert!(ports.len() <= mapped.len(), "each names one");
    }
    if let Some(previous) = &call.config.prev_result
        && let Ok(previous) = PreviousResult::parse(previous.to_string().as_bytes(), &call.ifname)
    {
        let own = previous.addresses.v4;
        assert!(!own.is_loopback() && !own.is_unspecified() && !own.is_multicast(), "{previous:?}");
    }
}

/// One object with the four fields of the specification, whatever was sent.
fn refused(version: &str, error: &CniError) {
    assert!(SUPPORTED_VERSIONS.contains(&version), "{version:?}");
    let printed = error.json(version);
    let fields = printed.as_object().expect("an object");
    assert_eq!(fields.len(), 4, "{printed}");
    assert!(printed["code"].as_u64().is_some_and(|code| code > 0) && printed["msg"] != "");
}
