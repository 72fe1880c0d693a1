//! Services, on their way to the kernel: after policy, and each by itself. One that has no room, or that the kernel refuses,
//! is reported and tried again; it keeps out neither a denial, nor a pod, nor another service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_model::resource::NamespacedName;
use xds_client::Update;
use xds_proto::{isthmus::agent::v1 as wire, type_url};

use super::Inner;
use crate::{
    desired::{MapOp, ServiceFrontend, ServiceRoom, service::claims},
    maps::MapError,
    subscribe::HostPort,
};

/// Writes of services that are still to be made.
#[derive(Debug, Default)]
pub(super) struct Refused {
    writes: BTreeMap<ServiceFrontend, (MapOp, MapError)>,
    /// The map that had no room for the first of them, if that was why.
    full: Option<&'static str>,
}

impl Refused {
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    pub(super) fn full(&self) -> Option<&'static str> {
        self.full
    }

    /// All of them in one sentence.
    fn error(&self) -> Option<MapError> {
        summary(self.writes.values().map(|(_, error)| error))
    }

    fn note(&mut self, op: MapOp, (error, full): (MapError, Option<&'static str>)) {
        self.full = self.full.or(full);
        if let MapOp::PutService(frontend, _) | MapOp::RemoveService(frontend) = &op {
            self.writes.insert(*frontend, (op, error));
        }
    }
}

fn summary<'a>(mut errors: impl Iterator<Item = &'a MapError>) -> Option<MapError> {
    let mut first = errors.next()?.clone();
    let further = errors.count();
    if further > 0 {
        first.reason = format!("{} (and {further} further addresses of services)", first.reason);
    }
    Some(first)
}

impl Inner {
    /// Makes the writes that can be made. Of those that don't fit, what the kernel has of the service stays.
    pub(super) fn serve(&mut self, ops: Vec<MapOp>) {
        let before = std::mem::take(&mut self.refused);
        if ops.is_empty() {
            return;
        }
        let mut room = ServiceRoom::new(self.planner.limits(), &self.current);
        let mut left = ops;
        // Once more where something went meanwhile.
        for _ in 0..2 {
            let mut has_freed = false;
            self.refused = Refused::default();
            for op in std::mem::take(&mut left) {
                match self.serve_one(&op, &mut room) {
                    Ok(frees) => has_freed |= frees,
                    Err(refusal) => self.refused.note(op, refusal),
                }
            }
            if self.refused.is_empty() || !has_freed {
                break;
            }
            left = self.refused.writes.values().map(|(op, _)| op.clone()).collect();
        }
        if self.refused.writes.len() != before.writes.len() {
            match self.refused.error() {
                Some(error) => tracing::error!(%error, "services are not as they should be"),
                None => tracing::info!("all services are in the kernel"),
            }
        }
    }

    /// Whether there is more room than before.
    fn serve_one(
        &mut self,
        op: &MapOp,
        room: &mut ServiceRoom,
    ) -> Result<bool, (MapError, Option<&'static str>)> {
        if let Err(full) = room.check(op, &self.current) {
            let what = match op {
                MapOp::PutService(frontend, _) => format!("writing service {}", frontend.socket()),
                _ => "removing a service".to_owned(),
            };
            return Err((MapError { what, reason: full.to_string() }, Some(full.map)));
        }
        if let Err((_, error)) = self.maps.execute(std::slice::from_ref(op)) {
            // A service that does not fit is left as it was; otherwise nobody knows.
            let full = self.maps.full();
            self.is_unsure |= full.is_none();
            return Err((error, full));
        }
        let frees = room.note(op, &self.current);
        op.apply(&mut self.current);
        Ok(frees)
    }

    /// Tries again what was refused.
    pub(super) fn retry(&mut self) -> Result<(), MapError> {
        if self.behind.is_some() || self.left_out.is_some() {
            return self.write();
        }
        self.look_again()?;
        let ops = self.refused.writes.values().map(|(op, _)| op.clone()).collect();
        self.serve(ops);
        Ok(())
    }

    /// What the kernel refused last.
    pub(super) fn behind(&self) -> Option<MapError> {
        let unset = || self.unset.values().next().map(|(error, _)| error.clone());
        let left_out = || self.left_out.clone();
        self.behind.clone().or_else(left_out).or_else(|| self.refused.error()).or_else(unset)
    }

    /// Whether all addresses that an update tells of are in the kernel, and the sidecars of the pods that one tells of.
    pub(super) fn served(&self, update: &Update) -> Result<(), MapError> {
        if let Some(error) =
            self.left_out.as_ref().filter(|_| update.type_url == type_url::<wire::LocalEndpoint>())
        {
            return Err(error.clone());
        }
        if self.refused.is_empty() {
            return Ok(());
        }
        let names = update.added.iter().filter_map(|resource| NamespacedName::parse(&resource.name));
        let told: BTreeSet<(IpAddr, u16, u8)> = if update.type_url == type_url::<wire::Service>() {
            let services = names.filter_map(|name| self.resources.services.get(&name));
            services.flat_map(|service| claims(service, self.addresses)).collect()
        } else if update.type_url == type_url::<wire::LocalEndpoint>() {
            let locals = names.filter_map(|name| self.resources.locals.get(&name));
            locals.flat_map(|local| &local.host_ports).flat_map(|port| self.leads(port)).collect()
        } else {
            return Ok(());
        };
        let is_told =
            |frontend: &ServiceFrontend| told.contains(&(frontend.address, frontend.port, frontend.protocol));
        let refused = self.refused.writes.iter().filter(|(frontend, _)| is_told(frontend));
        summary(refused.map(|(_, (_, error))| error)).map_or(Ok(()), Err)
    }

    fn leads(&self, port: &HostPort) -> Vec<(IpAddr, u16, u8)> {
        let own = match port.address {
            Some(address) => vec![address],
            None => self.addresses.iter().collect(),
        };
        own.into_iter().map(|address| (address, port.host_port, port.protocol)).collect()
    }
}
