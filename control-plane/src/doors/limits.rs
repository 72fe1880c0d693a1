//! What one replica lets its callers have. Every refusal names the limit and its value, and `--limit name=value`
//! changes it.

use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tonic::Status;

macro_rules! limits {
    ($($field:ident, $name:literal, $default:literal, $what:literal;)+) => {
        /// How much of each thing. See [`TABLE`].
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub struct Limits {
            $(pub $field: usize,)+
        }

        /// Name, default and meaning of every limit.
        pub const TABLE: &[(&str, usize, &str)] = &[$(($name, $default, $what),)+];

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl Limits {
            /// These limits, but for one.
            pub fn set(&mut self, setting: &Setting) {
                match setting.name {
                    $($name => self.$field = setting.value,)+
                    _ => {}
                }
            }
        }
    };
}

limits! {
    xds_streams, "xds-streams", 20_000,
        "xDS streams of all clients together";
    xds_streams_per_client, "xds-streams-per-client", 32,
        "xDS streams of one data plane or peer";
    xds_requests, "xds-requests", 1_000,
        "requests a second on one xDS stream; ten times as many at once";
    admin_requests, "admin-requests", 500,
        "requests a second of one administrator or replica; twice as many at once. The local administrator has no such limit";
    node_requests, "node-requests", 200,
        "requests a second of one node; five times as many at once";
    newcomer_requests, "newcomer-requests", 20,
        "requests a second from one address without a certificate of this mesh; five times as many at once";
    connections, "connections", 20_000,
        "connections with a certificate to the mesh door, of all callers together";
    newcomer_connections, "newcomer-connections", 1_024,
        "connections to it without one";
    newcomer_connections_per_address, "newcomer-connections-per-address", 64,
        "of these, from one address (IPv6: from one /64)";
    newcomer_calls, "newcomer-calls", 256,
        "requests of newcomers, with a token, that are being read at once; a fourth of them from one address";
    watches, "watches", 1_000,
        "watches of objects, observers of flows and streams of CSDS of all callers together";
    watches_per_client, "watches-per-client", 64,
        "watches of objects, observers of flows and streams of CSDS of one caller";
    watch_backlog, "watch-backlog", 1_024,
        "events that a watch may be behind before it is cut";
    waits, "waits", 256,
        "waits for data planes (apply --wait) at once";
    backups, "backups", 4,
        "backups that are being taken";
}

/// One `--limit name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    name: &'static str,
    value: usize,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("is not <name>=<number>")?;
        let known = TABLE.iter().find(|(known, ..)| *known == name);
        let Some((name, ..)) = known else {
            let names: Vec<_> = TABLE.iter().map(|(name, ..)| *name).collect();
            return Err(format!("names no limit; there are {}", names.join(", ")));
        };
        match value.parse() {
            Ok(value) if (1..=10_000_000).contains(&value) => Ok(Self { name, value }),
            _ => Err("must be a number from 1 to 10000000".to_owned()),
        }
    }
}

/// More was asked for than a limit allows. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{who} is at the limit {name}: {value} {unit}; {next}")]
pub struct LimitReached {
    /// As in [`TABLE`].
    pub name: &'static str,
    /// What it is set to.
    pub value: usize,
    /// Of what.
    pub unit: &'static str,
    /// Who asked.
    pub who: String,
    /// What to do.
    pub next: &'static str,
}

impl From<LimitReached> for Status {
    fn from(reached: LimitReached) -> Self {
        Status::resource_exhausted(reached.to_string())
    }
}

/// Counts what is open, up to a limit.
#[derive(Debug, Default, Clone)]
pub struct Slots(Arc<AtomicUsize>);

/// One that is open, until dropped.
#[derive(Debug)]
pub struct Slot(Arc<AtomicUsize>);

impl Slots {
    /// Takes a slot if fewer than `limit` are taken.
    pub fn take(&self, limit: usize) -> Option<Slot> {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < limit).then_some(open + 1));
        taken.is_ok().then(|| Slot(self.0.clone()))
    }

    /// How many are taken.
    pub fn open(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_set_by_name_and_a_wrong_name_lists_the_right_ones() {
        let mut limits = Limits::default();
        limits.set(&"waits=3".parse().unwrap());
        assert_eq!(limits, Limits { waits: 3, ..Limits::default() });
        for bad in ["waits", "waits=", "waits=0", "waits=-1", "waits=99999999999"] {
            assert!(bad.parse::<Setting>().is_err(), "{bad}");
        }
        assert!("weights=3".parse::<Setting>().unwrap_err().contains("xds-streams-per-client"));
    }

    #[test]
    fn every_limit_can_be_set() {
        for (name, default, _) in TABLE {
            let mut limits = Limits::default();
            limits.set(&format!("{name}={}", default + 1).parse().unwrap());
            assert_ne!(limits, Limits::default(), "{name}");
        }
    }

    #[test]
    fn slots_are_given_back() {
        let slots = Slots::default();
        let held: Vec<_> = (0..2).map(|_| slots.take(2).unwrap()).collect();
        assert!(slots.take(2).is_none());
        drop(held);
        assert_eq!(slots.open(), 0);
        assert!(slots.take(2).is_some());
    }
}
