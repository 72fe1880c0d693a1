//! What a route says about the choice of an endpoint: `priority`, `hash_policy`, `metadata_match`.

use std::time::Duration;

use regex::RegexBuilder;
use xds_proto::envoy::{
    config::{
        core::v3::Metadata as WireMetadata,
        route::v3::route_action::{
            HashPolicy as WirePolicy,
            hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter},
        },
    },
    r#type::matcher::v3::RegexMatchAndSubstitute,
};

use super::{
    breakers::Priority,
    endpoint,
    error::Path,
    metadata,
    wire::{Result, duration},
};
use crate::{
    balance::Criteria,
    route::{HashOf, HashPolicy, Rewrite, UpstreamChoice},
};

/// Most policies of a route.
const MAX_POLICIES: usize = 32;
/// Largest compiled expression.
const MAX_REGEX_BYTES: usize = 256 * 1024;

pub(super) fn convert(
    path: &Path<'_>,
    priority: i32,
    hash_policy: Vec<WirePolicy>,
) -> Result<UpstreamChoice> {
    let list = path.field("hash_policy");
    if hash_policy.len() > MAX_POLICIES {
        return Err(list.invalid(hash_policy.len(), format!("policies are more than {MAX_POLICIES}")));
    }
    let hash = hash_policy.into_iter().enumerate().map(|(at, wire)| policy(&list.index(at), wire));
    Ok(UpstreamChoice {
        priority: Priority::convert(&path.field("priority"), priority)?,
        hash: hash.collect::<Result<_>>()?,
    })
}

/// `metadata_match`: of namespace `envoy.lb`. Others have no meaning.
pub(super) fn wanted(path: &Path<'_>, wire: Option<WireMetadata>) -> Result<Option<Criteria>> {
    let wanted = metadata::namespace(path, wire.as_ref(), endpoint::LB)?;
    Ok((!wanted.is_empty()).then(|| Criteria::new(wanted)))
}

/// Those of a route and of one of its clusters together, whose word goes first.
pub(super) fn both(route: Option<&Criteria>, cluster: Option<Criteria>) -> Option<Criteria> {
    match (route, cluster) {
        (None, own) => own,
        (Some(route), None) => Some(route.clone()),
        (Some(route), Some(own)) => {
            let mut all = (**route).clone();
            all.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
            Some(Criteria::new(all))
        }
    }
}

fn policy(path: &Path<'_>, wire: WirePolicy) -> Result<HashPolicy> {
    let WirePolicy { terminal, policy_specifier } = wire;
    let name = |path: &Path<'_>, field: &str, name: String| {
        if name.is_empty() { Err(path.field(field).missing()) } else { Ok(name) }
    };
    let of = match policy_specifier {
        None => return Err(path.field("policy_specifier").missing()),
        Some(PolicySpecifier::Header(Header { header_name, regex_rewrite })) => {
            let path = path.field("header");
            let header = http::HeaderName::try_from(name(&path, "header_name", header_name)?);
            let header = header.map_err(|_| path.field("header_name").invalid("", "is no header name"))?;
            let rewrite =
                regex_rewrite.map(|wire| rewrite(&path.field("regex_rewrite"), wire)).transpose()?;
            HashOf::Header { name: header.as_str().to_owned(), rewrite }
        }
        Some(PolicySpecifier::Cookie(wire)) => cookie(&path.field("cookie"), wire)?,
        Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })) => {
            HashOf::SourceIp
        }
        Some(PolicySpecifier::ConnectionProperties(_)) => {
            return Err(path.field("connection_properties").field("source_ip").missing());
        }
        Some(PolicySpecifier::QueryParameter(QueryParameter { name: parameter })) => {
            HashOf::Query(name(&path.field("query_parameter"), "name", parameter)?)
        }
        Some(PolicySpecifier::FilterState(_)) => return Err(path.field("filter_state").unsupported()),
    };
    Ok(HashPolicy { of, terminal })
}

fn cookie(path: &Path<'_>, wire: Cookie) -> Result<HashOf> {
    let Cookie { name, ttl, path: of_cookie, attributes } = wire;
    // What goes into a header of answers must not be able to end it (RFC 6265 4.1.1).
    let token = |text: &str| !text.is_empty() && http::HeaderName::try_from(text).is_ok();
    let value = |text: &str| text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b';');
    if !token(&name) {
        return Err(path.field("name").invalid(&name, "is no name of a cookie"));
    }
    if !value(&of_cookie) {
        return Err(path.field("path").invalid(&of_cookie, "is no path of a cookie"));
    }
    let list = path.field("attributes");
    let attributes = attributes.into_iter().enumerate().map(|(at, wire)| {
        if token(&wire.name) && value(&wire.value) {
            return Ok((wire.name, wire.value));
        }
        Err(list.index(at).invalid(wire.name, "is no attribute of a cookie"))
    });
    let ttl_path = path.field("ttl");
    let ttl: Option<Duration> = ttl.map(|wire| duration(&ttl_path, &wire)).transpose()?;
    Ok(HashOf::Cookie { name, ttl, path: of_cookie, attributes: attributes.collect::<Result<_>>()? })
}

fn rewrite(path: &Path<'_>, wire: RegexMatchAndSubstitute) -> Result<Rewrite> {
    let RegexMatchAndSubstitute { pattern, substitution } = wire;
    let pattern_path = path.field("pattern");
    let pattern = pattern.ok_or_else(|| pattern_path.missing())?;
    let regex_path = pattern_path.field("regex");
    let regex = RegexBuilder::new(&pattern.regex)
        .size_limit(MAX_REGEX_BYTES)
        .build()
        .map_err(|_| regex_path.invalid(&pattern.regex, "is no expression"))?;
    let groups = regex.captures_len();
    let by = substituted(&substitution, groups).ok_or_else(|| {
        path.field("substitution").invalid(&substitution, "names a group that is not there")
    })?;
    Ok(Rewrite { regex, by })
}

/// RE2's `\1` as `${1}`, and `$` as itself.
fn substituted(text: &str, groups: usize) -> Option<String> {
    let mut by = String::with_capacity(text.len() + 8);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '$' => by.push_str("$$"),
            '\\' => match letters.next()? {
                '\\' => by.push('\\'),
                digit => {
                    let group = digit.to_digit(10)?;
                    if group as usize >= groups {
                        return None;
                    }
                    by.push_str(&format!("${{{group}}}"));
                }
            },
            other => by.push(other),
        }
    }
    Some(by)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substitutions_are_those_of_re2() {
        assert_eq!(substituted(r"a\1$\\", 2).as_deref(), Some(r"a${1}$$\"));
        for wrong in [r"\2", r"\x", "\\"] {
            assert_eq!(substituted(wrong, 2), None, "{wrong}");
        }
    }

    #[test]
    fn what_a_cluster_asks_for_goes_before_what_its_route_does() {
        let criteria = |pairs: &[(&str, i32)]| {
            Criteria::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect())
        };
        let route = criteria(&[("a", 1), ("b", 1)]);
        assert_eq!(both(Some(&route), Some(criteria(&[("b", 2)]))), Some(criteria(&[("a", 1), ("b", 2)])));
        assert_eq!(both(Some(&route), None), Some(route));
        assert_eq!(both(None, None), None);
    }
}
