//! What is wrong with a resource, and where.

use std::fmt;

use thiserror::Error;

/// A place in a resource, written as the field path of Envoy's API: `filter_chains[0].filters[1].typed_config`.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Segment<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The resource itself.
    pub const ROOT: Path<'static> = Path { parent: None, segment: Segment::Root };

    /// A field of the message at this place.
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        let name = name.strip_prefix("r#").unwrap_or(name);
        Path { parent: Some(self), segment: Segment::Field(name) }
    }

    /// An element of the list at this place.
    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), segment: Segment::Index(index) }
    }

    /// An entry of the map at this place.
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), segment: Segment::Key(key) }
    }

    /// The field is set, and this proxy does not do what it asks for.
    pub fn unsupported(&self) -> ConfigError {
        self.error(Problem::Unsupported)
    }

    /// The field is not set, and must be.
    pub fn missing(&self) -> ConfigError {
        self.error(Problem::Missing)
    }

    /// The field has a value that makes no sense or is not supported.
    pub fn invalid(&self, value: impl fmt::Display, reason: impl fmt::Display) -> ConfigError {
        // A hostile value must not swell the NACK.
        let value = value.to_string().chars().take(200).collect();
        self.error(Problem::Invalid { value, reason: reason.to_string() })
    }

    /// The `Any` holds a type that this proxy has no code for.
    pub fn unsupported_type(&self, type_url: &str) -> ConfigError {
        self.error(Problem::UnsupportedType(type_url.chars().take(200).collect()))
    }

    /// The same name or match twice.
    pub fn duplicate(&self, what: impl fmt::Display) -> ConfigError {
        self.error(Problem::Duplicate(what.to_string()))
    }

    fn error(&self, problem: Problem) -> ConfigError {
        ConfigError { path: self.to_string(), problem }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut dot = "";
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            dot = if matches!(parent.segment, Segment::Root) { "" } else { "." };
        }
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Field(name) => write!(f, "{dot}{name}"),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) => write!(f, "[{key:?}]"),
        }
    }
}

/// Why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    /// Field path within the resource.
    pub path: String,
    /// What is wrong there.
    pub problem: Problem,
}

/// The kinds of refusal.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// Set, but not supported.
    #[error("is not supported by this proxy; leave it unset")]
    Unsupported,
    /// Not set, but needed.
    #[error("must be set")]
    Missing,
    /// Set to something that cannot be used.
    #[error("{value:?} {reason}")]
    Invalid {
        /// The value, cut to 200 characters.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An extension that does not exist here.
    #[error("extension type {0:?} is not supported by this proxy")]
    UnsupportedType(String),
    /// Bytes that are no such message.
    #[error("cannot be decoded: {0}")]
    Malformed(String),
    /// A name or match that is there already.
    #[error("{0} is there more than once")]
    Duplicate(String),
}

impl Path<'_> {
    /// The bytes are no such message.
    pub fn malformed(&self, reason: impl fmt::Display) -> ConfigError {
        self.error(Problem::Malformed(reason.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_like_the_field_in_the_resource() {
        let root = Path::ROOT;
        let chains = root.field("filter_chains");
        let chain = chains.index(0);
        let filters = chain.field("filters");
        let filter = filters.index(1);
        let domain = filter.field("r#type");
        assert_eq!(domain.to_string(), "filter_chains[0].filters[1].type");
        assert_eq!(domain.missing().to_string(), "filter_chains[0].filters[1].type: must be set");
        assert_eq!(root.field("options").key("a.b").to_string(), "options[\"a.b\"]");
    }
}
