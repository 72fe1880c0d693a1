//! From what changed to the writes, at a cost in proportion to what changed.
//!
//! The work of [`compute`](super::compute) grows with the mesh. Most changes are small: an address comes, a policy is
//! edited, a pod gets its class. Then the [`Planner`] looks at these alone, with the help of a few indexes. Where a change moves the
//! ground (nodes, the set of CIDRs that policies name, this node's own identities), everything is computed again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ebpf_shared::{host::INTERFACE, identity::HOST};
use ipnet::IpNet;
use mesh_model::resource::NamespacedName;
use xds_proto::isthmus::{agent::v1 as wire, local::v1::DnsRules};

use super::{
    Delta, Desired, Dictionary, EndpointEntry, Full, Garbage, Limits, Listens, MapOp, Pod, PodAddresses,
    assign::{Want, assign},
    collect,
    compute::{endpoint, on_ground, own_identities, sidecars, wants},
    diff::changes,
    dns::dns_rules,
    ground::Ground,
    host,
    mentions::Mentions,
    plan,
    plan::conflicts,
    policy::class_entry,
    room::sidecars_without_room,
    service::{self, Claims, services},
    stages::steps,
};
use crate::{
    kernel::rules::ClassEntry,
    names::Names,
    subscribe::{Address, Resources, Touched},
};

/// What the contents of the maps are made from.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Inputs<'a> {
    pub resources: &'a Resources,
    pub node: PodAddresses,
    pub pods: &'a BTreeMap<NamespacedName, Pod>,
    /// Further addresses of the node, by which it speaks to pods that other plugins have made.
    pub gateways: &'a BTreeSet<IpAddr>,
    /// What DNS has told pods of this node.
    pub names: &'a Names,
}

/// Finds the writes. It remembers what it was told before, so it has to be told of every change.
#[derive(Debug, Clone)]
pub struct Planner {
    dictionary: Dictionary,
    /// Of the last plan, if all of it was carried out.
    known: Option<Known>,
    /// Of the last plan for everything, while nothing is known.
    base: Option<(Ground, BTreeSet<u32>)>,
    garbage: Garbage,
    /// Something may have become unneeded since the last look.
    has_changed: bool,
    limits: Limits,
    /// What the last plan found of services.
    services: Vec<MapOp>,
    /// Why it left out sidecars, if it did.
    left_out: Option<Full>,
}

#[derive(Debug, Clone)]
struct Known {
    ground: Ground,
    own: BTreeSet<u32>,
    /// What each class in use names.
    mentions: BTreeMap<u32, Mentions>,
    /// How many workloads were told to have an address; the last one by name has it.
    claims: HashMap<IpAddr, u32>,
    /// The pods that have an address.
    pods: BTreeMap<IpAddr, NamespacedName>,
    /// The services that claim one.
    services: Claims,
}

impl Planner {
    /// Goes on from what the kernel holds.
    pub fn new(current: &Desired, limits: Limits) -> Self {
        let dictionary = Dictionary::recover(current);
        Self {
            dictionary,
            known: None,
            base: None,
            garbage: Garbage::default(),
            has_changed: true,
            limits,
            services: Vec::new(),
            left_out: None,
        }
    }

    /// How much fits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Says where the proxy of a name listens, if it is there. Takes effect with the next plan. Its slot.
    pub fn set_proxy(&mut self, name: &str, listens: Option<Listens>) -> u16 {
        self.dictionary.proxies.set(name, listens)
    }

    /// The names of policies.
    pub fn dictionary(&self) -> &Dictionary {
        &self.dictionary
    }

    /// What pods may ask DNS for, by the last plan; `None` while a pod's policy is not here.
    pub fn dns_rules(&self, inputs: Inputs<'_>, current: &Desired) -> Option<DnsRules> {
        let (ground, own) = match &self.known {
            Some(known) => (&known.ground, &known.own),
            None => self.base.as_ref().map(|(ground, own)| (ground, own))?,
        };
        let wants = wants(inputs.resources, inputs.pods, current);
        if wants.values().any(|want| matches!(want, Want::Kept(_))) {
            return None;
        }
        Some(dns_rules(inputs, ground, own, &self.dictionary))
    }

    /// Whether a policy of this node names it: by the last plan, or by what was told since that has not been planned.
    pub fn names_it(&self, resources: &Resources, name: &str) -> bool {
        let known = self.known.as_ref().map(|known| &known.ground);
        match known.or(self.base.as_ref().map(|(ground, _)| ground)) {
            Some(ground) => ground.names().any(|pattern| pattern.matches(name)),
            None => {
                let mut mentions = Mentions::in_use(resources).into_values();
                mentions.any(|each| each.names.iter().any(|pattern| pattern.matches(name)))
            }
        }
    }

    /// The writes that make of what the kernel holds what it is to hold, but for [services](Self::take_services).
    ///
    /// # Errors
    /// A map has no room for it. None of them is to be made, and everything is looked at again by the next plan.
    pub fn plan(
        &mut self,
        inputs: Inputs<'_>,
        touched: &Touched,
        current: &Desired,
    ) -> Result<Vec<MapOp>, Full> {
        let little = self.known.take().and_then(|mut known| {
            let mut delta = self.little(&mut known, inputs, touched, current)?;
            delta.proxies = changes(&current.proxies, self.dictionary.proxies.entries());
            self.known = Some(known);
            (!conflicts(current, &delta)).then_some(delta)
        });
        let ops = match little {
            Some(delta) => plan(current, &delta),
            None => {
                let desired = self.everything(inputs, current);
                steps(current, &desired, &mut self.dictionary)
            }
        };
        self.has_changed = true;
        let (services, ops): (Vec<_>, Vec<_>) = ops.into_iter().partition(MapOp::is_of_service);
        self.services = services;
        let (left, full) = sidecars_without_room(self.limits, current, &ops);
        self.left_out = full;
        let ops = if left.is_empty() { ops } else { without_sidecars(ops, &left, inputs.pods, current) };
        self.limits.check(current, &ops).inspect_err(|_| self.known = None)?;
        Ok(ops)
    }

    /// What of the last plan had no room although its writes are to be made: sidecars, whose pods are left closed, or as they
    /// were.
    pub fn take_left_out(&mut self) -> Option<Full> {
        self.left_out.take()
    }

    /// The writes of services that belong to the last plan, whether or not it had room: no verdict depends on them, so each
    /// is to be made or refused by itself, after the others.
    pub fn take_services(&mut self) -> Vec<MapOp> {
        std::mem::take(&mut self.services)
    }

    /// Is to be called when the writes of a plan were made, or not all of them.
    pub fn done(&mut self, current: &Desired, all: bool) {
        if !all {
            self.known = None;
        }
        self.dictionary.keep_rulesets(current);
    }

    /// The writes that remove what nothing has needed since the last call. Is to be called every second or so.
    pub fn collect(&mut self, current: &Desired) -> Vec<MapOp> {
        if !self.has_changed && self.garbage.is_empty() {
            return Vec::new();
        }
        self.has_changed = false;
        let (ops, garbage) = collect(current, &self.garbage);
        self.garbage = garbage;
        ops
    }

    fn everything(&mut self, inputs: Inputs<'_>, current: &Desired) -> Desired {
        let (desired, ground) = on_ground(inputs, current, &mut self.dictionary);
        let own = own_identities(&ground, &desired.identities);
        self.base = Some((ground.clone(), own));
        self.known = Known::new(inputs, current, ground, &self.dictionary);
        if self.known.is_some() {
            self.base = None;
        }
        desired
    }

    /// What changes because of what was touched; `None`: more than can be told from that.
    fn little(
        &mut self,
        known: &mut Known,
        inputs: Inputs<'_>,
        touched: &Touched,
        current: &Desired,
    ) -> Option<Delta> {
        let Inputs { resources, node, pods, .. } = inputs;
        if touched.nodes || touched.host || known.ground.is_cluttered() {
            return None;
        }
        let mut nets = known.note(inputs, touched)?;
        let is_new = known.ground.note(&touched.names, inputs.names, &mut self.dictionary);
        for address in &touched.names {
            nets.entry(IpNet::from(*address)).or_default();
        }
        let mut delta = Delta::default();
        for (net, told) in nets {
            let after = known.identity(&net, inputs, told, &self.dictionary);
            if current.identities.get(&net).copied() != after {
                delta.identities.insert(net, after);
            }
            let address = net.addr();
            let is_outside = after == known.ground.identity(&net, &self.dictionary);
            let lasting = known.ground.lasting(address).filter(|_| is_outside);
            if current.lingering.get(&address).copied() != lasting {
                delta.lingering.insert(address, lasting);
            }
        }
        let concerned = known.services.note(&touched.services, resources, node);
        let mut slot = |name: &str| self.dictionary.proxy_slot(name);
        // They depend on which pods are here, too.
        if touched.all_services || !touched.pods.is_empty() || !touched.locals.is_empty() {
            delta.services = changes(&current.services, &services(resources, node, pods, &mut slot));
        } else if !touched.services.is_empty() {
            delta.services =
                service::changed(&concerned, &current.services, resources, node, pods, &mut slot);
        }
        let is_small = touched.classes.is_empty() && touched.locals.is_empty() && touched.pods.is_empty();
        if is_small && !is_new {
            return Some(delta);
        }

        let wants = wants(resources, pods, current);
        let nobody = BTreeSet::new();
        let mut entries: BTreeMap<u32, ClassEntry> = BTreeMap::new();
        for want in wants.values() {
            let Want::Class(wire) = want else { return None };
            let is_held =
                self.dictionary.classes.get(wire).is_some_and(|class| current.classes.contains_key(class));
            if (touched.classes.contains(wire) || is_new || !is_held) && !entries.contains_key(wire) {
                let class = resources.class(*wire)?;
                let own = host::admitted(resources, *wire, &known.own, &nobody);
                entries.insert(*wire, class_entry(class, &known.ground, own, &mut self.dictionary));
            }
        }
        let before = self.dictionary.classes.clone();
        let numbers = assign(&wants, &entries, current, &mut self.dictionary);
        for want in wants.values() {
            let Want::Class(wire) = want else { return None };
            // A class whose contents are not at hand has to be what it was.
            let number = numbers.get(wire)?;
            if !entries.contains_key(wire) && before.get(wire) != Some(number) {
                return None;
            }
        }
        for (wire, entry) in entries {
            let number = *numbers.get(&wire)?;
            if current.classes.get(&number) != Some(&entry) {
                // Many peers, and few rulesets.
                let mut seen = BTreeSet::new();
                for by in entry.rulesets().filter(|by| seen.insert(by.set)) {
                    let set = self.dictionary.rulesets.get(by)?;
                    if current.rulesets.get(&by.set) != Some(set) {
                        delta.rulesets.insert(by.set, set.clone());
                    }
                }
                delta.classes.insert(number, entry);
            }
        }
        let endpoints = pods.iter().filter_map(|(name, pod)| {
            let Want::Class(wire) = wants.get(&pod.ifindex)? else { return None };
            let local = resources.locals.get(name)?;
            Some((pod.ifindex, endpoint(pod, local, *numbers.get(wire)?)))
        });
        let mut endpoints: BTreeMap<u32, EndpointEntry> = endpoints.collect();
        if let (Some(Want::Class(wire)), Some(host)) = (wants.get(&INTERFACE), resources.host()) {
            endpoints.insert(INTERFACE, host::endpoint(node, host, *numbers.get(wire)?));
        }
        delta.endpoints = changes(&current.endpoints, &endpoints);
        delta.netns = changes(&current.netns, &sidecars(resources, pods).collect());
        if is_new {
            let numbers: BTreeSet<u32> = numbers.into_values().collect();
            let held = current.endpoints.values().map(|endpoint| endpoint.class);
            delta.retiring = held.filter(|number| !numbers.contains(number)).collect();
        }
        // If no local identity comes, it does not matter what the classes that are left say.
        Some(delta)
    }
}

impl Known {
    /// `None` while something is kept that nobody has told of, or while it is not known what else will be told.
    fn new(inputs: Inputs<'_>, current: &Desired, ground: Ground, dictionary: &Dictionary) -> Option<Self> {
        let Inputs { resources, pods, .. } = inputs;
        let is_heard = resources.heard::<wire::WorkloadAddress>()
            && resources.heard::<wire::LocalEndpoint>()
            && resources.heard::<wire::Service>();
        let keeps = wants(resources, pods, current).values().any(|want| matches!(want, Want::Kept(_)));
        if !is_heard || keeps {
            return None;
        }
        let mentions = Mentions::in_use(resources);
        let mut known = Self {
            ground,
            own: BTreeSet::new(),
            mentions,
            claims: HashMap::new(),
            pods: BTreeMap::new(),
            services: Claims::new(resources, inputs.node),
        };
        for workload in resources.addresses.values() {
            for address in distinct(&workload.addresses) {
                *known.claims.entry(address).or_default() += 1;
            }
        }
        for (name, pod) in pods {
            known.pods.extend(pod.addresses.iter().map(|address| (address, name.clone())));
        }
        let own = known.ground.own().map(IpNet::from);
        let who = |net: IpNet| known.identity(&net, inputs, None, dictionary).unwrap_or(HOST);
        known.own = own.map(who).collect();
        Some(known)
    }

    /// Takes in what was touched, and says which prefixes may be another's now, with what the last workload that was
    /// touched and has it says. `None` if the ground has moved.
    fn note(&mut self, inputs: Inputs<'_>, touched: &Touched) -> Option<BTreeMap<IpNet, Option<u32>>> {
        let Inputs { resources, pods, .. } = inputs;
        let mut nets: BTreeMap<IpAddr, Option<u32>> = BTreeMap::new();
        for (name, before) in &touched.addresses {
            for address in before {
                if let Some(claims) = self.claims.get_mut(address) {
                    *claims = claims.saturating_sub(1);
                    if *claims == 0 {
                        self.claims.remove(address);
                    }
                }
                nets.entry(*address).or_default();
            }
            if let Some(now) = resources.addresses.get(name) {
                for address in distinct(&now.addresses) {
                    *self.claims.entry(address).or_default() += 1;
                    nets.insert(address, Some(now.identity));
                }
            }
        }
        for (name, before) in &touched.pods {
            for address in before.iter().flat_map(|pod| pod.addresses.iter()) {
                if self.pods.get(&address) == Some(name) {
                    self.pods.remove(&address);
                }
                nets.entry(address).or_default();
            }
        }
        for name in touched.pods.keys().chain(&touched.locals) {
            for address in pods.get(name).into_iter().flat_map(|pod| pod.addresses.iter()) {
                self.pods.insert(address, name.clone());
                nets.entry(address).or_default();
            }
        }
        if nets.keys().any(|address| self.ground.is_own(*address)) {
            return None;
        }
        if !touched.classes.is_empty() || !touched.locals.is_empty() {
            let in_use = resources.classes_in_use();
            let mut mentions = BTreeMap::new();
            for class in in_use {
                let known = self.mentions.remove(&class).filter(|_| !touched.classes.contains(&class));
                mentions.insert(class, known.unwrap_or_else(|| Mentions::of(resources, class)));
            }
            let all = Mentions::all(mentions.values());
            self.mentions = mentions;
            if !self.ground.rests_on(&all) {
                return None;
            }
        }
        Some(nets.into_iter().map(|(address, told)| (IpNet::from(address), told)).collect())
    }

    /// `told` is what a workload says that has the address and was touched.
    fn identity(
        &self,
        net: &IpNet,
        inputs: Inputs<'_>,
        told: Option<u32>,
        dictionary: &Dictionary,
    ) -> Option<u32> {
        let (resources, address) = (inputs.resources, net.addr());
        if let Some(pod) = self.pods.get(&address) {
            return resources.locals.get(pod).map(|local| local.identity);
        }
        let has_it = |workload: &&Address| workload.addresses.contains(&address);
        let claimed = match (self.claims.get(&address), told) {
            (None, _) => None,
            (Some(1), Some(identity)) => Some(identity),
            // Somebody else's claim, or one of several: seldom.
            _ => resources.addresses.values().rev().find(has_it).map(|workload| workload.identity),
        };
        claimed.or_else(|| self.ground.identity(net, dictionary))
    }
}

/// The same writes but for these network namespaces'. A pod that is not open yet is not opened: nothing would lead its
/// traffic to its sidecar.
fn without_sidecars(
    ops: Vec<MapOp>,
    left: &BTreeSet<u64>,
    pods: &BTreeMap<NamespacedName, Pod>,
    current: &Desired,
) -> Vec<MapOp> {
    let of: HashMap<u32, &Pod> =
        pods.values().filter(|pod| left.contains(&pod.netns_cookie)).map(|pod| (pod.ifindex, pod)).collect();
    let kept = |op: MapOp| match &op {
        MapOp::PutNetns(cookie, _) if left.contains(cookie) => None,
        MapOp::PutEndpoint(ifindex, entry) if of.contains_key(ifindex) => {
            match current.endpoints.get(ifindex).map(|held| held.incarnation) {
                Some(held) if held == entry.incarnation => Some(op),
                // An earlier pod's.
                Some(_) => Some(MapOp::RemoveEndpoint(*ifindex)),
                None => None,
            }
        }
        _ => Some(op),
    };
    ops.into_iter().filter_map(kept).collect()
}

fn distinct(addresses: &[IpAddr]) -> BTreeSet<IpAddr> {
    addresses.iter().copied().collect()
}
