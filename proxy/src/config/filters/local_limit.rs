//! `envoy.filters.http.local_ratelimit`; its settings on routes are the same message.

use std::{sync::Arc, time::Duration};

use xds_proto::envoy::{
    extensions::{
        common::ratelimit::v3::{LocalRateLimitDescriptor, rate_limit_descriptor::Entry},
        filters::http::local_ratelimit::v3::LocalRateLimit,
    },
    r#type::v3::{HttpStatus, TokenBucket},
};

use super::fraction;
use crate::{
    config::{
        error::Path,
        header_ops, limits,
        wire::{Result, bool_or, duration, refuse, u32_or},
    },
    policy::{
        Fraction,
        limit::{Bucket, BucketConfig, DescriptorBucket, LocalLimit},
    },
};

/// Most descriptors.
const MAX_DESCRIPTORS: usize = 1000;
/// Shortest time to fill in, as in Envoy.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

pub(super) fn convert(path: &Path<'_>, wire: LocalRateLimit, on_route: bool) -> Result<LocalLimit> {
    let LocalRateLimit {
        stat_prefix: _,
        status,
        token_bucket,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        stage,
        local_rate_limit_per_downstream_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        vh_rate_limits,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted,
        rate_limits,
        max_dynamic_descriptors: _,
        enable_retry_after_header,
    } = wire;
    refuse!(path; local_rate_limit_per_downstream_connection, local_cluster_rate_limit, vh_rate_limits);
    let bucket_path = path.field("token_bucket");
    let bucket = token_bucket.map(|wire| bucket(&bucket_path, wire)).transpose()?;
    if bucket.is_none() && on_route {
        return Err(bucket_path.missing());
    }
    let list = path.field("descriptors");
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(list.invalid(descriptors.len(), format!("entries are more than {MAX_DESCRIPTORS}")));
    }
    let descriptors = descriptors.into_iter().enumerate().map(|(at, wire)| descriptor(&list.index(at), wire));
    if stage > 10 {
        return Err(path.field("stage").invalid(stage, "must be at most 10"));
    }
    let not_enforced = header_ops::Fields { add: "request_headers_to_add_when_not_enforced", remove: "" };
    Ok(LocalLimit {
        bucket,
        descriptors: descriptors.collect::<Result<_>>()?,
        always: bool_or(&always_consume_default_token_bucket, true),
        enabled: fraction::or(&path.field("filter_enabled"), filter_enabled, Fraction::NONE)?,
        enforced: fraction::or(&path.field("filter_enforced"), filter_enforced, Fraction::NONE)?,
        status: self::status(&path.field("status"), status, 429)?,
        request_headers: header_ops::convert(
            path,
            &not_enforced,
            request_headers_to_add_when_not_enforced,
            vec![],
        )?,
        response_headers: header_ops::convert(path, &header_ops::RESPONSE, response_headers_to_add, vec![])?,
        rules: Some(limits::convert(path, rate_limits)?).filter(|rules| !rules.is_empty()),
        stage,
        tell: match enable_x_ratelimit_headers {
            0 => false,
            1 => true,
            other => return Err(path.field("enable_x_ratelimit_headers").invalid(other, "is unknown")),
        },
        retry_after: enable_retry_after_header,
        resource_exhausted: rate_limited_as_resource_exhausted,
    })
}

/// Statuses that are no errors mean the default, as in Envoy.
pub(super) fn status(path: &Path<'_>, wire: Option<HttpStatus>, default: u16) -> Result<u16> {
    let Some(HttpStatus { code }) = wire else { return Ok(default) };
    match u16::try_from(code) {
        Ok(code @ 400..600) => Ok(code),
        Ok(0..400) => Ok(default),
        _ => Err(path.field("code").invalid(code, "is no HTTP status")),
    }
}

fn bucket(path: &Path<'_>, wire: TokenBucket) -> Result<Arc<Bucket>> {
    let TokenBucket { max_tokens, tokens_per_fill, fill_interval } = wire;
    let interval_path = path.field("fill_interval");
    let interval = duration(&interval_path, &fill_interval.ok_or_else(|| interval_path.missing())?)?;
    if interval < MIN_INTERVAL {
        return Err(
            interval_path.invalid(format!("{interval:?}"), format!("is shorter than {MIN_INTERVAL:?}"))
        );
    }
    let fill = u32_or(&tokens_per_fill, 1);
    if fill == 0 {
        return Err(path.field("tokens_per_fill").invalid(0, "would never fill it"));
    }
    Ok(Arc::new(Bucket::new(BucketConfig { max: max_tokens, fill, interval })))
}

fn descriptor(path: &Path<'_>, wire: LocalRateLimitDescriptor) -> Result<DescriptorBucket> {
    let LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = wire;
    refuse!(path; shadow_mode);
    let list = path.field("entries");
    if entries.is_empty() {
        return Err(list.missing());
    }
    let entries = entries.into_iter().enumerate().map(|(at, Entry { key, value })| {
        let path = list.index(at);
        match (key.is_empty(), value.is_empty()) {
            (true, _) => Err(path.field("key").missing()),
            // It would be a bucket for each value that comes.
            (false, true) => Err(path.field("value").missing()),
            (false, false) => Ok((key, value)),
        }
    });
    let bucket_path = path.field("token_bucket");
    let entries = entries.collect::<Result<_>>()?;
    Ok(DescriptorBucket {
        entries,
        bucket: bucket(&bucket_path, token_bucket.ok_or_else(|| bucket_path.missing())?)?,
    })
}
