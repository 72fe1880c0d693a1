//! How endpoints are chosen: `lb_policy` with its `lb_config`, `common_lb_config` and `lb_subset_config`, and the same
//! as `load_balancing_policy` (see `lb_extension.rs`).
//!
//! Runtime keys have no effect here: there is no runtime, so the default value counts, as it does in an Envoy without one.

use std::{collections::BTreeSet, time::Duration};

use serde::Serialize;
use xds_proto::{
    envoy::{
        config::{
            cluster::v3::cluster::{
                CommonLbConfig, LbConfig, LbPolicy, LbSubsetConfig, LeastRequestLbConfig, MaglevLbConfig,
                RingHashLbConfig, SlowStartConfig,
                common_lb_config::{self, LocalityConfigSpecifier},
                lb_subset_config::LbSubsetSelector,
            },
            core::v3::RuntimeDouble,
        },
        r#type::v3::Percent,
    },
    google::protobuf::{UInt32Value, UInt64Value},
};

use super::{
    error::Path,
    metadata,
    wire::{Result, duration_or, refuse, u32_or},
};
use crate::balance::{
    Criteria, Fallback, HashFunction, Policy, Selector, SlowStart, SubsetConfig, TableKind, ZoneAware,
};

/// Largest ring and largest Maglev table, as in Envoy.
const MAX_RING: u64 = 8 * 1024 * 1024;
const MAX_MAGLEV: u64 = 5_000_011;
/// Most selectors of subsets: each endpoint is sorted by each of them.
const MAX_SELECTORS: usize = 64;

/// Which localities get how much.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Localities {
    /// As much as their endpoints.
    Flat,
    /// By their weights.
    Weighted,
    /// The proxy's own first.
    Zones(ZoneAware),
}

/// Everything that the choice of an endpoint goes by.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Balancing {
    /// See [`Policy`].
    pub policy: Policy,
    /// Shares of new endpoints grow.
    pub slow_start: Option<SlowStart>,
    /// See [`Localities`].
    pub localities: Localities,
    /// Whether tables are made of host names instead of addresses.
    pub hash_by_name: bool,
    /// Most requests of an endpoint, in percent of the average.
    pub balance_percent: Option<u32>,
    /// See [`SubsetConfig`].
    pub subset: Option<SubsetConfig>,
    /// Headers that name the endpoint; the first one that does is believed.
    pub override_headers: Vec<String>,
}

impl Balancing {
    pub(super) fn of(policy: Policy) -> Self {
        Self {
            policy,
            slow_start: None,
            localities: Localities::Flat,
            hash_by_name: false,
            balance_percent: None,
            subset: None,
            override_headers: vec![],
        }
    }
}

/// `common_lb_config`.
pub(super) struct Common {
    pub(super) panic_threshold: u32,
    pub(super) close_on_change: bool,
    localities: Localities,
    hash_by_name: bool,
    balance_percent: Option<u32>,
}

pub(super) fn common(path: &Path<'_>, wire: Option<CommonLbConfig>) -> Result<Common> {
    let CommonLbConfig {
        healthy_panic_threshold,
        // Updates are applied at once.
        update_merge_window: _,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = wire.unwrap_or_default();
    refuse!(path; override_host_status, ignore_new_hosts_until_first_hc);
    let localities = match locality_config_specifier {
        None => Localities::Flat,
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Localities::Weighted,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(wire)) => {
            let common_lb_config::ZoneAwareLbConfig {
                routing_enabled,
                min_cluster_size,
                fail_traffic_on_panic,
            } = wire;
            let path = path.field("zone_aware_lb_config");
            Localities::Zones(zone_aware(&path, routing_enabled, min_cluster_size, fail_traffic_on_panic)?)
        }
    };
    let common_lb_config::ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor } =
        consistent_hashing_lb_config.unwrap_or_default();
    let factor_path = path.field("consistent_hashing_lb_config");
    Ok(Common {
        panic_threshold: percent(&path.field("healthy_panic_threshold"), healthy_panic_threshold, 50.0)?
            as u32,
        close_on_change: close_connections_on_host_set_change,
        localities,
        hash_by_name: use_hostname_for_hashing,
        balance_percent: balance_factor(&factor_path.field("hash_balance_factor"), hash_balance_factor)?,
    })
}

pub(super) fn balance_factor(path: &Path<'_>, wire: Option<UInt32Value>) -> Result<Option<u32>> {
    match wire.map(|factor| factor.value) {
        None | Some(0) => Ok(None),
        Some(factor) if factor < 100 => Err(path.invalid(factor, "must be 100 or more")),
        some => Ok(some),
    }
}

pub(super) fn zone_aware(
    path: &Path<'_>,
    routing_enabled: Option<Percent>,
    min_cluster_size: Option<UInt64Value>,
    fail_on_panic: bool,
) -> Result<ZoneAware> {
    Ok(ZoneAware {
        enabled_percent: percent(&path.field("routing_enabled"), routing_enabled, 100.0)?,
        min_size: min_cluster_size.map_or(6, |size| size.value),
        fail_on_panic,
    })
}

pub(super) fn percent(path: &Path<'_>, wire: Option<Percent>, default: f64) -> Result<f64> {
    let value = wire.map_or(default, |p| p.value);
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err(path.invalid(value, "must be 0 to 100")) }
}

/// `lb_policy`, `lb_config`, `lb_subset_config`.
pub(super) fn legacy(
    path: &Path<'_>,
    policy: i32,
    config: Option<LbConfig>,
    subset: Option<LbSubsetConfig>,
    common: &Common,
) -> Result<Balancing> {
    let lb_policy = path.field("lb_policy");
    let known = LbPolicy::try_from(policy).map_err(|_| lb_policy.invalid(policy, "is unknown"))?;
    // A config of another policy has no effect in Envoy; here it is refused, as nobody can have meant it.
    let mut slow_start = None;
    let policy = match (known, config) {
        (LbPolicy::RoundRobin, None) => Policy::RoundRobin,
        (LbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(wire))) => {
            slow_start = legacy_slow_start(&path.field("round_robin_lb_config"), wire.slow_start_config)?;
            Policy::RoundRobin
        }
        (LbPolicy::LeastRequest, config) => {
            let wire = match config {
                None => LeastRequestLbConfig::default(),
                Some(LbConfig::LeastRequestLbConfig(wire)) => wire,
                Some(_) => return Err(path.field("lb_config").invalid(policy, "is not for this lb_policy")),
            };
            let path = path.field("least_request_lb_config");
            let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = wire;
            slow_start = legacy_slow_start(&path, slow_start_config)?;
            least_request(&path, choice_count, active_request_bias, false)?
        }
        (LbPolicy::Random, None) => Policy::Random,
        (LbPolicy::RingHash, None) => ring(path, 1, None, None)?,
        (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(wire))) => {
            let RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size } = wire;
            let path = path.field("ring_hash_lb_config");
            let function = match hash_function {
                0 => 1,
                1 => 2,
                other => return Err(path.field("hash_function").invalid(other, "is unknown")),
            };
            ring(&path, function, minimum_ring_size, maximum_ring_size)?
        }
        (LbPolicy::Maglev, None) => maglev(path, None)?,
        (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size }))) => {
            maglev(&path.field("maglev_lb_config"), table_size)?
        }
        (LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig, _) => {
            return Err(lb_policy.invalid(policy, "is not for this type of cluster"));
        }
        (_, Some(_)) => return Err(path.field("lb_config").invalid(policy, "is not for this lb_policy")),
    };
    Ok(Balancing {
        slow_start,
        localities: common.localities,
        hash_by_name: common.hash_by_name,
        balance_percent: common.balance_percent,
        subset: subset.map(|wire| legacy_subset(&path.field("lb_subset_config"), wire)).transpose()?,
        ..Balancing::of(policy)
    })
}

pub(super) fn least_request(
    path: &Path<'_>,
    choice_count: Option<UInt32Value>,
    active_request_bias: Option<RuntimeDouble>,
    full_scan: bool,
) -> Result<Policy> {
    let choices = u32_or(&choice_count, 2);
    if !(2..=100).contains(&choices) {
        return Err(path.field("choice_count").invalid(choices, "must be 2 to 100"));
    }
    let bias = active_request_bias.map_or(1.0, |bias| bias.default_value);
    if !bias.is_finite() || bias < 0.0 {
        let path = path.field("active_request_bias");
        return Err(path.field("default_value").invalid(bias, "must be 0 or more"));
    }
    Ok(Policy::LeastRequest { choices, bias, full_scan })
}

/// `function`: 0 or 1 xxHash, 2 murmur.
pub(super) fn ring(
    path: &Path<'_>,
    function: i32,
    min: Option<UInt64Value>,
    max: Option<UInt64Value>,
) -> Result<Policy> {
    let function = match function {
        0 | 1 => HashFunction::XxHash,
        2 => HashFunction::Murmur2,
        other => return Err(path.field("hash_function").invalid(other, "is unknown")),
    };
    let size = |field: &str, wire: Option<UInt64Value>, default| match wire.map_or(default, |size| size.value)
    {
        size if size > MAX_RING => Err(path.field(field).invalid(size, format!("is above {MAX_RING}"))),
        size => Ok(size),
    };
    let (min, max) = (size("minimum_ring_size", min, 1024)?, size("maximum_ring_size", max, MAX_RING)?);
    if min > max || max == 0 {
        return Err(path.field("minimum_ring_size").invalid(min, format!("is above the maximum, {max}")));
    }
    Ok(Policy::Hash(TableKind::Ring { function, min, max }))
}

pub(super) fn maglev(path: &Path<'_>, size: Option<UInt64Value>) -> Result<Policy> {
    let size = size.map_or(65_537, |size| size.value);
    // The bound first: dividing takes as long as the number is large.
    let prime = || size > 1 && (2..).take_while(|n| n * n <= size).all(|n| !size.is_multiple_of(n));
    if size > MAX_MAGLEV || !prime() {
        let reason = format!("must be a prime of at most {MAX_MAGLEV}");
        return Err(path.field("table_size").invalid(size, reason));
    }
    Ok(Policy::Hash(TableKind::Maglev { size }))
}

fn legacy_slow_start(path: &Path<'_>, wire: Option<SlowStartConfig>) -> Result<Option<SlowStart>> {
    let Some(SlowStartConfig { slow_start_window, aggression, min_weight_percent }) = wire else {
        return Ok(None);
    };
    let path = path.field("slow_start_config");
    let window = duration_or(&path.field("slow_start_window"), &slow_start_window, Duration::ZERO)?;
    slow_start(&path, window, aggression, min_weight_percent)
}

pub(super) fn slow_start(
    path: &Path<'_>,
    window: Duration,
    aggression: Option<RuntimeDouble>,
    min_weight_percent: Option<Percent>,
) -> Result<Option<SlowStart>> {
    let aggression = aggression.map_or(1.0, |a| a.default_value);
    if !aggression.is_finite() || aggression <= 0.0 {
        let path = path.field("aggression");
        return Err(path.field("default_value").invalid(aggression, "must be above 0"));
    }
    let min_percent = percent(&path.field("min_weight_percent"), min_weight_percent, 10.0)?;
    // Without a window it is off.
    Ok((!window.is_zero()).then_some(SlowStart { window, aggression, min_percent }))
}

fn legacy_subset(path: &Path<'_>, wire: LbSubsetConfig) -> Result<SubsetConfig> {
    let LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    } = wire;
    refuse!(path; scale_locality_weight, metadata_fallback_policy);
    let selectors = subset_selectors.into_iter().map(|wire| {
        let LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = wire;
        WireSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset }
    });
    Ok(SubsetConfig {
        fallback: fallback(&path.field("fallback_policy"), fallback_policy)?,
        default: default_subset
            .map(|wire| metadata::object(&path.field("default_subset"), wire))
            .transpose()?
            .map_or_else(Criteria::default, Criteria::new),
        selectors: self::selectors(&path.field("subset_selectors"), selectors.collect())?,
        list_as_any,
        panic_mode_any,
        by_locality: locality_weight_aware,
    })
}

/// The same in both forms of the configuration.
pub(super) struct WireSelector {
    pub(super) keys: Vec<String>,
    pub(super) single_host_per_subset: bool,
    pub(super) fallback_policy: i32,
    pub(super) fallback_keys_subset: Vec<String>,
}

pub(super) fn fallback(path: &Path<'_>, wire: i32) -> Result<Fallback> {
    match wire {
        0 => Ok(Fallback::Nobody),
        1 => Ok(Fallback::Anybody),
        2 => Ok(Fallback::Default),
        other => Err(path.invalid(other, "is unknown")),
    }
}

pub(super) fn selectors(path: &Path<'_>, wire: Vec<WireSelector>) -> Result<Vec<Selector>> {
    if wire.len() > MAX_SELECTORS {
        return Err(path.invalid(wire.len(), format!("selectors are more than {MAX_SELECTORS}")));
    }
    wire.into_iter().enumerate().map(|(at, wire)| selector(&path.index(at), wire)).collect()
}

fn selector(path: &Path<'_>, wire: WireSelector) -> Result<Selector> {
    let WireSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = wire;
    refuse!(path; single_host_per_subset);
    let keys: BTreeSet<String> = keys.into_iter().collect();
    if keys.is_empty() {
        return Err(path.field("keys").missing());
    }
    let fallback = match fallback_policy {
        0 => None,
        1 => Some(Fallback::Nobody),
        2 => Some(Fallback::Anybody),
        3 => Some(Fallback::Default),
        4 => {
            let fewer: BTreeSet<String> = fallback_keys_subset.iter().cloned().collect();
            // All of them again would lead nowhere.
            if fewer.is_empty() || !fewer.is_subset(&keys) || fewer == keys {
                let path = path.field("fallback_keys_subset");
                return Err(path.invalid(fallback_keys_subset.join(","), "must be some of keys, and not all"));
            }
            Some(Fallback::Keys(fewer))
        }
        other => return Err(path.field("fallback_policy").invalid(other, "is unknown")),
    };
    if fallback_policy != 4 {
        refuse!(path; fallback_keys_subset);
    }
    Ok(Selector { keys, fallback })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_prime_size_and_a_ring_an_end() {
        let size = |value| Some(UInt64Value { value });
        for good in [2, 65_537, MAX_MAGLEV] {
            assert!(maglev(&Path::ROOT, size(good)).is_ok(), "{good}");
        }
        for bad in [0, 1, 65_536, MAX_MAGLEV + 2, u64::MAX] {
            assert_eq!(maglev(&Path::ROOT, size(bad)).unwrap_err().path, "table_size", "{bad}");
        }
        assert!(ring(&Path::ROOT, 1, size(MAX_RING), None).is_ok());
        assert_eq!(ring(&Path::ROOT, 1, None, size(u64::MAX)).unwrap_err().path, "maximum_ring_size");
        assert_eq!(ring(&Path::ROOT, 1, size(9), size(8)).unwrap_err().path, "minimum_ring_size");
        assert_eq!(ring(&Path::ROOT, 3, None, None).unwrap_err().path, "hash_function");
    }

    #[test]
    fn a_selector_falls_back_to_fewer_keys_or_not_at_all() {
        let of = |keys: &[&str], fallback: &[&str]| {
            let strings = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
            selector(
                &Path::ROOT,
                WireSelector {
                    keys: strings(keys),
                    single_host_per_subset: false,
                    fallback_policy: 4,
                    fallback_keys_subset: strings(fallback),
                },
            )
        };
        assert!(of(&["a", "b"], &["a"]).is_ok());
        for (keys, fallback) in [(&["a"][..], &["a"][..]), (&["a"], &["b"]), (&["a"], &[])] {
            assert_eq!(of(keys, fallback).unwrap_err().path, "fallback_keys_subset");
        }
        assert_eq!(of(&[], &[]).unwrap_err().path, "keys");
    }
}
