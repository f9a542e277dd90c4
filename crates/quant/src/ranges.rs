//! From what was seen of an activation to its grid: the range rules.
//!
//! What enters: the statistics of one tensor, a rule and a grid. What leaves: one scale and zero point. Every rule is a pure
//! function in a file of its own that proposes a [`Range`]; [`Range::params`] is the only way from a range to a grid.

mod aciq;
mod kl;
mod moments;
mod mse;
mod params;
mod percentile;
mod reader;

pub use aciq::{Prior, optimum};
pub use moments::Moments;
pub use params::{Mapping, Range};
pub use reader::Reader;

use crate::{
    error::QuantError,
    stats::{Histogram, TensorStats},
};
use fewbits_graph::{Grid, QuantParams};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How the range of an activation is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RangeRule {
    /// `minmax`: the smallest and the largest element seen.
    MinMax,
    /// `mean-minmax`: the mean over the images of each image's smallest and largest element.
    MeanMinMax,
    /// `moving-average`: the same with weight 0.1 for each new image.
    MovingAverage,
    /// `percentile:P`: the quantiles `1 − P/100` and `P/100`.
    Percentile(f64),
    /// `mse`: the range with the least expected squared error.
    Mse,
    /// `output-mse`: the same with every element weighted by how much its channel matters to the layers behind.
    OutputMse,
    /// `kl`: the threshold with the least relative entropy, as TensorRT does.
    Kl,
    /// `aciq`: the analytic clipping of ACIQ under whichever prior has the lower squared error.
    Aciq,
    /// `aciq-laplace`, `aciq-gauss`: the same under a given prior.
    AciqPrior(Prior),
}

impl fmt::Display for RangeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RangeRule::MinMax => "minmax",
            RangeRule::MeanMinMax => "mean-minmax",
            RangeRule::MovingAverage => "moving-average",
            RangeRule::Percentile(p) => return write!(f, "percentile:{p}"),
            RangeRule::Mse => "mse",
            RangeRule::OutputMse => "output-mse",
            RangeRule::Kl => "kl",
            RangeRule::Aciq => "aciq",
            RangeRule::AciqPrior(Prior::Laplace) => "aciq-laplace",
            RangeRule::AciqPrior(Prior::Gauss) => "aciq-gauss",
        })
    }
}

impl FromStr for RangeRule {
    type Err = QuantError;

    fn from_str(text: &str) -> Result<Self, QuantError> {
        Ok(match text {
            "minmax" => RangeRule::MinMax,
            "mean-minmax" => RangeRule::MeanMinMax,
            "moving-average" => RangeRule::MovingAverage,
            "mse" => RangeRule::Mse,
            "output-mse" => RangeRule::OutputMse,
            "kl" => RangeRule::Kl,
            "aciq" => RangeRule::Aciq,
            "aciq-laplace" => RangeRule::AciqPrior(Prior::Laplace),
            "aciq-gauss" => RangeRule::AciqPrior(Prior::Gauss),
            _ => {
                let percent = text.strip_prefix("percentile:").and_then(|p| p.parse().ok());
                let percent = percent.filter(|p| *p > 50.0 && *p <= 100.0);
                RangeRule::Percentile(percent.ok_or_else(|| QuantError::UnknownRangeRule { text: text.into() })?)
            }
        })
    }
}

impl TryFrom<String> for RangeRule {
    type Error = QuantError;

    fn try_from(text: String) -> Result<Self, QuantError> {
        text.parse()
    }
}

impl From<RangeRule> for String {
    fn from(rule: RangeRule) -> String {
        rule.to_string()
    }
}

impl RangeRule {
    /// The range that this rule proposes for a tensor on `grid`. It lies within what was seen, and contains zero.
    pub fn range(self, stats: &TensorStats, grid: Grid, mapping: Mapping) -> Range {
        let seen = Range::of(f64::from(stats.min), f64::from(stats.max));
        let images = stats.images.max(1) as f64;
        let proposed = match self {
            RangeRule::MinMax => seen,
            RangeRule::MeanMinMax => Range::of(stats.sum_of_image_min / images, stats.sum_of_image_max / images),
            RangeRule::MovingAverage => Range::of(stats.moving_min, stats.moving_max),
            RangeRule::Percentile(percent) => percentile::range(stats, percent / 100.0),
            RangeRule::Mse => mse::range(&Moments::new(stats), seen, grid, mapping),
            RangeRule::OutputMse => {
                mse::range(&Moments::behind(stats, self.histogram(stats), Reader::Identity), seen, grid, mapping)
            }
            RangeRule::Kl => kl::range(stats, grid),
            RangeRule::AciqPrior(prior) => aciq::range(stats, prior, grid),
            RangeRule::Aciq => {
                let moments = Moments::new(stats);
                let error = |range: &Range| moments.mean_squared_error(&range.intersect(seen).params(grid, mapping));
                let [laplace, gauss] = [Prior::Laplace, Prior::Gauss].map(|prior| aciq::range(stats, prior, grid));
                if error(&gauss) < error(&laplace) { gauss } else { laplace }
            }
        };
        proposed.intersect(seen)
    }

    /// The range that this rule proposes for a tensor that is only read through `reader`: no wider than what is best behind it.
    pub fn range_behind(self, stats: &TensorStats, grid: Grid, mapping: Mapping, reader: Reader) -> Range {
        let range = self.range(stats, grid, mapping);
        match reader {
            Reader::Identity => range,
            _ => {
                let range =
                    if self == RangeRule::OutputMse { Range::of(stats.min.into(), stats.max.into()) } else { range };
                let seen = Range::of(f64::from(stats.min), f64::from(stats.max));
                range.intersect(mse::range(&Moments::behind(stats, self.histogram(stats), reader), seen, grid, mapping))
            }
        }
    }

    /// The histogram that squared errors are taken over.
    fn histogram(self, stats: &TensorStats) -> &Histogram {
        if self == RangeRule::OutputMse && stats.weighted.total() > 0 { &stats.weighted } else { &stats.histogram }
    }

    /// The grid that this rule chooses for a tensor.
    pub fn params(self, stats: &TensorStats, grid: Grid, mapping: Mapping) -> QuantParams {
        self.range(stats, grid, mapping).params(grid, mapping)
    }
}

#[cfg(test)]
mod tests;
