//! Why an object is refused, and where in it.

use std::fmt;

use thiserror::Error;

/// Longest value that an error repeats, in characters.
const MAX_SHOWN: usize = 64;

/// An object that breaks its kind's rules. One sentence for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct ObjectError {
    /// `networkpolicy/shop/x`, as far as it could be read.
    pub object: String,
    /// `spec.ingress[0].ports[1].port`; empty for the object as a whole.
    pub path: String,
    /// What stands there, shortened; empty where nothing does.
    pub value: String,
    /// What is wrong with it, and where possible what to write instead.
    pub reason: String,
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        if !self.value.is_empty() {
            write!(f, " = {}", self.value)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// An [`ObjectError`] before the object's name is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) path: String,
    pub(super) value: String,
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn of(self, object: String) -> ObjectError {
        ObjectError { object, path: self.path, value: self.value, reason: self.reason }
    }
}

/// A place in an object, as the user would write it.
#[derive(Debug, Clone)]
pub(super) struct At(String);

impl At {
    pub(super) fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn field(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    pub(super) fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// A map entry whose key may hold dots.
    pub(super) fn key(&self, key: &str) -> Self {
        Self(format!("{}[{}]", self.0, shown(key)))
    }

    pub(super) fn fault(&self, value: impl fmt::Display, reason: impl Into<String>) -> Fault {
        Fault { path: self.0.clone(), value: shown(&value.to_string()), reason: reason.into() }
    }

    pub(super) fn refuse<T>(&self, value: impl fmt::Display, reason: impl Into<String>) -> Result<T, Fault> {
        Err(self.fault(value, reason))
    }

    /// For a field that is absent.
    pub(super) fn missing(&self) -> Fault {
        self.fault("", "is required")
    }

    /// Names the first of the fields that is there: each would have an effect that this mesh does not have.
    pub(super) fn unsupported(&self, fields: &[(&str, bool)]) -> Result<(), Fault> {
        for (name, present) in fields {
            if *present {
                return self.field(name).refuse("", "is not supported");
            }
        }
        Ok(())
    }

    pub(super) fn at_most<T>(&self, list: &[T], limit: usize) -> Result<(), Fault> {
        if list.len() > limit {
            return self.refuse("", format!("has {} entries, but at most {limit} are allowed", list.len()));
        }
        Ok(())
    }
}

/// One line of at most [`MAX_SHOWN`] characters.
pub(super) fn shown(value: &str) -> String {
    let mut out: String =
        value.chars().take(MAX_SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if value.chars().nth(MAX_SHOWN).is_some() {
        out.push('…');
    }
    out
}
