//! The first command.

use ipnet::IpNet;
use mesh_model::records::ClusterInfo;

use super::{Done, address, authority, transaction::Transaction, valid};
use crate::{
    Refusal,
    limits::{MAX_ROOT_BYTES, MAX_ROOTS, NODE_SLICE_BITS},
};

pub(super) fn init(tx: &mut Transaction<'_>, info: &ClusterInfo) -> Result<Done, Refusal> {
    match &tx.state().cluster {
        Some(current) if **current == (ClusterInfo { trust: current.trust.clone(), ..info.clone() }) => {
            return Ok(Done::default());
        }
        Some(current) => return Err(Refusal::AlreadyInitialised { name: current.name.clone() }),
        None => {}
    }
    valid::label("name", &info.name)?;
    valid::domain("meshDomain", &info.mesh_domain)?;
    check_roots(&info.roots)?;
    for (field, cidr) in [("podCIDR", &info.pod_cidr), ("serviceCIDR", &info.service_cidr)] {
        if !address::is_network(cidr) {
            return Err(Refusal::invalid(
                field,
                cidr,
                format!("has bits below its prefix: write {}", cidr.trunc()),
            ));
        }
    }
    check_pod_cidr6(info)?;
    if address::slice_prefix(&info.pod_cidr, NODE_SLICE_BITS).is_none() {
        return Err(Refusal::invalid(
            "podCIDR",
            info.pod_cidr,
            "is smaller than one node's slice (/24, IPv6 /120)",
        ));
    }
    if address::size(&info.service_cidr) < 4 {
        return Err(Refusal::invalid(
            "serviceCIDR",
            info.service_cidr,
            "has no room for a service: /30 is the least",
        ));
    }
    if address::overlap(&info.pod_cidr, &info.service_cidr) {
        let problem = format!("overlaps the service CIDR {}", info.service_cidr);
        return Err(Refusal::invalid("podCIDR", info.pod_cidr, problem));
    }
    check_service_cidr6(info)?;
    tx.set_cluster(info.clone());
    authority::founded(tx);
    Ok(Done::default())
}

/// Of the other family than the service CIDR, and nobody else's.
fn check_service_cidr6(info: &ClusterInfo) -> Result<(), Refusal> {
    let Some(six) = info.service_cidr6 else { return Ok(()) };
    let refused = |problem: String| Err(Refusal::invalid("serviceCIDR6", six, problem));
    let net = IpNet::V6(six);
    if !address::is_network(&net) {
        return refused(format!("has bits below its prefix: write {}", six.trunc()));
    }
    if matches!(info.service_cidr, IpNet::V6(_)) {
        return refused(format!("is beside the service CIDR {}, which is IPv6 already", info.service_cidr));
    }
    if address::size(&net) < 4 {
        return refused("has no room for a service: /126 is the least".to_owned());
    }
    if let Some(pods) = info.pod_cidrs().find(|pods| address::overlap(pods, &net)) {
        return refused(format!("overlaps the pod CIDR {pods}"));
    }
    Ok(())
}

/// Every pod has the same place in both ranges, so that of IPv6 has to be as large, and one of IPv4 to be there.
fn check_pod_cidr6(info: &ClusterInfo) -> Result<(), Refusal> {
    let Some(six) = info.pod_cidr6 else { return Ok(()) };
    let refused = |problem: String| Err(Refusal::invalid("podCIDR6", six, problem));
    let net = IpNet::V6(six);
    if !address::is_network(&net) {
        return refused(format!("has bits below its prefix: write {}", six.trunc()));
    }
    let IpNet::V4(four) = info.pod_cidr else {
        return refused(format!("is beside the pod CIDR {}, which is IPv6 already", info.pod_cidr));
    };
    if six.prefix_len() < 32 || six.prefix_len() > 96 + four.prefix_len() {
        return refused(format!("must be /32 to /{}, to have a place for every pod", 96 + four.prefix_len()));
    }
    if address::overlap(&net, &info.service_cidr) {
        return refused(format!("overlaps the service CIDR {}", info.service_cidr));
    }
    Ok(())
}

/// A trust domain without a root would trust nobody, and a huge one would be sent to every data plane.
pub(super) fn check_roots(roots: &[Vec<u8>]) -> Result<(), Refusal> {
    if roots.is_empty() {
        return Err(Refusal::invalid("roots", "[]", "names no root certificate"));
    }
    valid::at_most("roots of one trust domain", roots.len(), MAX_ROOTS)?;
    let largest = roots.iter().map(Vec::len).max().unwrap_or(0);
    valid::at_most("bytes of a root certificate", largest, MAX_ROOT_BYTES)
}
