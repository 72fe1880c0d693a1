//! Which endpoint a request goes to. Pure: time and randomness are passed in.

mod ejection;
mod endpoints;
mod levels;
mod pick;

pub use ejection::{Ejection, EjectionConfig, Failure, Verdict};
pub use endpoints::{Assignment, Endpoint, Health};
pub use levels::{Candidate, LevelConfig, Levels, Pool};
pub use pick::{Policy, pick};
