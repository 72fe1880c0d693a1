//! `rate_limits` of routes, virtual hosts and filters.

use xds_proto::envoy::config::route::v3::{
    RateLimit,
    rate_limit::{
        Action, HitsAddend,
        action::{
            ActionSpecifier, GenericKey, HeaderValueMatch, MaskedRemoteAddress, MetaData, QueryParameters,
            RequestHeaders,
        },
    },
};

use super::{
    error::Path,
    metadata_match, route,
    wire::{Result, bool_or, refuse, u32_or},
};
use crate::policy::limit::{DescriptorAction, LimitRule};

/// Most rules of one level, and actions of one rule.
const MAX_ENTRIES: usize = 100;

pub(super) fn convert(path: &Path<'_>, wires: Vec<RateLimit>) -> Result<Vec<LimitRule>> {
    let path = path.field("rate_limits");
    if wires.len() > MAX_ENTRIES {
        return Err(path.invalid(wires.len(), format!("entries are more than {MAX_ENTRIES}")));
    }
    wires.into_iter().enumerate().map(|(at, wire)| rule(&path.index(at), wire)).collect()
}

fn rule(path: &Path<'_>, wire: RateLimit) -> Result<LimitRule> {
    let RateLimit {
        stage,
        disable_key,
        actions,
        limit,
        hits_addend,
        apply_on_stream_done,
        x_ratelimit_option,
    } = wire;
    refuse!(path; disable_key, limit, apply_on_stream_done, x_ratelimit_option);
    let stage = u32_or(&stage, 0);
    if stage > 10 {
        return Err(path.field("stage").invalid(stage, "must be at most 10"));
    }
    let list = path.field("actions");
    if actions.is_empty() {
        return Err(list.missing());
    }
    if actions.len() > MAX_ENTRIES {
        return Err(list.invalid(actions.len(), format!("entries are more than {MAX_ENTRIES}")));
    }
    let hits = match hits_addend {
        None => None,
        Some(HitsAddend { number, format, is_negative_hits }) => {
            let path = path.field("hits_addend");
            refuse!(path; format, is_negative_hits);
            number.map(|number| number.value)
        }
    };
    let actions = actions.into_iter().enumerate().map(|(at, wire)| action(&list.index(at), wire));
    Ok(LimitRule { stage, actions: actions.collect::<Result<_>>()?, hits })
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

#[allow(deprecated)]
fn action(path: &Path<'_>, wire: Action) -> Result<DescriptorAction> {
    let needed = |path: &Path<'_>, field: &str, text: String| {
        if text.is_empty() { Err(path.field(field).missing()) } else { Ok(text) }
    };
    Ok(match wire.action_specifier.ok_or_else(|| path.missing())? {
        ActionSpecifier::SourceCluster(_) => return Err(path.field("source_cluster").unsupported()),
        ActionSpecifier::DestinationCluster(_) => DescriptorAction::DestinationCluster,
        ActionSpecifier::RequestHeaders(RequestHeaders { header_name, descriptor_key, skip_if_absent }) => {
            let path = path.field("request_headers");
            let header = header_name
                .parse()
                .map_err(|_| path.field("header_name").invalid(&header_name, "is no header name"))?;
            let key = needed(&path, "descriptor_key", descriptor_key)?;
            DescriptorAction::Header { header, key, skip: skip_if_absent }
        }
        ActionSpecifier::QueryParameters(wire) => {
            let QueryParameters { query_parameter_name, descriptor_key, skip_if_absent } = wire;
            let path = path.field("query_parameters");
            let parameter = needed(&path, "query_parameter_name", query_parameter_name)?;
            let key = needed(&path, "descriptor_key", descriptor_key)?;
            DescriptorAction::Query { parameter, key, skip: skip_if_absent }
        }
        ActionSpecifier::RemoteAddress(_) => DescriptorAction::RemoteAddress,
        ActionSpecifier::GenericKey(wire) => {
            let GenericKey { descriptor_value, default_value, descriptor_key } = wire;
            let path = path.field("generic_key");
            refuse!(path; default_value);
            let value = literal(&path, descriptor_value)?;
            DescriptorAction::Generic { key: or(descriptor_key, "generic_key"), value }
        }
        ActionSpecifier::HeaderValueMatch(wire) => {
            let HeaderValueMatch { descriptor_value, default_value, descriptor_key, expect_match, headers } =
                wire;
            let path = path.field("header_value_match");
            refuse!(path; default_value);
            let list = path.field("headers");
            if headers.is_empty() {
                return Err(list.missing());
            }
            let headers =
                headers.into_iter().enumerate().map(|(at, wire)| route::header(&list.index(at), wire));
            DescriptorAction::HeaderMatch {
                key: or(descriptor_key, "header_match"),
                value: literal(&path, descriptor_value)?,
                expect: bool_or(&expect_match, true),
                headers: headers.collect::<Result<_>>()?,
            }
        }
        ActionSpecifier::MaskedRemoteAddress(wire) => {
            let MaskedRemoteAddress { v4_prefix_mask_len, v6_prefix_mask_len } = wire;
            let path = path.field("masked_remote_address");
            let length = |field: &str, wire, max: u8| {
                let length = u32_or(wire, max.into());
                let fits = u8::try_from(length).ok().filter(|length| *length <= max);
                fits.ok_or_else(|| path.field(field).invalid(length, format!("is more than {max}")))
            };
            DescriptorAction::MaskedRemoteAddress(
                length("v4_prefix_mask_len", &v4_prefix_mask_len, 32)?,
                length("v6_prefix_mask_len", &v6_prefix_mask_len, 128)?,
            )
        }
        ActionSpecifier::Metadata(wire) => metadata(&path.field("metadata"), wire)?,
        ActionSpecifier::RemoteAddressMatch(_) => {
            return Err(path.field("remote_address_match").unsupported());
        }
        ActionSpecifier::DynamicMetadata(_) => return Err(path.field("dynamic_metadata").unsupported()),
        ActionSpecifier::Extension(_) => return Err(path.field("extension").unsupported()),
        ActionSpecifier::QueryParameterValueMatch(_) => {
            return Err(path.field("query_parameter_value_match").unsupported());
        }
    })
}

/// Envoy takes command operators here; what would be one is refused.
fn literal(path: &Path<'_>, value: String) -> Result<String> {
    let path = path.field("descriptor_value");
    if value.is_empty() {
        return Err(path.missing());
    }
    if value.contains('%') {
        return Err(path.invalid(&value, "contains '%': command operators are not supported"));
    }
    Ok(value)
}

fn metadata(path: &Path<'_>, wire: MetaData) -> Result<DescriptorAction> {
    let MetaData { descriptor_key, metadata_key, default_value, source, skip_if_absent } = wire;
    if source != 0 {
        return Err(path.field("source").invalid(source, "is not DYNAMIC"));
    }
    let key_path = path.field("metadata_key");
    let at = metadata_match::key(&key_path, metadata_key.ok_or_else(|| key_path.missing())?)?;
    if descriptor_key.is_empty() {
        return Err(path.field("descriptor_key").missing());
    }
    Ok(DescriptorAction::Metadata { key: descriptor_key, at, default: default_value, skip: skip_if_absent })
}
