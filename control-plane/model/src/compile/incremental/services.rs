//! Which services a change concerns, and what each of them is made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    super::{
        Input, MeshModel, MeshWorkload,
        services::{Lookup, Offer},
    },
    labels::{Labelled, Selectors, remove_from},
};
use crate::{
    records::PeerRecord,
    resource::{
        EndpointSlice, HttpRoute, Kind, LabelSelector, NamespacedName, Object, ObjectKey, Service, Workload,
        matches_labels,
    },
};

#[derive(Debug, Clone, Default)]
pub(super) struct Services {
    selectors: Selectors<NamespacedName>,
    /// Slices of a service.
    slices: BTreeMap<NamespacedName, BTreeSet<NamespacedName>>,
    /// Slices that list an address.
    slices_at: BTreeMap<IpAddr, BTreeSet<NamespacedName>>,
    /// Peers that export a service.
    importers: BTreeMap<NamespacedName, BTreeSet<String>>,
    /// Routes that name a service as their parent.
    routes: BTreeMap<NamespacedName, BTreeSet<NamespacedName>>,
}

impl Services {
    /// An object is new, different or gone: adds the services that this concerns. Workloads have
    /// [`workload`](Self::workload).
    pub(super) fn object(
        &mut self,
        key: &ObjectKey,
        old: Option<&Object>,
        new: Option<&Object>,
        declared: &Labelled<NamespacedName>,
        touched: &mut BTreeSet<NamespacedName>,
    ) {
        match key.kind {
            Kind::Service => {
                self.selectors.remove(&key.name);
                if let Some(Object::Service(service)) = new
                    && !service.selector.is_empty()
                {
                    let namespace = Some(key.name.namespace.as_str());
                    let selector = LabelSelector {
                        match_labels: service.selector.clone(),
                        match_expressions: Vec::new(),
                    };
                    self.selectors.insert(&key.name, namespace, declared.anchor(namespace, &selector));
                }
                touched.insert(key.name.clone());
            }
            Kind::ServiceExport => drop(touched.insert(key.name.clone())),
            Kind::EndpointSlice => {
                if let Some(Object::EndpointSlice(slice)) = old {
                    let service = service_of(slice);
                    remove_from(&mut self.slices, &service, &key.name);
                    for ip in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
                        remove_from(&mut self.slices_at, ip, &key.name);
                    }
                    touched.insert(service);
                }
                if let Some(Object::EndpointSlice(slice)) = new {
                    let service = service_of(slice);
                    self.slices.entry(service.clone()).or_default().insert(key.name.clone());
                    for ip in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
                        self.slices_at.entry(*ip).or_default().insert(key.name.clone());
                    }
                    touched.insert(service);
                }
            }
            Kind::HttpRoute => {
                if let Some(Object::HttpRoute(route)) = old {
                    for parent in &route.parents {
                        remove_from(&mut self.routes, &parent.service, &key.name);
                        touched.insert(parent.service.clone());
                    }
                }
                if let Some(Object::HttpRoute(route)) = new {
                    for parent in &route.parents {
                        self.routes.entry(parent.service.clone()).or_default().insert(key.name.clone());
                        touched.insert(parent.service.clone());
                    }
                }
            }
            Kind::Workload
            | Kind::NetworkPolicy
            | Kind::Sidecar
            | Kind::CiliumNetworkPolicy
            | Kind::CiliumClusterwideNetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::Namespace => {}
        }
    }

    /// A workload is new, different or gone: as it was or as it is.
    pub(super) fn workload(
        &self,
        input: &Input,
        declared: Option<&Workload>,
        compiled: Option<&MeshWorkload>,
        touched: &mut BTreeSet<NamespacedName>,
    ) {
        if let Some(workload) = declared {
            let namespace = workload.meta.name.namespace.as_str();
            for name in self.selectors.candidates(namespace, &workload.meta.labels) {
                touched.insert(name.clone());
            }
        }
        let bindings = compiled.into_iter().flat_map(|workload| &workload.binding);
        for ip in bindings.flat_map(|binding| &binding.addresses) {
            for slice in self.slices_at.get(ip).into_iter().flatten() {
                if let Some(Object::EndpointSlice(slice)) = input.object(Kind::EndpointSlice, slice) {
                    touched.insert(service_of(slice));
                }
            }
        }
    }

    /// A peer is new, different or gone.
    pub(super) fn peer(
        &mut self,
        cluster: &str,
        old: Option<&Arc<PeerRecord>>,
        new: Option<&Arc<PeerRecord>>,
        touched: &mut BTreeSet<NamespacedName>,
    ) {
        use imbl::ordmap::DiffItem;
        let empty = imbl::OrdMap::new();
        let imports =
            |peer: Option<&Arc<PeerRecord>>| peer.map_or(empty.clone(), |peer| peer.imports.clone());
        let (before, after) = (imports(old), imports(new));
        for item in before.diff(&after) {
            match item {
                DiffItem::Add(name, _) => {
                    self.importers.entry(name.clone()).or_default().insert(cluster.to_owned());
                    touched.insert(name.clone());
                }
                DiffItem::Remove(name, _) => {
                    remove_from(&mut self.importers, name, &cluster.to_owned());
                    touched.insert(name.clone());
                }
                DiffItem::Update { new: (name, _), .. } => drop(touched.insert(name.clone())),
            }
        }
        let same = match (old, new) {
            (Some(old), Some(new)) => {
                old.trust_domain == new.trust_domain
                    && old.mesh_domain == new.mesh_domain
                    && old.gateways == new.gateways
                    && old.cluster == new.cluster
            }
            _ => false,
        };
        if !same {
            touched.extend(after.keys().cloned());
        }
    }

    /// Slices of a service, in the order of their names.
    pub(super) fn slices_of<'a>(&self, input: &'a Input, service: &NamespacedName) -> Vec<&'a EndpointSlice> {
        let names = self.slices.get(service).into_iter().flatten();
        names
            .filter_map(|name| match input.object(Kind::EndpointSlice, name) {
                Some(Object::EndpointSlice(slice)) => Some(slice),
                _ => None,
            })
            .collect()
    }

    /// A route's age is known, or known to be another. The route itself may be the same.
    pub(super) fn aged(&self, route: Option<&Object>, touched: &mut BTreeSet<NamespacedName>) {
        if let Some(Object::HttpRoute(route)) = route {
            touched.extend(route.parents.iter().map(|parent| parent.service.clone()));
        }
    }
}

/// Answers from what is kept.
pub(super) struct Kept<'a> {
    pub(super) input: &'a Input,
    pub(super) model: &'a MeshModel,
    pub(super) declared: &'a Labelled<NamespacedName>,
    pub(super) services: &'a Services,
}

impl<'a> Lookup<'a> for Kept<'a> {
    fn selected(&self, service: &Service) -> Vec<(&'a Workload, &'a MeshWorkload)> {
        let namespace = Some(service.meta.name.namespace.as_str());
        let selector =
            LabelSelector { match_labels: service.selector.clone(), match_expressions: Vec::new() };
        let anchor = self.declared.anchor(namespace, &selector);
        let candidates = self.declared.candidates(namespace, &anchor);
        candidates
            .into_iter()
            .filter_map(|name| match self.input.object(Kind::Workload, name) {
                Some(Object::Workload(workload)) => Some(workload),
                _ => None,
            })
            .filter(|workload| matches_labels(&service.selector, &workload.meta.labels))
            .filter_map(|workload| Some((workload, self.model.workloads.get(&workload.meta.name)?.as_ref())))
            .collect()
    }

    fn slices(&self, service: &NamespacedName) -> Vec<&'a EndpointSlice> {
        self.services.slices_of(self.input, service)
    }

    fn at(&self, address: IpAddr) -> Option<&'a MeshWorkload> {
        self.model.workload_at(address)
    }

    fn offers(&self, service: &NamespacedName) -> Vec<Offer<'a>> {
        let clusters = self.services.importers.get(service).into_iter().flatten();
        clusters
            .filter_map(|cluster| {
                let peer = self.input.peers.get(cluster)?.as_ref();
                Some((peer, peer.imports.get(service)?.as_ref()))
            })
            .collect()
    }

    fn routes(&self, service: &NamespacedName) -> Vec<&'a HttpRoute> {
        let names = self.services.routes.get(service).into_iter().flatten();
        names
            .filter_map(|name| match self.input.object(Kind::HttpRoute, name) {
                Some(Object::HttpRoute(route)) => Some(route),
                _ => None,
            })
            .collect()
    }
}

fn service_of(slice: &EndpointSlice) -> NamespacedName {
    NamespacedName::new(&slice.meta.name.namespace, &slice.service)
}
