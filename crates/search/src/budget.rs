//! The budget language: what a network may cost.

use crate::SearchError;
use std::{fmt, str::FromStr};

/// The most that a network may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// `size=1.67MiB`: bytes to deploy ([`crate::cost::packed`]), with first and last layers at the bits that they have.
    Size(u64),
    /// `avg-bits=4`: mean bits of the weights whose width is chosen. First and last layers that keep their bits do not count, so
    /// that `avg-bits=4` allows the bytes of 4 bits everywhere.
    AvgBits(f64),
    /// `bops=34G`: `Σ MACs · weight bits · activation bits` of all layers for one image, first and last ones included.
    Bops(f64),
    /// `latency=12ms`: seconds for one image, by a [`crate::LatencyTable`].
    Latency(f64),
}

impl Budget {
    /// Bytes, bits, bit operations or seconds.
    pub fn amount(self) -> f64 {
        match self {
            Budget::Size(bytes) => bytes as f64,
            Budget::AvgBits(amount) | Budget::Bops(amount) | Budget::Latency(amount) => amount,
        }
    }

    /// The same kind of budget with another amount.
    #[must_use]
    pub fn with_amount(self, amount: f64) -> Self {
        match self {
            Budget::Size(_) => Budget::Size(amount as u64),
            Budget::AvgBits(_) => Budget::AvgBits(amount),
            Budget::Bops(_) => Budget::Bops(amount),
            Budget::Latency(_) => Budget::Latency(amount),
        }
    }
}

const BYTES: [(&str, f64); 7] = [
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("B", 1.0),
];
const TIMES: [(&str, f64); 4] = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
const COUNTS: [(&str, f64); 4] = [("K", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)];

impl FromStr for Budget {
    type Err = SearchError;

    fn from_str(text: &str) -> Result<Self, SearchError> {
        let budget = || match text.split_once('=')? {
            ("size", amount) => Some(Budget::Size(number(amount, &BYTES).filter(|bytes| *bytes >= 1.0)? as u64)),
            ("avg-bits", amount) => Some(Budget::AvgBits(number(amount, &[])?)),
            ("bops", amount) => Some(Budget::Bops(number(amount, &COUNTS)?)),
            ("latency", amount) => Some(Budget::Latency(number(amount, &TIMES)?)),
            _ => None,
        };
        budget().ok_or_else(|| SearchError::NotABudget { text: text.into() })
    }
}

/// A positive number, times what its unit stands for.
fn number(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (digits, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor))).unwrap_or((text, 1.0));
    let value = digits.trim().parse::<f64>().ok()? * factor;
    (value.is_finite() && value > 0.0).then_some(value)
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scaled = |value: f64, units: &[(&'static str, f64)]| {
            let unit = units.iter().rev().find(|(_, factor)| value >= *factor);
            unit.map_or((value, ""), |(unit, factor)| (value / factor, *unit))
        };
        let (name, (value, unit)) = match *self {
            Budget::Size(bytes) if bytes < 1024 => ("size", (bytes as f64, "B")),
            Budget::Size(bytes) => ("size", scaled(bytes as f64, &BYTES[..3])),
            Budget::AvgBits(bits) => ("avg-bits", (bits, "")),
            Budget::Bops(bops) => ("bops", scaled(bops, &COUNTS)),
            Budget::Latency(seconds) => ("latency", scaled(seconds, &TIMES)),
        };
        // Four significant decimals at most, and no zeros behind them.
        write!(f, "{name}={}{unit}", (value * 1e4).round() / 1e4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_and_written() {
        for (text, budget, written) in [
            ("size=1.67MiB", Budget::Size(1_751_121), "size=1.67MiB"),
            ("size=2MB", Budget::Size(2_000_000), "size=1.9073MiB"),
            ("size=640KiB", Budget::Size(655_360), "size=640KiB"),
            ("size=1.5KB", Budget::Size(1_500), "size=1.4648KiB"),
            ("size=100", Budget::Size(100), "size=100B"),
            ("size=100B", Budget::Size(100), "size=100B"),
            ("avg-bits=3.5", Budget::AvgBits(3.5), "avg-bits=3.5"),
            ("bops=34G", Budget::Bops(34e9), "bops=34G"),
            ("bops=1e6", Budget::Bops(1e6), "bops=1M"),
            ("latency=12ms", Budget::Latency(0.012), "latency=12ms"),
            ("latency=800us", Budget::Latency(800.0 * 1e-6), "latency=800us"),
            ("latency=1.5", Budget::Latency(1.5), "latency=1.5s"),
        ] {
            assert_eq!(text.parse::<Budget>().unwrap(), budget, "{text}");
            assert_eq!(budget.to_string(), written);
        }
    }

    #[test]
    fn what_is_no_budget_is_told_how_to_write_one() {
        for text in [
            "",
            "size",
            "size=",
            "size=-1MiB",
            "size=1.5XB",
            "avg-bits=4MiB",
            "bops=nan",
            "bits=4",
            "size=0",
            "size=0.5",
        ] {
            let error = text.parse::<Budget>().unwrap_err();
            assert!(error.to_string().contains(text) && error.hint().unwrap().contains("avg-bits=4"));
        }
    }
}
