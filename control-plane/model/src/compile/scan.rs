//! Looks things up for services by walking over everything first.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Input, MeshService, MeshWorkload,
    services::{self, Lookup, Offer},
    workloads::declared,
};
use crate::resource::{EndpointSlice, HttpRoute, NamespacedName, Object, Service, Workload, matches_labels};

/// Every service, local and imported.
pub(super) fn services(
    input: &Input,
    workloads: &BTreeMap<NamespacedName, MeshWorkload>,
) -> BTreeMap<NamespacedName, MeshService> {
    let scan = Scan::new(input, workloads);
    let local = input.objects.values().filter_map(|object| match object.as_ref() {
        Object::Service(service) => Some(&service.meta.name),
        _ => None,
    });
    let names: BTreeSet<&NamespacedName> = local.chain(scan.imports.keys().copied()).collect();
    names.into_iter().filter_map(|name| Some((name.clone(), services::one(input, &scan, name)?))).collect()
}

struct Scan<'a> {
    workloads: &'a BTreeMap<NamespacedName, MeshWorkload>,
    by_namespace: BTreeMap<&'a str, Vec<&'a Workload>>,
    by_address: BTreeMap<IpAddr, &'a MeshWorkload>,
    slices: BTreeMap<NamespacedName, Vec<&'a EndpointSlice>>,
    imports: BTreeMap<&'a NamespacedName, Vec<Offer<'a>>>,
    routes: BTreeMap<&'a NamespacedName, Vec<&'a HttpRoute>>,
}

impl<'a> Scan<'a> {
    fn new(input: &'a Input, workloads: &'a BTreeMap<NamespacedName, MeshWorkload>) -> Self {
        let mut scan = Self {
            workloads,
            by_namespace: BTreeMap::new(),
            by_address: BTreeMap::new(),
            slices: BTreeMap::new(),
            imports: BTreeMap::new(),
            routes: BTreeMap::new(),
        };
        for workload in declared(input) {
            scan.by_namespace.entry(&workload.meta.name.namespace).or_default().push(workload);
        }
        for workload in workloads.values() {
            for ip in workload.binding.iter().flat_map(|b| &b.addresses) {
                scan.by_address.entry(*ip).or_insert(workload);
            }
        }
        for object in input.objects.values() {
            match object.as_ref() {
                Object::EndpointSlice(slice) => {
                    let service = NamespacedName::new(&slice.meta.name.namespace, &slice.service);
                    scan.slices.entry(service).or_default().push(slice);
                }
                Object::HttpRoute(route) => {
                    for service in route.parents.iter().map(|p| &p.service).collect::<BTreeSet<_>>() {
                        scan.routes.entry(service).or_default().push(route);
                    }
                }
                _ => {}
            }
        }
        for peer in input.peers.values() {
            for (name, service) in &peer.imports {
                scan.imports.entry(name).or_default().push((peer.as_ref(), service.as_ref()));
            }
        }
        scan
    }
}

impl<'a> Lookup<'a> for Scan<'a> {
    fn selected(&self, service: &Service) -> Vec<(&'a Workload, &'a MeshWorkload)> {
        let namespace = service.meta.name.namespace.as_str();
        let all = self.by_namespace.get(namespace).into_iter().flatten().copied();
        all.filter(|workload| matches_labels(&service.selector, &workload.meta.labels))
            .filter_map(|workload| Some((workload, self.workloads.get(&workload.meta.name)?)))
            .collect()
    }

    fn slices(&self, service: &NamespacedName) -> Vec<&'a EndpointSlice> {
        self.slices.get(service).cloned().unwrap_or_default()
    }

    fn at(&self, address: IpAddr) -> Option<&'a MeshWorkload> {
        self.by_address.get(&address).copied()
    }

    fn offers(&self, service: &NamespacedName) -> Vec<Offer<'a>> {
        self.imports.get(service).cloned().unwrap_or_default()
    }

    fn routes(&self, service: &NamespacedName) -> Vec<&'a HttpRoute> {
        self.routes.get(service).cloned().unwrap_or_default()
    }
}
