//! Which flows a request is about. PURE.

mod one;
mod text;

use thiserror::Error;
use xds_proto::hubble::flow::{Flow, FlowFilter};

use self::one::Filter;

/// Filters of one list.
const MAX_FILTERS: usize = 64;
/// Values of all fields of all filters together.
pub(crate) const MAX_VALUES: usize = 1_024;
/// Bytes of one value.
pub(crate) const MAX_TEXT: usize = 1_024;

/// What is wrong with a filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum FilterError {
    #[error("{list} has {count} filters, at most {MAX_FILTERS} are allowed")]
    TooMany { list: &'static str, count: usize },
    #[error("the filters have {count} values together, at most {MAX_VALUES} are allowed")]
    TooManyValues { count: usize },
    #[error("{list}[{index}].{field}: {value:?} {wanted}")]
    Value { list: &'static str, index: usize, field: &'static str, value: String, wanted: String },
    #[error("{list}[{index}].{field} is not served: no flow here has it")]
    NotServed { list: &'static str, index: usize, field: &'static str },
}

/// The two lists of a request.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    allow: Vec<Filter>,
    deny: Vec<Filter>,
}

impl Filters {
    /// Reads both lists.
    ///
    /// # Errors
    /// Names list, filter, field and value. A field that can't be looked at is refused, never taken for one that fits.
    pub fn new(whitelist: &[FlowFilter], blacklist: &[FlowFilter]) -> Result<Self, FilterError> {
        let mut values = 0;
        let mut read = |list: &'static str, filters: &[FlowFilter]| {
            if filters.len() > MAX_FILTERS {
                return Err(FilterError::TooMany { list, count: filters.len() });
            }
            let mut read = Vec::with_capacity(filters.len());
            for (index, filter) in filters.iter().enumerate() {
                let filter = Filter::new(filter).map_err(|error| error.at(list, index))?;
                values += filter.values();
                if values > MAX_VALUES {
                    return Err(FilterError::TooManyValues { count: values });
                }
                read.push(filter);
            }
            Ok(read)
        };
        Ok(Self { allow: read("whitelist", whitelist)?, deny: read("blacklist", blacklist)? })
    }

    /// Whether a flow is one of those that were asked for: any filter of the whitelist fits, if there are some, and none
    /// of the blacklist does.
    pub fn fit(&self, flow: &Flow) -> bool {
        let wanted = self.allow.is_empty() || self.allow.iter().any(|filter| filter.fits(flow));
        wanted && !self.deny.iter().any(|filter| filter.fits(flow))
    }
}
