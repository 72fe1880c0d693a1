//! Testbed, demo, and the tests that need several parts.
