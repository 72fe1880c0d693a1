//! What the kernel has to know for policies for the node itself: the node's own addresses, and where the control plane
//! listens, which no policy cuts off.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{bootstrap::Upstream, cni::HostNet, engine::Engine};

/// Between two looks: an address that is added is under policy that much later.
const EVERY: Duration = Duration::from_secs(1);
/// Between two questions for the addresses of replicas that are known by name.
const ASK_EVERY: u32 = 30;

/// All that is known now. A replica whose name has no address at the moment keeps those that it had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// On no interface, and the node's all the same.
    further: BTreeSet<IpAddr>,
    locals: BTreeSet<IpAddr>,
    control: BTreeSet<SocketAddr>,
}

impl Known {
    /// Nothing but these addresses, which are on no interface.
    pub fn with(further: BTreeSet<IpAddr>) -> Self {
        Self { further, ..Self::default() }
    }

    /// Looks, and tells the kernel if something is another. Names are asked for only where `ask` says so.
    ///
    /// # Errors
    /// The kernel, or netlink, refused.
    pub async fn refresh(
        &mut self,
        net: &HostNet,
        upstream: &Upstream,
        engine: &Engine,
        ask: bool,
    ) -> anyhow::Result<()> {
        let mut control = if ask { BTreeSet::new() } else { self.control.clone() };
        for replica in upstream.replicas().iter().filter(|_| ask) {
            match tokio::net::lookup_host(replica).await {
                Ok(found) => control.extend(found),
                Err(error) => {
                    tracing::warn!(replica, %error, "the replica's address is not known");
                    control.extend(&self.control);
                }
            }
        }
        let locals = &net.addresses().await? | &self.further;
        let fresh = Self { further: self.further.clone(), locals, control };
        if fresh != *self {
            engine.set_host(&fresh.locals, &fresh.control)?;
            *self = fresh;
        }
        Ok(())
    }

    /// For ever. Stop it by dropping the future.
    pub async fn refresh_for_ever(mut self, net: HostNet, upstream: Upstream, engine: Engine) {
        let mut looks = 0_u32;
        loop {
            tokio::time::sleep(EVERY).await;
            looks = looks.wrapping_add(1);
            if let Err(error) = self.refresh(&net, &upstream, &engine, looks.is_multiple_of(ASK_EVERY)).await
            {
                tracing::error!(%error, "this node's addresses are not known to the kernel");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ebpf_shared::{
        Direction, Question,
        host::INTERFACE,
        identity::{HOST, REMOTE_NODE, WORLD},
        judge,
        packet::protocol::TCP,
    };
    use xds_proto::isthmus::agent::v1 as wire;

    use crate::{
        engine::Engine, kernel::verdict::Policy, maps::MemoryMaps, subscribe::update_fixture as update,
    };

    fn engine() -> Engine {
        Engine::new(std::net::Ipv4Addr::new(192, 0, 2, 1), Box::new(MemoryMaps::default())).unwrap()
    }

    fn host(class: u32) -> wire::HostEndpoint {
        wire::HostEndpoint { node: "n1".into(), policy_class: class, ..Default::default() }
    }

    /// Lets an entity in at a port, and nobody else anywhere.
    fn class(entity: wire::Entity) -> wire::PolicyClass {
        let rule = wire::PolicyRule {
            action: wire::Action::QualifiedAllow as i32,
            protocol: wire::Protocol::Tcp as i32,
            entity: entity as i32,
            port: 22,
            ..Default::default()
        };
        wire::PolicyClass { id: 7, default_deny_ingress: true, rules: vec![rule], ..Default::default() }
    }

    fn admits(engine: &Engine, identity: u32) -> bool {
        engine.kernel(|kernel, _| {
            let policy = Policy {
                classes: kernel.classes.clone(),
                rulesets: kernel.rulesets.clone(),
                ..Policy::default()
            };
            let class = kernel.endpoints[&INTERFACE].class;
            let question =
                Question { class, direction: Direction::Ingress, identity, protocol: TCP, port: 22 };
            judge(&policy, &question).passes()
        })
    }

    #[test]
    fn the_node_is_an_endpoint_for_as_long_as_a_policy_selects_it() {
        let engine = engine();
        let is_judged = || engine.kernel(|kernel, _| kernel.endpoints.contains_key(&INTERFACE));
        engine.apply(&update(&[("n1", host(7))], &[])).unwrap();
        assert!(!is_judged(), "its class has not come");
        engine.apply(&update(&[("7", class(wire::Entity::RemoteNode))], &[])).unwrap();
        let entry = engine.kernel(|kernel, _| kernel.endpoints[&INTERFACE]);
        assert_eq!((entry.identity, entry.incarnation, entry.audit), (HOST, 0, false));
        engine.apply(&update(&[("n1", wire::HostEndpoint { audit: true, ..host(7) })], &[])).unwrap();
        assert!(engine.kernel(|kernel, _| kernel.endpoints[&INTERFACE].audit));
        // It keeps what it has until the next class is there.
        engine.apply(&update(&[("n1", host(8))], &[])).unwrap();
        assert!(is_judged());
        engine.apply(&update::<wire::HostEndpoint>(&[], &["n1"])).unwrap();
        assert!(!is_judged());
    }

    #[test]
    fn entities_are_seen_from_the_node() {
        let engine = engine();
        engine.apply(&update(&[("7", class(wire::Entity::RemoteNode))], &[])).unwrap();
        engine.apply(&update(&[("n1", host(7))], &[])).unwrap();
        for (entity, admitted) in [
            (wire::Entity::RemoteNode, [true, false, false]),
            (wire::Entity::World, [false, true, false]),
            (wire::Entity::Host, [false; 3]),
            (wire::Entity::Health, [false; 3]),
        ] {
            engine.apply(&update(&[("7", class(entity))], &[])).unwrap();
            assert_eq!([REMOTE_NODE, WORLD, HOST].map(|who| admits(&engine, who)), admitted, "{entity:?}");
        }
    }

    #[test]
    fn a_policy_that_nothing_would_enforce_is_refused() {
        let engine = engine().without_net();
        let refused = engine.apply(&update(&[("n1", host(7))], &[])).unwrap_err();
        assert!(refused.contains("--net-interface"), "{refused}");
        engine.apply(&update::<wire::HostEndpoint>(&[], &[])).unwrap();
    }
}
