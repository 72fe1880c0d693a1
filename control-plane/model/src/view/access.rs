//! Who may connect to a captured port: the ingress rules of a workload's policy class, in terms that a proxy can
//! check by itself. A proxy sees two things of a caller: the SPIFFE ID of its certificate, and the address that it
//! connects from. The kernel judges by the second alone.
//!
//! A SPIFFE ID is a service account, and a rule chooses by labels, of which an account's workloads may have
//! different ones. So:
//! * Where a rule admits every workload of an account, the ID says it, and pods come and go without a change here.
//! * Where it admits some of them, it is the ID *and* one of their addresses: two facts that must agree.
//! * What a peer's workloads send arrives from the address of a gateway, which the rule has to admit, as it has to
//!   for the kernel. A gateway passes on and never speaks for itself, so that is the address and an ID of another
//!   trust domain: who is of this one and comes by way of the gateway is not let in as the gateway.
//! * A block of addresses means those outside of the mesh: nobody of this trust domain, no pod and no other
//!   workload.
//!
//! Nothing is admitted that the oracle denies ([`crate::policy::verdict`]). Denied though the oracle allows: what
//! comes from an address that is not reported yet, or that the rule's workloads share with others of their account
//! (for a gateway, with anybody) that it does not admit; from an address among the pods' that no workload has; and from
//! the workload's own node, which has no certificate of the mesh.
//!
//! A rule that denies some of an account's workloads denies their addresses, and the account from wherever none of the
//! others is known to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    compile::{Action, Direction, FlowProtocol, MeshModel, MeshWorkload, PolicyRule, RulePeer},
    identity::{IdentityNumber, SpiffeId, TrustDomain},
    policy::Entity,
    resource::ProxyMode,
};

/// What decides about a connection to one port. Rules that deny go before those that permit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Of this cluster.
    pub trust_domain: TrustDomain,
    /// Provenance of the denial of whom no rule permits. None: who is not denied by a rule may connect.
    pub default_deny: Option<String>,
    /// Never meant by `deny`: the workload itself.
    pub spared: Option<Caller>,
    #[allow(missing_docs)]
    pub deny: Vec<AccessRule>,
    #[allow(missing_docs)]
    pub allow: Vec<AccessRule>,
}

/// What one rule of a policy says about the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    /// The object and the rule in it.
    pub provenance: Arc<str>,
    /// The rule's own ports, inclusive; all of them hold the port that this is about. None: any.
    pub ports: Vec<Option<(u16, u16)>>,
    /// One of them is enough. Never empty.
    pub callers: Vec<Caller>,
}

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Whoever has come so far.
    Anybody,
    /// Every workload of a service account.
    Account(SpiffeId),
    /// A workload of a service account, at one of these addresses.
    At {
        #[allow(missing_docs)]
        id: SpiffeId,
        #[allow(missing_docs)]
        addresses: Vec<IpNet>,
    },
    /// A workload of another trust domain, by way of one of these gateways.
    Through(Vec<IpNet>),
    /// Somebody of another trust domain, in one of these blocks and in no exception.
    Outside {
        #[allow(missing_docs)]
        blocks: Vec<IpNet>,
        #[allow(missing_docs)]
        except: Vec<IpNet>,
    },
    /// Whoever connects from there: for denials, which may go too far, but not fall short.
    From(Vec<IpNet>),
    /// Whoever connects from one of these blocks and from no exception.
    Beyond {
        #[allow(missing_docs)]
        blocks: Vec<IpNet>,
        #[allow(missing_docs)]
        except: Vec<IpNet>,
    },
    /// A workload of a service account, anywhere but at these addresses.
    Elsewhere {
        #[allow(missing_docs)]
        id: SpiffeId,
        #[allow(missing_docs)]
        except: Vec<IpNet>,
    },
}

/// Who may connect to a TCP port of a workload. None: no policy restricts it.
pub fn access(model: &MeshModel, workload: &MeshWorkload, port: u16) -> Option<Access> {
    if workload.audit {
        return None;
    }
    let itself = itself(model, workload);
    let of = |allow: Vec<AccessRule>, deny, default_deny| Access {
        trust_domain: model.cluster.trust_domain.clone(),
        default_deny,
        spared: itself.as_ref().and_then(|rule| rule.callers.first().cloned()),
        deny,
        allow: itself.into_iter().chain(allow).collect(),
    };
    let Some(class) = model.policy_classes.get(&workload.policy_class) else {
        return Some(of(Vec::new(), Vec::new(), Some(format!("workload/{}#no-policy-class", workload.name))));
    };
    let mut drafts: BTreeMap<(Action, &Arc<str>), Draft> = BTreeMap::new();
    let nodes = Nodes::of(model, workload);
    for rule in class.rules.iter().filter(|rule| concerns(rule, port)) {
        drafts.entry((rule.action, &rule.provenance)).or_default().add(rule, model, &nodes);
    }
    let (mut deny, mut allow) = (Vec::new(), Vec::new());
    for ((action, provenance), draft) in drafts {
        let (rules, callers) = match action {
            Action::Deny => (&mut deny, draft.denied(model)),
            Action::Allow => (&mut allow, draft.allowed(model)),
        };
        // Whoever it means is not to be told from others, or not known yet.
        if !callers.is_empty() {
            let ports = draft.ports.into_iter().collect();
            rules.push(AccessRule { provenance: provenance.clone(), ports, callers });
        }
    }
    let restricted = class.ingress_default_deny.is_some() || !deny.is_empty();
    restricted.then(|| of(allow, deny, class.ingress_default_deny.clone()))
}

fn concerns(rule: &PolicyRule, port: u16) -> bool {
    // What audited policies deny is not denied, and they admit nobody either.
    rule.direction == Direction::Ingress
        && !rule.audit
        && rule.protocol.is_none_or(|protocol| protocol == FlowProtocol::Tcp)
        && rule.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
}

/// A workload may always talk to itself.
fn itself(model: &MeshModel, workload: &MeshWorkload) -> Option<AccessRule> {
    let id = &workload.spiffe_id;
    let own = |other: &MeshWorkload| other.name == workload.name || other.spiffe_id != *id;
    let addresses = addresses(workload).filter(|ip| everybody_at(model, *ip, own));
    let addresses: Vec<IpNet> = addresses.map(IpNet::from).collect();
    (!addresses.is_empty()).then(|| AccessRule {
        provenance: format!("workload/{}#itself", workload.name).into(),
        ports: vec![None],
        callers: vec![Caller::At { id: id.clone(), addresses }],
    })
}

/// What the compiled rules of one rule of a policy say together. They are a product of peers and ports but for those
/// that an earlier policy says as well; among those that hold one port, every peer goes with every range.
#[derive(Default)]
struct Draft {
    ports: BTreeSet<Option<(u16, u16)>>,
    anybody: bool,
    identities: BTreeSet<IdentityNumber>,
    blocks: Vec<IpNet>,
    /// What of the blocks is not meant where they admit somebody. A denial goes too far there.
    spared: Vec<IpNet>,
    /// Denied by address alone.
    places: Vec<IpNet>,
}

/// Addresses of nodes, as a workload sees them.
struct Nodes {
    own: Vec<IpNet>,
    all: Vec<IpNet>,
}

impl Nodes {
    fn of(model: &MeshModel, workload: &MeshWorkload) -> Self {
        let all: Vec<IpNet> =
            model.nodes.values().flat_map(|node| node.addresses()).map(IpNet::from).collect();
        let own = workload.binding.as_ref().and_then(|binding| model.nodes.get(&binding.node));
        let own = own.map(|node| node.addresses().map(IpNet::from).collect());
        // Where it is not known, any of them may be.
        Self { own: own.unwrap_or_else(|| all.clone()), all }
    }
}

impl Draft {
    fn add(&mut self, rule: &PolicyRule, model: &MeshModel, nodes: &Nodes) {
        self.ports.insert(rule.ports);
        match &rule.peer {
            RulePeer::Any => self.anybody = true,
            RulePeer::Identity(identity) => drop(self.identities.insert(*identity)),
            RulePeer::Cidr(block) => self.blocks.push(*block),
            RulePeer::Entity(Entity::World) => {
                self.blocks
                    .extend(["0.0.0.0/0", "::/0"].iter().filter_map(|text| text.parse::<IpNet>().ok()));
                self.spared.extend(&nodes.all);
            }
            RulePeer::Entity(Entity::RemoteNode) => {
                self.blocks.extend(nodes.all.iter().filter(|node| !nodes.own.contains(node)));
            }
            // Nobody there has a certificate of the mesh, so that nobody is let in; but nobody is to be by another rule.
            RulePeer::Entity(Entity::Host | Entity::Health) if rule.action == Action::Deny => {
                self.places.extend(&nodes.own);
            }
            RulePeer::Entity(Entity::Host | Entity::Health) => {}
            // Not to be told from workloads that are not reported yet; no denial is of these.
            RulePeer::Entity(Entity::Unmanaged) => {}
            RulePeer::Entity(Entity::Workloads) => self.identities.extend(model.index.identities()),
            // Of egress rules.
            RulePeer::Name(_) => {}
        }
    }

    fn accounts<'a>(&self, model: &'a MeshModel) -> BTreeSet<&'a SpiffeId> {
        self.identities.iter().filter_map(|identity| model.index.account_of(*identity)).collect()
    }

    /// The workloads of an account that it means.
    fn meant<'a>(&self, model: &'a MeshModel, id: &SpiffeId) -> impl Iterator<Item = &'a MeshWorkload> {
        let account = model.index.account(id).into_iter().flatten();
        let meant = account.filter(move |(identity, _)| self.identities.contains(identity));
        meant.flat_map(|(_, names)| names).filter_map(|name| model.workloads.get(name)).map(Arc::as_ref)
    }

    fn allowed(&self, model: &MeshModel) -> Vec<Caller> {
        if self.anybody {
            return vec![Caller::Anybody];
        }
        let mut callers = Vec::new();
        let mut gateways = Vec::new();
        for id in self.accounts(model) {
            let account = model.index.account(id);
            if account.is_some_and(|account| account.keys().all(|i| self.identities.contains(i))) {
                callers.push(Caller::Account(id.clone()));
            } else {
                let alike = |w: &MeshWorkload| w.spiffe_id != *id || self.identities.contains(&w.identity);
                let speaking = self.meant(model, id).filter(|w| w.proxy != ProxyMode::Gateway);
                let at = speaking.flat_map(addresses).filter(|ip| everybody_at(model, *ip, alike));
                let addresses = aggregated(at);
                if !addresses.is_empty() {
                    callers.push(Caller::At { id: id.clone(), addresses });
                }
            }
            let alike = |w: &MeshWorkload| self.identities.contains(&w.identity);
            let passing = self.meant(model, id).filter(|w| w.proxy == ProxyMode::Gateway);
            gateways.extend(passing.flat_map(addresses).filter(|ip| everybody_at(model, *ip, alike)));
        }
        if !gateways.is_empty() {
            callers.push(Caller::Through(aggregated(gateways.into_iter())));
        }
        if !self.blocks.is_empty() {
            let except = self.inside(model).into_iter().chain(self.spared.iter().copied()).collect();
            callers.push(Caller::Outside { blocks: self.blocks.clone(), except });
        }
        callers
    }

    /// What of its blocks is not outside of the mesh.
    fn inside(&self, model: &MeshModel) -> Vec<IpNet> {
        let pods: Vec<IpNet> = model.cluster.pod_cidrs().collect();
        let others = model.index.addresses_outside(&pods).map(IpNet::from);
        let inside = |net: &IpNet| self.blocks.iter().any(|b| b.contains(net) || net.contains(b));
        pods.iter().copied().chain(others).filter(inside).collect()
    }

    fn denied(&self, model: &MeshModel) -> Vec<Caller> {
        if self.anybody {
            return vec![Caller::Anybody];
        }
        let mut callers = Vec::new();
        for id in self.accounts(model) {
            let denied = |w: &MeshWorkload| w.spiffe_id == *id && self.identities.contains(&w.identity);
            let names = model.index.account(id).into_iter().flatten().flat_map(|(_, names)| names);
            let others = names.filter_map(|name| model.workloads.get(name)).filter(|w| !denied(w));
            let known =
                others.flat_map(|w| addresses(w)).filter(|ip| everybody_at(model, *ip, |w| !denied(w)));
            let except = aggregated(known);
            callers.push(match except.is_empty() {
                true => Caller::Account(id.clone()),
                false => Caller::Elsewhere { id: id.clone(), except },
            });
        }
        let accounts = self.accounts(model);
        let meant = accounts.iter().flat_map(|id| self.meant(model, id)).flat_map(addresses);
        let nets = aggregated(meant);
        let nets = IpNet::aggregate(&nets.into_iter().chain(self.places.iter().copied()).collect());
        if !nets.is_empty() {
            callers.push(Caller::From(nets));
        }
        if !self.blocks.is_empty() {
            callers.push(Caller::Beyond { blocks: self.blocks.clone(), except: self.inside(model) });
        }
        callers
    }
}

fn addresses(workload: &MeshWorkload) -> impl Iterator<Item = IpAddr> {
    workload.binding.iter().flat_map(|binding| &binding.addresses).copied()
}

/// Whether this holds for all workloads that have an address: if not, the address does not tell who it is.
fn everybody_at(model: &MeshModel, address: IpAddr, holds: impl Fn(&MeshWorkload) -> bool) -> bool {
    model.index.at(address).filter_map(|name| model.workloads.get(name)).all(|workload| holds(workload))
}

fn aggregated(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpNet> {
    IpNet::aggregate(&addresses.map(IpNet::from).collect())
}
