//! What is asked of a search.

use super::Strategy;
use crate::methods::Method;
use fewbits_search::{Budget, LatencyTable, Level, Metric, allocate::Allocator};
use std::{path::PathBuf, time::Duration};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How.
    pub strategy: Strategy,
    /// What the network may cost, all at once.
    pub budgets: Vec<Budget>,
    /// The most samples, in percent, whose class may change; the smallest network within that is searched.
    pub max_drop: Option<f64>,
    /// Widths of weights to choose from, ascending.
    pub widths: Vec<u8>,
    /// Widths of inputs of layers to choose from, ascending; empty leaves all at those of the quantization.
    pub input_widths: Vec<u8>,
    /// What damage is, if not the strategy's own.
    pub metric: Option<Metric>,
    /// Where that of single layers is looked at, if not where the strategy does.
    pub level: Option<Level>,
    /// How budgets are spent, if not exactly.
    pub allocator: Option<Allocator>,
    /// Exchanges in a row that may fail before the last search, on the measured damage of the whole network, is over; 0 leaves it out.
    pub patience: usize,
    /// The most calibration samples that damage is measured on, spread evenly over them.
    pub samples: usize,
    /// The most assignments that are tried on the whole network.
    pub evaluations: usize,
    /// Whether the agent and evolution begin with random assignments, not with what sensitivities say.
    pub cold_start: bool,
    /// A method that rounds the weights of the assignments that are tried; without one they go to the nearest codes.
    pub inside: Option<Method>,
    /// Time after which none is tried any more.
    pub time_budget: Duration,
    /// Times of layers, for latency budgets.
    pub latency: Option<LatencyTable>,
    /// Where measured assignments are kept.
    pub journal: Option<PathBuf>,
    /// Go on from there.
    pub resume: bool,
}

impl Settings {
    /// Everything by default but the strategy and the budgets.
    pub fn new(strategy: Strategy, budgets: Vec<Budget>) -> Self {
        Settings {
            strategy,
            budgets,
            max_drop: None,
            widths: vec![2, 3, 4, 5, 6, 8],
            input_widths: vec![],
            metric: None,
            level: None,
            allocator: None,
            patience: if strategy.is_sampling() { 0 } else { 8 },
            samples: 64,
            evaluations: 600,
            cold_start: false,
            inside: None,
            time_budget: Duration::from_secs(1800),
            latency: None,
            journal: None,
            resume: false,
        }
    }
}
