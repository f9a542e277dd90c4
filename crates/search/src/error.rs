//! What can go wrong in a search.

use crate::Budget;
use fewbits_graph::GraphError;
use fewbits_methods::MethodError;
use fewbits_quant::QuantError;
use thiserror::Error;

/// An error of a search.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SearchError {
    /// The network or its samples.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// A weight that cannot be quantized.
    #[error(transparent)]
    Quant(#[from] QuantError),
    /// A budget that cannot be read.
    #[error("`{text}` is not a budget")]
    NotABudget {
        /// What was given.
        text: String,
    },
    /// A name that does not exist.
    #[error("unknown {what} `{text}`")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// What was given.
        text: String,
        /// What there is.
        known: &'static str,
    },
    /// No layer has a weight with a grid.
    #[error("the network has no layer with a quantized weight")]
    NoLayers,
    /// A budget of time without times.
    #[error("there are no times for {}", layer.as_ref().map_or("a latency budget".into(), |layer| format!("layer `{layer}`")))]
    NoLatency {
        /// The layer that the table lacks, if there is a table.
        layer: Option<String>,
    },
    /// Costs that the allocator cannot spend.
    #[error("{allocator} spends one budget of weights only")]
    NotSeparable {
        /// The allocator.
        allocator: &'static str,
    },
    /// An integer program without a solution.
    #[error("no widths could be found that keep all budgets together")]
    Solver(#[from] microlp::Error),
    /// The budget is less than the network takes with the fewest bits.
    #[error("the budget {budget} is less than the network needs with the fewest bits: {least}")]
    Infeasible {
        /// What was asked for.
        budget: Budget,
        /// The least that there is.
        least: Budget,
    },
}

impl From<GraphError> for SearchError {
    fn from(error: GraphError) -> Self {
        SearchError::Method(error.into())
    }
}

impl SearchError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            SearchError::Method(source) => source.hint(),
            SearchError::Quant(source) => source.hint(),
            SearchError::NotABudget { .. } => Some("write size=1.67MiB, avg-bits=4, bops=34G or latency=12ms".into()),
            SearchError::NoLatency { .. } => Some(
                "`fewbits bench MODEL --latency-table FILE` measures them; give the file as --latency-table".into(),
            ),
            SearchError::NotSeparable { .. } => Some("use --allocator ilp or greedy".into()),
            SearchError::Unknown { known, .. } => Some(format!("there are: {known}")),
            SearchError::Infeasible { .. } => Some("raise the budget, or allow fewer bits with --bits".into()),
            SearchError::NoLayers | SearchError::Solver(_) => None,
        }
    }
}
