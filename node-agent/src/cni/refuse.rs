//! What a call says and what it is answered, checked and put into words. PURE.

use mesh_model::resource::NamespacedName;
use tonic::{Code, Status};
use xds_proto::isthmus::local::v1::{CniAddResponse, CniRequest};

use super::{Endpoint, EndpointKey, GATEWAY, GATEWAY6, NetnsError, RegistryError, create::CreateError};
use crate::{
    cni_plugin::{PreviousError, code},
    config::dns_label,
    dns::ClusterDnsArgs,
};

/// A status whose metadata carries the CNI error code.
pub(super) fn refuse(cni_code: u32, code: Code, what: impl Into<String>) -> Status {
    let mut status = Status::new(code, what);
    status.metadata_mut().insert("isthmus-cni-code", tonic::metadata::MetadataValue::from(cni_code));
    status
}

pub(super) fn refuse_create(error: &CreateError) -> Status {
    let text = error.to_string();
    match error {
        CreateError::Netns(NetnsError::Open { .. } | NetnsError::Own { .. } | NetnsError::NotOne { .. }) => {
            refuse(code::BAD_ENVIRONMENT, Code::InvalidArgument, format!("CNI_NETNS: {text}"))
        }
        CreateError::Registry(RegistryError::Ipam(_)) => {
            refuse(code::TRY_AGAIN, Code::ResourceExhausted, text)
        }
        CreateError::Registry(
            RegistryError::Taken { .. }
            | RegistryError::Mismatch { .. }
            | RegistryError::Occupied { .. }
            | RegistryError::AddressTaken { .. }
            | RegistryError::HostPortTaken { .. }
            | RegistryError::InterfaceTaken { .. },
        )
        | CreateError::NotFree { .. } => refuse(code::REFUSED, Code::AlreadyExists, text),
        CreateError::Previous(PreviousError::Json(_)) => refuse(code::DECODE, Code::InvalidArgument, text),
        CreateError::Previous(_) | CreateError::Foreign { .. } => {
            refuse(code::REFUSED, Code::FailedPrecondition, text)
        }
        CreateError::Netns(_)
        | CreateError::Link(_)
        | CreateError::Registry(_)
        | CreateError::Sysctl(_)
        | CreateError::Map(_) => refuse(code::IO, Code::Internal, text),
    }
}

pub(super) fn key(container_id: &str, ifname: &str) -> Result<EndpointKey, Status> {
    // The plugin has checked them; whoever else speaks to the socket is checked here.
    let fine = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
    };
    if !fine(container_id, 255) {
        let what = format!("container_id is {container_id:?}");
        return Err(refuse(code::BAD_ENVIRONMENT, Code::InvalidArgument, what));
    }
    if !fine(ifname, 15) || matches!(ifname, "." | ".." | "lo") {
        let what = format!("ifname is {ifname:?}");
        return Err(refuse(code::BAD_ENVIRONMENT, Code::InvalidArgument, what));
    }
    Ok(EndpointKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

pub(super) fn workload(request: &CniRequest) -> Result<NamespacedName, Status> {
    for (field, text) in [("namespace", &request.namespace), ("pod", &request.pod)] {
        dns_label(text).map_err(|reason| {
            refuse(code::BAD_ENVIRONMENT, Code::InvalidArgument, format!("{field}: {reason}"))
        })?;
    }
    Ok(NamespacedName::new(&request.namespace, &request.pod))
}

pub(super) fn answer(endpoint: &Endpoint, names: Option<&ClusterDnsArgs>) -> CniAddResponse {
    CniAddResponse {
        address: format!("{}/32", endpoint.address),
        gateway: GATEWAY.to_string(),
        address6: endpoint.address6.map(|address| format!("{address}/128")).unwrap_or_default(),
        gateway6: endpoint.address6.map(|_| GATEWAY6.to_string()).unwrap_or_default(),
        host_interface: endpoint.host_interface.clone(),
        mac: mac_text(endpoint.host_mac),
        mtu: endpoint.mtu,
        sandbox_mac: mac_text(endpoint.pod_mac),
        nameservers: names.iter().flat_map(|names| &names.addresses).map(ToString::to_string).collect(),
        search: names.map(|names| search(&endpoint.workload.namespace, &names.domain)).unwrap_or_default(),
    }
}

/// As the kubelet has it (`ClusterFirst`).
fn search(namespace: &str, domain: &str) -> Vec<String> {
    vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()]
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni_plugin::CniError;

    #[test]
    fn the_plugin_prints_the_code_that_the_agent_chose() {
        let status = refuse(code::CHECK_FAILED, Code::FailedPrecondition, "no default route");
        assert_eq!(CniError::from_status(&status).code, code::CHECK_FAILED);
        assert_eq!(CniError::from_status(&Status::unavailable("x")).code, code::TRY_AGAIN);
    }

    #[test]
    fn a_namespace_that_is_not_free_is_a_refusal_of_the_plugin() {
        let what = "has a default route already".to_owned();
        let error = CreateError::NotFree { netns: "/run/netns/a".into(), what };
        assert_eq!(CniError::from_status(&refuse_create(&error)).code, code::REFUSED);
        let occupied = RegistryError::Occupied {
            netns: "/run/netns/a".into(),
            workload: NamespacedName::new("shop", "pay"),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        };
        let shown = CniError::from_status(&refuse_create(&occupied.into()));
        assert!(shown.code == code::REFUSED && shown.msg.contains("shop/pay"), "{shown:?}");
    }

    #[test]
    fn names_are_checked_again_by_the_agent() {
        assert!(key("c", "eth0").is_ok() && key(&"c".repeat(255), "abcdefghijklmno").is_ok());
        let long = "c".repeat(256);
        for (container, ifname) in [
            ("c", "../x"),
            ("c", ".."),
            ("c", "lo"),
            ("c", ""),
            ("c", "abcdefghijklmnop"),
            ("c", "a\nb"),
            ("c", "eth0\0"),
            ("", "eth0"),
            ("../../etc/passwd", "eth0"),
            ("a/b", "eth0"),
            ("a b", "eth0"),
            ("\u{202e}c", "eth0"),
            (long.as_str(), "eth0"),
        ] {
            let status = key(container, ifname).unwrap_err();
            assert_eq!(
                CniError::from_status(&status).code,
                code::BAD_ENVIRONMENT,
                "{container:?} {ifname:?}"
            );
        }
        let label = "p".repeat(64);
        for (namespace, pod) in
            [("a/b", "p"), ("a", ""), ("", "p"), ("a", "P"), ("a", "-p"), ("a", "p.q"), ("a", label.as_str())]
        {
            let request = CniRequest { namespace: namespace.into(), pod: pod.into(), ..Default::default() };
            assert!(workload(&request).is_err(), "{namespace:?} {pod:?}");
        }
    }
}
