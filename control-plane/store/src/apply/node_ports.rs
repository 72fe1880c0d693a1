//! Ports at every node: for service ports, and for the health checks of load balancers.

use std::collections::BTreeSet;

use mesh_model::{
    records::{NodePort, ServiceAllocation},
    resource::{NODE_PORTS, NamespacedName, Protocol, Service},
};

use super::transaction::Transaction;
use crate::Refusal;

/// What a service is to have of them. What is held already is kept.
///
/// # Errors
/// One that it asks for is another service's, or none is left.
pub(super) fn allocate(
    tx: &mut Transaction<'_>,
    service: &Service,
    held: Option<&ServiceAllocation>,
) -> Result<(Vec<NodePort>, Option<u16>), Refusal> {
    let name = &service.meta.name;
    let wanting = || service.ports.iter().filter(|_| service.exposure.wants_node_ports());
    let health = Some(&service.exposure).filter(|exposure| exposure.wants_health_port());
    let mut own: BTreeSet<(u16, Protocol)> = BTreeSet::new();
    let requested = wanting().filter_map(|port| Some((port.node_port?, port.protocol)));
    let requested =
        requested.chain(health.and_then(|e| e.health_check_node_port).map(|p| (p, Protocol::Tcp)));
    for (number, protocol) in requested {
        check_free(tx, name, number, protocol)?;
        if !own.insert((number, protocol)) {
            let field = format!("service/{name}: spec.healthCheckNodePort");
            return Err(Refusal::invalid(field, number, "is the nodePort of one of its ports too"));
        }
    }
    let before = held.map_or(&[][..], |held| &held.node_ports);
    let mut ports = Vec::new();
    for port in wanting() {
        let kept = before.iter().find(|held| (held.port, held.protocol) == (port.port, port.protocol));
        let kept = kept.map(|held| held.node_port);
        let node_port = take(tx, port.node_port, kept, port.protocol, &mut own)?;
        ports.push(NodePort { port: port.port, protocol: port.protocol, node_port });
    }
    ports.sort_unstable();
    let kept = held.and_then(|held| held.health_check_port);
    let health = health
        .map(|exposure| take(tx, exposure.health_check_node_port, kept, Protocol::Tcp, &mut own))
        .transpose()?;
    Ok((ports, health))
}

fn take(
    tx: &mut Transaction<'_>,
    requested: Option<u16>,
    held: Option<u16>,
    protocol: Protocol,
    own: &mut BTreeSet<(u16, Protocol)>,
) -> Result<u16, Refusal> {
    if let Some(number) = requested {
        return Ok(number);
    }
    // Unless another of its ports asks for that one now.
    let number = match held.filter(|number| !own.contains(&(*number, protocol))) {
        Some(number) => number,
        None => free(tx, protocol, own)?,
    };
    own.insert((number, protocol));
    Ok(number)
}

fn check_free(
    tx: &Transaction<'_>,
    name: &NamespacedName,
    port: u16,
    protocol: Protocol,
) -> Result<(), Refusal> {
    match tx.state().index.node_port_holder(port, protocol) {
        Some(holder) if holder != name => {
            let holder = format!("service/{holder}");
            Err(Refusal::NodePortTaken { service: format!("service/{name}"), port, protocol, holder })
        }
        _ => Ok(()),
    }
}

fn free(
    tx: &mut Transaction<'_>,
    protocol: Protocol,
    own: &BTreeSet<(u16, Protocol)>,
) -> Result<u16, Refusal> {
    let (first, last) = NODE_PORTS;
    let size = last - first + 1;
    for step in 0..size {
        let offset = (tx.state().cursors.node_port + step) % size;
        let candidate = first + offset;
        let taken = tx.state().index.node_port_holder(candidate, protocol).is_some()
            || own.contains(&(candidate, protocol))
            || tx.is_reserved_node_port(candidate, protocol);
        if !taken {
            tx.cursors().node_port = (offset + 1) % size;
            return Ok(candidate);
        }
    }
    Err(Refusal::Exhausted { what: "node ports".to_owned(), range: format!("{first}-{last}") })
}
