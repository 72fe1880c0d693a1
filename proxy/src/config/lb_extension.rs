//! `load_balancing_policy`: the first policy of the list that is known here, as in Envoy and gRPC.

use std::time::Duration;

use xds_proto::{
    Name,
    envoy::{
        config::cluster::v3::{LoadBalancingPolicy, load_balancing_policy::Policy as WirePolicy},
        extensions::load_balancing_policies::{
            common::v3::{
                ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig,
                locality_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig},
            },
            least_request::v3::LeastRequest,
            maglev::v3::Maglev,
            override_host::v3::{OverrideHost, override_host::OverrideHostSource},
            random::v3::Random,
            ring_hash::v3::RingHash,
            round_robin::v3::RoundRobin,
            subset::v3::{Subset, subset::LbSubsetSelector},
            wrr_locality::v3::WrrLocality,
        },
    },
    google::protobuf::Any,
};

use super::{
    balancing::{self, Balancing, Localities, WireSelector, balance_factor},
    error::Path,
    metadata,
    wire::{Result, bool_or, duration_or, refuse, unpack},
};
use crate::balance::{Criteria, Policy, SlowStart, SubsetConfig};

/// Policies within policies.
const MAX_DEPTH: usize = 4;

pub(super) fn convert(path: &Path<'_>, wire: LoadBalancingPolicy) -> Result<Balancing> {
    nested(path, wire, 0)
}

fn nested(path: &Path<'_>, wire: LoadBalancingPolicy, depth: usize) -> Result<Balancing> {
    if depth > MAX_DEPTH {
        return Err(path.invalid("policy", format!("is nested more than {MAX_DEPTH} times")));
    }
    let list = path.field("policies");
    let mut first_unknown = None;
    for (at, WirePolicy { typed_extension_config }) in wire.policies.into_iter().enumerate() {
        let path = list.index(at);
        let config = path.field("typed_extension_config");
        let path = config.field("typed_config");
        let Some(any) = typed_extension_config.and_then(|config| config.typed_config) else { continue };
        if let Some(balancing) = one(&path, &any, depth)? {
            return Ok(balancing);
        }
        first_unknown.get_or_insert_with(|| path.unsupported_type(&any.type_url));
    }
    Err(first_unknown.unwrap_or_else(|| list.missing()))
}

/// `None`: a type that is not known here.
fn one(path: &Path<'_>, any: &Any, depth: usize) -> Result<Option<Balancing>> {
    let is = |url: String| any.type_url == url;
    let balancing = if is(RoundRobin::type_url()) {
        let RoundRobin { slow_start_config, locality_lb_config } = unpack(path, any)?;
        Balancing {
            slow_start: slow_start(path, slow_start_config)?,
            localities: localities(path, locality_lb_config)?,
            ..Balancing::of(Policy::RoundRobin)
        }
    } else if is(LeastRequest::type_url()) {
        least_request(path, unpack(path, any)?)?
    } else if is(Random::type_url()) {
        let Random { locality_lb_config } = unpack(path, any)?;
        let localities = localities(path, locality_lb_config)?;
        Balancing { localities, ..Balancing::of(Policy::Random) }
    } else if is(RingHash::type_url()) {
        ring_hash(path, unpack(path, any)?)?
    } else if is(Maglev::type_url()) {
        let Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } =
            unpack(path, any)?;
        let policy = balancing::maglev(path, table_size)?;
        let weighted = locality_weighted_lb_config.is_some();
        consistent(path, policy, consistent_hashing_lb_config, weighted)?
    } else if is(WrrLocality::type_url()) {
        let WrrLocality { endpoint_picking_policy } = unpack(path, any)?;
        let path = path.field("endpoint_picking_policy");
        let child = nested(&path, endpoint_picking_policy.ok_or_else(|| path.missing())?, depth + 1)?;
        Balancing { localities: Localities::Weighted, ..child }
    } else if is(Subset::type_url()) {
        subset(path, unpack(path, any)?, depth)?
    } else if is(OverrideHost::type_url()) {
        override_host(path, unpack(path, any)?, depth)?
    } else {
        return Ok(None);
    };
    Ok(Some(balancing))
}

#[allow(deprecated)]
fn least_request(path: &Path<'_>, wire: LeastRequest) -> Result<Balancing> {
    let LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config,
        locality_lb_config,
        enable_full_scan,
        selection_method,
    } = wire;
    let full = match selection_method {
        0 => bool_or(&enable_full_scan, false),
        1 => true,
        other => return Err(path.field("selection_method").invalid(other, "is unknown")),
    };
    Ok(Balancing {
        slow_start: slow_start(path, slow_start_config)?,
        localities: localities(path, locality_lb_config)?,
        ..Balancing::of(balancing::least_request(path, choice_count, active_request_bias, full)?)
    })
}

#[allow(deprecated)]
fn ring_hash(path: &Path<'_>, wire: RingHash) -> Result<Balancing> {
    let RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = wire;
    let policy = balancing::ring(path, hash_function, minimum_ring_size, maximum_ring_size)?;
    let weighted = locality_weighted_lb_config.is_some();
    if consistent_hashing_lb_config.is_some() {
        return consistent(path, policy, consistent_hashing_lb_config, weighted);
    }
    let former =
        ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy: vec![] };
    consistent(path, policy, Some(former), weighted)
}

fn consistent(
    path: &Path<'_>,
    policy: Policy,
    wire: Option<ConsistentHashingLbConfig>,
    weighted: bool,
) -> Result<Balancing> {
    let ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } =
        wire.unwrap_or_default();
    let path = path.field("consistent_hashing_lb_config");
    // Which hash a request has is the route's business here.
    refuse!(path; hash_policy);
    Ok(Balancing {
        localities: if weighted { Localities::Weighted } else { Localities::Flat },
        hash_by_name: use_hostname_for_hashing,
        balance_percent: balance_factor(&path.field("hash_balance_factor"), hash_balance_factor)?,
        ..Balancing::of(policy)
    })
}

fn slow_start(path: &Path<'_>, wire: Option<SlowStartConfig>) -> Result<Option<SlowStart>> {
    let Some(SlowStartConfig { slow_start_window, aggression, min_weight_percent }) = wire else {
        return Ok(None);
    };
    let path = path.field("slow_start_config");
    let window = duration_or(&path.field("slow_start_window"), &slow_start_window, Duration::ZERO)?;
    balancing::slow_start(&path, window, aggression, min_weight_percent)
}

#[allow(deprecated)]
fn localities(path: &Path<'_>, wire: Option<LocalityLbConfig>) -> Result<Localities> {
    let path = path.field("locality_lb_config");
    match wire.and_then(|wire| wire.locality_config_specifier) {
        None => Ok(Localities::Flat),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Ok(Localities::Weighted),
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(wire)) => {
            let ZoneAwareLbConfig {
                routing_enabled,
                min_cluster_size,
                fail_traffic_on_panic,
                force_locality_direct_routing,
                force_local_zone,
                locality_basis,
            } = wire;
            let path = path.field("zone_aware_lb_config");
            refuse!(path; force_locality_direct_routing, force_local_zone, locality_basis);
            let zones =
                balancing::zone_aware(&path, routing_enabled, min_cluster_size, fail_traffic_on_panic)?;
            Ok(Localities::Zones(zones))
        }
    }
}

fn subset(path: &Path<'_>, wire: Subset, depth: usize) -> Result<Balancing> {
    let Subset {
        fallback_policy,
        default_subset,
        subset_selectors,
        allow_redundant_keys,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
        subset_lb_policy,
    } = wire;
    refuse!(path; allow_redundant_keys, scale_locality_weight, metadata_fallback_policy);
    let selectors = subset_selectors.into_iter().map(|wire| {
        let LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = wire;
        WireSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset }
    });
    let config = SubsetConfig {
        fallback: balancing::fallback(&path.field("fallback_policy"), fallback_policy)?,
        default: default_subset
            .map(|wire| metadata::object(&path.field("default_subset"), wire))
            .transpose()?
            .map_or_else(Criteria::default, Criteria::new),
        selectors: balancing::selectors(&path.field("subset_selectors"), selectors.collect())?,
        list_as_any,
        panic_mode_any,
        by_locality: locality_weight_aware,
    };
    let path = path.field("subset_lb_policy");
    let child = nested(&path, subset_lb_policy.ok_or_else(|| path.missing())?, depth + 1)?;
    if child.subset.is_some() {
        return Err(path.invalid("subset", "within a subset"));
    }
    Ok(Balancing { subset: Some(config), ..child })
}

fn override_host(path: &Path<'_>, wire: OverrideHost, depth: usize) -> Result<Balancing> {
    let OverrideHost { override_host_sources, selected_host_key, fallback_policy } = wire;
    refuse!(path; selected_host_key);
    let list = path.field("override_host_sources");
    if override_host_sources.is_empty() {
        return Err(list.missing());
    }
    let header = |(at, wire): (usize, OverrideHostSource)| {
        let path = list.index(at);
        let OverrideHostSource { header, metadata } = wire;
        refuse!(path; metadata);
        let name = http::HeaderName::try_from(&header);
        name.map(|name| name.as_str().to_owned())
            .map_err(|_| path.field("header").invalid(&header, "is no header name"))
    };
    let override_headers =
        override_host_sources.into_iter().enumerate().map(header).collect::<Result<_>>()?;
    let path = path.field("fallback_policy");
    let child = nested(&path, fallback_policy.ok_or_else(|| path.missing())?, depth + 1)?;
    Ok(Balancing { override_headers, ..child })
}
