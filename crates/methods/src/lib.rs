//! Post-training methods that change weights: one folder each, a pure decision first.
//!
//! What enters: a prepared graph, its grids and what was measured. What leaves: full replacement tensors by name (patches). This room
//! knows no files, no data sets and no command line.

pub mod bias_correction;
pub mod equalization;
pub mod output_scaling;
