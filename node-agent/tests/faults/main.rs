//! The agent's engine on the real maps when things go wrong: it dies between two writes, maps are full, entries are displaced, and what it is told
//! contradicts itself. Verdicts are those of the loaded programs (`BPF_PROG_TEST_RUN`). Needs root.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

#[path = "../support/mod.rs"]
mod support;

mod contradict;
mod crash;
mod displaced;
mod full;
mod world;
