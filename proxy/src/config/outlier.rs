//! `OutlierDetection`: the consecutive kinds.
//!
//! Envoy also ejects by success rate unless told otherwise; this proxy does not, and says so where a resource sets any of its
//! fields to something else than off.

use std::time::Duration;

use xds_proto::{envoy::config::cluster::v3::OutlierDetection, google::protobuf::UInt32Value};

use super::{
    error::Path,
    wire::{Result, bool_or, duration_or, refuse, u32_or},
};
use crate::balance::EjectionConfig;

pub(super) fn convert(path: &Path<'_>, wire: OutlierDetection) -> Result<EjectionConfig> {
    let OutlierDetection {
        consecutive_5xx,
        // Ejected endpoints come back at their time, not at the next sweep.
        interval: _,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        // There are no active health checks here.
        successful_active_health_check_uneject_host: _,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = wire;
    refuse!(path; success_rate_minimum_hosts, success_rate_request_volume, success_rate_stdev_factor,
        failure_percentage_threshold, failure_percentage_minimum_hosts, failure_percentage_request_volume,
        max_ejection_time_jitter, monitors, detect_degraded_hosts);
    for (field, wire) in [
        ("enforcing_success_rate", &enforcing_success_rate),
        ("enforcing_local_origin_success_rate", &enforcing_local_origin_success_rate),
        ("enforcing_failure_percentage", &enforcing_failure_percentage),
        ("enforcing_failure_percentage_local_origin", &enforcing_failure_percentage_local_origin),
    ] {
        if u32_or(wire, 0) != 0 {
            return Err(path.field(field).unsupported());
        }
    }
    // In percent of the cases; all or nothing here.
    let enforced = |field: &str, wire: &Option<UInt32Value>, default: u32| match u32_or(wire, default) {
        0 => Ok(false),
        100 => Ok(true),
        other => Err(path.field(field).invalid(other, "must be 0 or 100")),
    };
    let limit = |on: bool, wire: &Option<UInt32Value>| on.then(|| u32_or(wire, 5).max(1));
    let percent = u32_or(&max_ejection_percent, 10);
    if percent > 100 {
        return Err(path.field("max_ejection_percent").invalid(percent, "must be 0 to 100"));
    }
    let base_time =
        duration_or(&path.field("base_ejection_time"), &base_ejection_time, Duration::from_secs(30))?;
    Ok(EjectionConfig {
        consecutive_5xx: limit(
            enforced("enforcing_consecutive_5xx", &enforcing_consecutive_5xx, 100)?,
            &consecutive_5xx,
        ),
        consecutive_gateway: limit(
            enforced("enforcing_consecutive_gateway_failure", &enforcing_consecutive_gateway_failure, 0)?,
            &consecutive_gateway_failure,
        ),
        consecutive_local: limit(
            enforced(
                "enforcing_consecutive_local_origin_failure",
                &enforcing_consecutive_local_origin_failure,
                100,
            )?,
            &consecutive_local_origin_failure,
        ),
        split_local_origin: split_external_local_origin_errors,
        base_time,
        max_time: duration_or(
            &path.field("max_ejection_time"),
            &max_ejection_time,
            Duration::from_secs(300),
        )?,
        max_percent: percent,
        always_one: bool_or(&always_eject_one_host, false),
    })
}
