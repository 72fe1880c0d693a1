//! Benchmarks that anybody can repeat: ours and a baseline in turn, in one run, on one machine, with the spread
//! beside each figure and the lost rows among the won ones.
//!
//! The arithmetic (`stats`, `report`) is pure; `process` and the folders beside it start real programs.

pub mod compile;
pub mod control;
pub mod datapath;
pub mod machine;
pub mod process;
pub mod report;
pub mod stats;
pub mod xds;
