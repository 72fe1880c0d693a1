//! The cases.

mod audit;
mod cilium;
mod entities;
mod network_policy;
mod tiers;

use super::case::Case;

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [network_policy::CASES, cilium::CASES, entities::CASES, tiers::CASES, audit::CASES].into_iter().flatten()
}
