//! What the rules of classes name beside identities, which is what addresses get identities of this node's making for.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use mesh_model::policy::NamePattern;

use crate::subscribe::{Peer, Resources};

/// CIDRs, and names in DNS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Mentions {
    pub cidrs: BTreeSet<IpNet>,
    pub names: BTreeSet<NamePattern>,
}

impl Mentions {
    /// Of each class that an endpoint of this node is to have.
    pub fn in_use(resources: &Resources) -> BTreeMap<u32, Self> {
        resources.classes_in_use().into_iter().map(|class| (class, Self::of(resources, class))).collect()
    }

    /// Of one class.
    pub fn of(resources: &Resources, class: u32) -> Self {
        let mut mentions = Self::default();
        for rule in resources.class(class).into_iter().flat_map(|class| &class.rules) {
            match &rule.peer {
                Peer::Cidr(cidr) => {
                    mentions.cidrs.insert(*cidr);
                }
                Peer::Cidrs(cidrs) => mentions.cidrs.extend(cidrs.iter().copied()),
                Peer::Name(name) => {
                    if !mentions.names.contains(name) {
                        mentions.names.insert(name.clone());
                    }
                }
                Peer::Any | Peer::Identity(_) | Peer::Identities(_) | Peer::Entity(_) | Peer::Nobody => {}
            }
        }
        mentions
    }

    /// Of several.
    pub fn all<'a>(each: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut all = Self::default();
        for one in each {
            all.cidrs.extend(&one.cidrs);
            all.names.extend(one.names.iter().cloned());
        }
        all
    }
}
