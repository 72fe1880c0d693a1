//! Conditions on dynamic metadata.

use xds_proto::envoy::r#type::{
    matcher::v3::{
        DoubleMatcher, ListMatcher, MetadataMatcher, OrMatcher, ValueMatcher, double_matcher, list_matcher,
        metadata_matcher::{PathSegment, path_segment},
        value_matcher::MatchPattern,
    },
    metadata::v3::{MetadataKey, metadata_key},
    v3::DoubleRange,
};

use super::{error::Path, matcher, wire::Result};
use crate::policy::{MetadataTest, ValueTest};

pub(super) fn convert(path: &Path<'_>, wire: MetadataMatcher) -> Result<MetadataTest> {
    let MetadataMatcher { filter, path: segments, value, invert } = wire;
    if filter.is_empty() {
        return Err(path.field("filter").missing());
    }
    let list = path.field("path");
    if segments.is_empty() {
        return Err(list.missing());
    }
    let key = |(at, PathSegment { segment }): (usize, PathSegment)| match segment {
        Some(path_segment::Segment::Key(key)) if !key.is_empty() => Ok(key),
        _ => Err(list.index(at).field("key").missing()),
    };
    let keys = segments.into_iter().enumerate().map(key).collect::<Result<_>>()?;
    let path = path.field("value");
    let value = self::value(&path, value.ok_or_else(|| path.missing())?)?;
    Ok(MetadataTest { namespace: filter, path: keys, value, invert })
}

/// A place without a comparison.
pub(super) fn key(path: &Path<'_>, wire: MetadataKey) -> Result<MetadataTest> {
    let MetadataKey { key, path: segments } = wire;
    if key.is_empty() {
        return Err(path.field("key").missing());
    }
    let list = path.field("path");
    if segments.is_empty() {
        return Err(list.missing());
    }
    let keys = segments.into_iter().enumerate().map(|(at, segment)| match segment.segment {
        Some(metadata_key::path_segment::Segment::Key(key)) if !key.is_empty() => Ok(key),
        _ => Err(list.index(at).field("key").missing()),
    });
    let path = keys.collect::<Result<_>>()?;
    Ok(MetadataTest { namespace: key, path, value: ValueTest::Present(true), invert: false })
}

fn value(path: &Path<'_>, wire: ValueMatcher) -> Result<ValueTest> {
    Ok(match wire.match_pattern.ok_or_else(|| path.missing())? {
        MatchPattern::NullMatch(_) => ValueTest::Null,
        MatchPattern::DoubleMatch(wire) => number(&path.field("double_match"), wire)?,
        MatchPattern::StringMatch(wire) => ValueTest::Text(matcher::text(&path.field("string_match"), wire)?),
        MatchPattern::BoolMatch(wanted) => ValueTest::Bool(wanted),
        MatchPattern::PresentMatch(wanted) => ValueTest::Present(wanted),
        MatchPattern::ListMatch(wire) => {
            let ListMatcher { match_pattern } = *wire;
            let list = path.field("list_match");
            let path = list.field("one_of");
            match match_pattern {
                Some(list_matcher::MatchPattern::OneOf(wire)) => {
                    ValueTest::Element(Box::new(value(&path, *wire)?))
                }
                None => return Err(path.missing()),
            }
        }
        MatchPattern::OrMatch(OrMatcher { value_matchers }) => {
            let or = path.field("or_match");
            let path = or.field("value_matchers");
            if value_matchers.len() < 2 {
                return Err(path.invalid(value_matchers.len(), "must be at least 2"));
            }
            let each = value_matchers.into_iter().enumerate().map(|(at, wire)| value(&path.index(at), wire));
            ValueTest::Or(each.collect::<Result<_>>()?)
        }
    })
}

fn number(path: &Path<'_>, wire: DoubleMatcher) -> Result<ValueTest> {
    match wire.match_pattern {
        Some(double_matcher::MatchPattern::Exact(number)) => Ok(ValueTest::Number(number)),
        Some(double_matcher::MatchPattern::Range(DoubleRange { start, end })) => {
            Ok(ValueTest::Range(start, end))
        }
        None => Err(path.missing()),
    }
}
