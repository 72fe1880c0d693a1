//! Who gets in, and how often: the table's word, and the limits, counted.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use mesh_tls::{Entered, Sources, grpc::PeerInfo};

use super::{
    bucket::{Buckets, Rate},
    connections::neighbours,
    limits::{LimitReached, Limits, Slot, Slots, TABLE},
};
use crate::authz::{Action, Caller, Role};

/// One address has one of so many parts of what all callers without a certificate have.
const SHARES: usize = 4;

/// What certificates are signed for.
pub const SIGNED: [&str; 5] = ["workload", "node", "replica", "administrator", "jwt"];

/// A connection that is open, until dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    _all: Slot,
    _of_address: Option<Entered<IpAddr>>,
}

/// A call of what is open to everybody, while it is read.
#[derive(Debug)]
pub struct Newcomer {
    _all: Slot,
    _of_address: Entered<IpAddr>,
}

/// One for all doors of a replica.
#[derive(Debug)]
pub struct Gate {
    /// What callers may have.
    pub limits: Limits,
    buckets: Mutex<Buckets<String>>,
    waits: Slots,
    backups: Slots,
    watches: Slots,
    watches_of: Mutex<BTreeMap<String, Slots>>,
    connections: Slots,
    newcomers: Slots,
    newcomers_of: Sources<IpAddr>,
    calls: Slots,
    calls_of: Sources<IpAddr>,
    /// Requests that the table refused, by role.
    denied: [AtomicU64; Role::ALL.len()],
    /// Certificates, in the order of [`SIGNED`].
    signed: [AtomicU64; SIGNED.len()],
    /// Requests beyond a limit, in the order of [`TABLE`].
    limited: [AtomicU64; TABLE.len()],
}

impl Gate {
    /// Nobody has come yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            connections: Slots::default(),
            newcomers: Slots::default(),
            newcomers_of: Sources::at_most(limits.newcomer_connections_per_address),
            calls: Slots::default(),
            calls_of: Sources::at_most(limits.newcomer_calls.div_ceil(SHARES)),
            limits,
            buckets: Mutex::default(),
            waits: Slots::default(),
            backups: Slots::default(),
            watches: Slots::default(),
            watches_of: Mutex::default(),
            denied: std::array::from_fn(|_| AtomicU64::new(0)),
            signed: std::array::from_fn(|_| AtomicU64::new(0)),
            limited: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// One more request of a caller; `address` tells those without a certificate apart.
    ///
    /// # Errors
    /// Too many a second.
    pub fn rate(
        &self,
        caller: &Caller,
        address: &str,
        action: Action,
        now: Instant,
    ) -> Result<(), LimitReached> {
        let Limits { admin_requests, node_requests, newcomer_requests, .. } = self.limits;
        let (name, per_second, times, who) = match (caller, action) {
            // Raft has its own flow control, and its heartbeats must get through.
            (_, Action::Raft) | (Caller::LocalRoot, _) => return Ok(()),
            (Caller::Admin(_) | Caller::Replica(_), _) => {
                ("admin-requests", admin_requests, 2, caller.to_string())
            }
            (Caller::Node(_), _) => ("node-requests", node_requests, 5, caller.to_string()),
            _ => ("newcomer-requests", newcomer_requests, 5, format!("{caller} at {address}")),
        };
        let rate = Rate { per_second, burst: per_second.saturating_mul(times) };
        let there = {
            let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            buckets.take(who.clone(), rate, now)
        };
        if there {
            return Ok(());
        }
        let (unit, next) = ("requests a second", "try again a little later");
        Err(self.count(LimitReached { name, value: per_second, unit, who, next }))
    }

    /// One more wait for data planes, until the slot is dropped.
    ///
    /// # Errors
    /// Too many at once.
    pub fn wait(&self, caller: &Caller) -> Result<Slot, LimitReached> {
        let value = self.limits.waits;
        self.waits.take(value).ok_or_else(|| {
            let next = "apply without --wait and look at the status";
            self.count(LimitReached { name: "waits", value, unit: "at once", who: caller.to_string(), next })
        })
    }

    /// One more backup, until the slot is dropped.
    ///
    /// # Errors
    /// Too many at once.
    pub fn backup(&self, caller: &Caller) -> Result<Slot, LimitReached> {
        let value = self.limits.backups;
        self.backups.take(value).ok_or_else(|| {
            let next = "wait for one of them to end";
            self.count(LimitReached {
                name: "backups",
                value,
                unit: "at once",
                who: caller.to_string(),
                next,
            })
        })
    }

    /// One more watch or observer, until the slots are dropped.
    ///
    /// # Errors
    /// Too many at once.
    pub fn watch(&self, caller: &Caller) -> Result<[Slot; 2], LimitReached> {
        let Limits { watches: all, watches_per_client: each, .. } = self.limits;
        let who = caller.to_string();
        let reached = |name, value, next| {
            self.count(LimitReached { name, value, unit: "at once", who: who.clone(), next })
        };
        let of_caller = {
            let mut callers = self.watches_of.lock().unwrap_or_else(PoisonError::into_inner);
            callers.retain(|_, slots| slots.open() > 0);
            callers.entry(who.clone()).or_default().clone()
        };
        let of_caller =
            of_caller.take(each).ok_or_else(|| reached("watches-per-client", each, "end some first"))?;
        let of_all = self
            .watches
            .take(all)
            .ok_or_else(|| reached("watches", all, "ask another replica, or raise it with --limit"))?;
        Ok([of_caller, of_all])
    }

    /// One more connection to the mesh door, until the slot is dropped.
    ///
    /// # Errors
    /// Too many at once.
    pub fn connection(&self, peer: &PeerInfo) -> Result<ConnectionSlot, LimitReached> {
        let Limits { connections, newcomer_connections, newcomer_connections_per_address, .. } = self.limits;
        let reached = |name, value| {
            let who = match &peer.spiffe_id {
                Some(id) => id.to_string(),
                None => format!("{} at {}", Caller::Anonymous, peer.addr.ip()),
            };
            let next = "end some first, or ask another replica";
            self.count(LimitReached { name, value, unit: "at once", who, next })
        };
        if peer.spiffe_id.is_some() {
            let all = self.connections.take(connections);
            let all = all.ok_or_else(|| reached("connections", connections))?;
            return Ok(ConnectionSlot { _all: all, _of_address: None });
        }
        let of_address = self
            .newcomers_of
            .enter(neighbours(peer.addr.ip()))
            .ok_or_else(|| reached("newcomer-connections-per-address", newcomer_connections_per_address))?;
        let all = self.newcomers.take(newcomer_connections);
        let all = all.ok_or_else(|| reached("newcomer-connections", newcomer_connections))?;
        Ok(ConnectionSlot { _all: all, _of_address: Some(of_address) })
    }

    /// One more request of what is open to everybody, until the place is dropped.
    ///
    /// # Errors
    /// Too many at once.
    pub fn newcomer_call(&self, address: IpAddr) -> Result<Newcomer, LimitReached> {
        let value = self.limits.newcomer_calls;
        let of_address = self.calls_of.enter(neighbours(address));
        let both = of_address.and_then(|of_address| Some((of_address, self.calls.take(value)?)));
        let Some((of_address, all)) = both else {
            let who = format!("a newcomer at {address}");
            let (unit, next) = ("at once, a fourth of them from one address", "try again a little later");
            return Err(self.count(LimitReached { name: "newcomer-calls", value, unit, who, next }));
        };
        Ok(Newcomer { _all: all, _of_address: of_address })
    }

    /// Connections that are open to the mesh door, with a certificate and without.
    pub fn connected(&self) -> (usize, usize) {
        (self.connections.open(), self.newcomers.open())
    }

    /// Counts a refusal of the table.
    pub fn denied(&self, role: Role) {
        if let Some(index) = Role::ALL.iter().position(|known| *known == role) {
            self.denied[index].fetch_add(1, Relaxed);
        }
    }

    /// Refusals of the table, by role.
    pub fn denials(&self) -> impl Iterator<Item = (Role, u64)> {
        Role::ALL.into_iter().zip(self.denied.iter().map(|count| count.load(Relaxed)))
    }

    /// Counts a certificate, or a token, that was signed for one of [`SIGNED`].
    pub fn has_signed(&self, purpose: &str) {
        if let Some(index) = SIGNED.iter().position(|known| *known == purpose) {
            self.signed[index].fetch_add(1, Relaxed);
        }
    }

    /// Certificates signed, by what for.
    pub fn signed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        SIGNED.into_iter().zip(self.signed.iter().map(|count| count.load(Relaxed)))
    }

    /// Counts a refusal beyond a limit, and hands it on.
    pub fn count(&self, reached: LimitReached) -> LimitReached {
        if let Some(index) = TABLE.iter().position(|(name, ..)| *name == reached.name) {
            self.limited[index].fetch_add(1, Relaxed);
        }
        reached
    }

    /// Refusals beyond a limit, by its name.
    pub fn limited(&self) -> impl Iterator<Item = (&'static str, u64)> {
        TABLE.iter().map(|(name, ..)| *name).zip(self.limited.iter().map(|count| count.load(Relaxed)))
    }

    /// Waits and watches that are open.
    pub fn open(&self) -> (usize, usize) {
        (self.waits.open(), self.watches.open())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(Limits {
            node_requests: 2,
            admin_requests: 2,
            newcomer_requests: 2,
            watches: 3,
            watches_per_client: 2,
            waits: 1,
            ..Limits::default()
        })
    }

    fn node(name: &str) -> Caller {
        Caller::Node(name.to_owned())
    }

    fn served(gate: &Gate, caller: &Caller, address: &str) -> usize {
        let now = Instant::now();
        (0..100).filter(|_| gate.rate(caller, address, Action::ReportEndpoints, now).is_ok()).count()
    }

    #[test]
    fn a_node_that_asks_too_often_is_refused_and_the_others_are_not() {
        let gate = gate();
        assert_eq!((served(&gate, &node("n1"), "x"), served(&gate, &node("n2"), "x")), (10, 10));
        let reached = gate.rate(&node("n1"), "x", Action::SignWorkload, Instant::now()).unwrap_err();
        assert_eq!(
            reached.to_string(),
            "node n1 is at the limit node-requests: 2 requests a second; try again a little later"
        );
        assert_eq!(tonic::Status::from(reached).code(), tonic::Code::ResourceExhausted);
        assert!(gate.limited().any(|(name, count)| name == "node-requests" && count > 100));
    }

    #[test]
    fn newcomers_are_told_apart_by_their_address() {
        let gate = gate();
        assert_eq!(served(&gate, &Caller::Anonymous, "192.0.2.1"), 10);
        assert_eq!(served(&gate, &Caller::Anonymous, "192.0.2.1"), 0);
        assert_eq!(served(&gate, &Caller::Anonymous, "192.0.2.2"), 10);
    }

    #[test]
    fn the_local_administrator_and_raft_are_not_limited() {
        let gate = gate();
        assert_eq!(served(&gate, &Caller::LocalRoot, ""), 100);
        let raft = |_| gate.rate(&Caller::Replica(2), "", Action::Raft, Instant::now()).is_ok();
        assert!((0..100).all(raft));
    }

    #[test]
    fn watches_are_limited_per_caller_and_in_total() {
        let gate = gate();
        let held: Vec<_> = (0..2).map(|_| gate.watch(&node("a")).unwrap()).collect();
        assert_eq!(gate.watch(&node("a")).unwrap_err().name, "watches-per-client");
        let _other = gate.watch(&node("b")).unwrap();
        assert_eq!(gate.watch(&node("c")).unwrap_err().name, "watches");
        drop(held);
        assert!(gate.watch(&node("a")).is_ok());
    }

    fn from(address: &str, id: Option<&str>) -> PeerInfo {
        let spiffe_id = id.map(|id| mesh_model::identity::SpiffeId::parse(id).unwrap());
        PeerInfo { spiffe_id, registration: None, addr: address.parse().unwrap() }
    }

    #[test]
    fn connections_without_a_certificate_are_few_and_take_no_room_from_the_others() {
        let gate = Gate::new(Limits {
            connections: 1,
            newcomer_connections: 3,
            newcomer_connections_per_address: 2,
            ..Limits::default()
        });
        let mut held: Vec<_> = (0..2).map(|_| gate.connection(&from("192.0.2.1:9", None)).unwrap()).collect();
        let refused = gate.connection(&from("192.0.2.1:10", None)).unwrap_err();
        assert_eq!((refused.name, refused.value), ("newcomer-connections-per-address", 2));
        held.push(gate.connection(&from("192.0.2.2:9", None)).unwrap());
        let refused = gate.connection(&from("192.0.2.3:9", None)).unwrap_err();
        assert_eq!((refused.name, refused.value), ("newcomer-connections", 3));
        let node = from("192.0.2.1:11", Some("spiffe://west.example/isthmus/node/n1"));
        let known = gate.connection(&node).unwrap();
        assert_eq!(gate.connection(&node).unwrap_err().name, "connections");
        assert_eq!(gate.connected(), (1, 3));
        drop((known, held));
        assert_eq!(gate.connected(), (0, 0));
        assert!(gate.connection(&from("192.0.2.3:9", None)).is_ok(), "what was refused holds no place");
    }

    #[test]
    fn one_address_has_a_fourth_of_the_calls_without_a_certificate() {
        let gate = Gate::new(Limits { newcomer_calls: 8, ..Limits::default() });
        let from = |last: u8| gate.newcomer_call(std::net::Ipv4Addr::new(192, 0, 2, last).into());
        let held: Vec<_> = (0..8).map(|n| from(n / 2).unwrap()).collect();
        assert_eq!(from(0).unwrap_err().name, "newcomer-calls");
        assert_eq!(from(9).unwrap_err().name, "newcomer-calls", "all places are taken");
        drop(held);
        assert!(from(9).is_ok());
    }

    #[test]
    fn waits_are_limited() {
        let gate = gate();
        let held = gate.wait(&Caller::LocalRoot).unwrap();
        let refused = gate.wait(&Caller::LocalRoot).unwrap_err().to_string();
        assert!(refused.contains("the local administrator is at the limit waits: 1 at once"), "{refused}");
        drop(held);
        assert!(gate.wait(&Caller::LocalRoot).is_ok());
    }
}
