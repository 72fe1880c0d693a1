//! Which endpoint a request goes to. Pure: time and randomness are passed in.

mod check;
mod ejection;
mod endpoints;
pub mod hash;
mod levels;
pub mod metadata;
mod pick;
mod rates;
mod slow_start;
mod subset;
mod table;
mod zone;

pub use check::{Check, CheckTiming, Checked};
pub use ejection::{Circumstances, Ejection, EjectionConfig, Failure, InRow, Reason, Verdict};
pub use endpoints::{Assignment, DropShare, Endpoint, Health, ProbeTarget};
pub use hash::HashFunction;
pub use levels::{Candidate, Hashing, LevelConfig, Levels, Pool, Spread};
pub use metadata::{Criteria, Metadata};
pub use pick::{Draw, Policy, pick};
pub use rates::{Outlier, RateConfig, Sample, outliers};
pub use slow_start::SlowStart;
pub use subset::{Fallback, Selector, SubsetConfig, Subsets};
pub use table::{Table, TableKind};
pub use zone::{Place, ZoneAware};
