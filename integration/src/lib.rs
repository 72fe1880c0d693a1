//! Testbed, demo, and the tests that need several parts.

pub mod story;
pub mod testbed;
