//! The agent's engine on the real maps when things go wrong: it dies between two writes, maps are full, identities come and
//! go by the thousand, and what it is told contradicts itself. Verdicts are those of the loaded programs
//! (`BPF_PROG_TEST_RUN`) and of real packets. Needs root.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

#[path = "../support/mod.rs"]
mod support;

mod churn;
mod contradict;
mod crash;
mod full;
mod world;
