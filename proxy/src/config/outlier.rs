//! `OutlierDetection`.

use std::time::Duration;

use xds_proto::{envoy::config::cluster::v3::OutlierDetection, google::protobuf::UInt32Value};

use super::{
    error::Path,
    wire::{Result, bool_or, duration_or, refuse, u32_or},
};
use crate::balance::{EjectionConfig, InRow, RateConfig};

pub(super) fn convert(path: &Path<'_>, wire: OutlierDetection) -> Result<EjectionConfig> {
    let OutlierDetection {
        consecutive_5xx,
        interval,
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
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = wire;
    refuse!(path; monitors);
    if bool_or(&detect_degraded_hosts, false) {
        return Err(path.field("detect_degraded_hosts").unsupported());
    }
    let percent = |field: &str, wire: &Option<UInt32Value>, default: u32| match u32_or(wire, default) {
        percent @ 0..=100 => Ok(percent),
        other => Err(path.field(field).invalid(other, "must be 0 to 100")),
    };
    let positive = |field: &str, wire, default| {
        let value = duration_or(&path.field(field), wire, default)?;
        if value.is_zero() { Err(path.field(field).invalid("0s", "must be above 0")) } else { Ok(value) }
    };
    let row = |wire, enforcing| InRow { limit: u32_or(wire, 5), enforcing };
    Ok(EjectionConfig {
        consecutive_5xx: row(
            &consecutive_5xx,
            percent("enforcing_consecutive_5xx", &enforcing_consecutive_5xx, 100)?,
        ),
        consecutive_gateway: row(
            &consecutive_gateway_failure,
            percent("enforcing_consecutive_gateway_failure", &enforcing_consecutive_gateway_failure, 0)?,
        ),
        consecutive_local: row(
            &consecutive_local_origin_failure,
            percent(
                "enforcing_consecutive_local_origin_failure",
                &enforcing_consecutive_local_origin_failure,
                100,
            )?,
        ),
        split_local_origin: split_external_local_origin_errors,
        rates: RateConfig {
            enforcing_success_rate: percent("enforcing_success_rate", &enforcing_success_rate, 100)?,
            enforcing_local_success_rate: percent(
                "enforcing_local_origin_success_rate",
                &enforcing_local_origin_success_rate,
                100,
            )?,
            success_rate_minimum_hosts: u32_or(&success_rate_minimum_hosts, 5),
            success_rate_request_volume: u32_or(&success_rate_request_volume, 100),
            success_rate_stdev_factor: u32_or(&success_rate_stdev_factor, 1900),
            failure_percentage_threshold: percent(
                "failure_percentage_threshold",
                &failure_percentage_threshold,
                85,
            )?,
            enforcing_failure_percentage: percent(
                "enforcing_failure_percentage",
                &enforcing_failure_percentage,
                0,
            )?,
            enforcing_local_failure_percentage: percent(
                "enforcing_failure_percentage_local_origin",
                &enforcing_failure_percentage_local_origin,
                0,
            )?,
            failure_percentage_minimum_hosts: u32_or(&failure_percentage_minimum_hosts, 5),
            failure_percentage_request_volume: u32_or(&failure_percentage_request_volume, 50),
        },
        interval: positive("interval", &interval, Duration::from_secs(10))?,
        base_time: positive("base_ejection_time", &base_ejection_time, Duration::from_secs(30))?,
        max_time: duration_or(
            &path.field("max_ejection_time"),
            &max_ejection_time,
            Duration::from_secs(300),
        )?,
        jitter: duration_or(
            &path.field("max_ejection_time_jitter"),
            &max_ejection_time_jitter,
            Duration::ZERO,
        )?,
        max_percent: percent("max_ejection_percent", &max_ejection_percent, 10)?,
        always_one: bool_or(&always_eject_one_host, false),
        uneject_on_check: bool_or(&successful_active_health_check_uneject_host, true),
    })
}
