//! How bits are searched for, by name.

use fewbits_search::{Level, Metric};
use serde::Serialize;
use std::{fmt, str::FromStr};

/// A strategy of `fewbits search --strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// By the similarity of output feature maps, layer by layer (Chen 2023).
    #[default]
    Ofm,
    /// By the Kullback-Leibler divergence of the outputs, one layer rounded at a time (ZeroQ).
    Kl,
    /// By the trace of the Hessian of each layer (HAWQ-V2, -V3).
    Hessian,
    /// From the widest widths down, the whole network measured again and again.
    Greedy,
    /// HAQ's agent, by reinforcement learning.
    Rl,
    /// Mutation, crossover and selection.
    Evolution,
    /// Random assignments within the budget: what others have to beat.
    Random,
}

const NAMES: [(Strategy, &str); 7] = [
    (Strategy::Ofm, "ofm"),
    (Strategy::Kl, "kl"),
    (Strategy::Hessian, "hessian"),
    (Strategy::Greedy, "greedy"),
    (Strategy::Rl, "rl"),
    (Strategy::Evolution, "evolution"),
    (Strategy::Random, "random"),
];

impl Strategy {
    /// Whether it learns from measurements of whole assignments, rather than from sensitivities of single layers.
    pub fn is_sampling(self) -> bool {
        matches!(self, Strategy::Rl | Strategy::Evolution | Strategy::Random)
    }

    /// What damage is if nothing else is asked for. `classifies` says whether the network's outputs are scores of classes.
    pub fn metric(self, classifies: bool) -> Metric {
        match self {
            Strategy::Ofm | Strategy::Greedy => Metric::Snr,
            _ if classifies => Metric::Kl,
            _ => Metric::Snr,
        }
    }

    /// Where the damage of single layers is looked at if nothing else is asked for.
    pub fn level(self) -> Level {
        match self {
            Strategy::Kl => Level::Network,
            _ => Level::Weighted,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(strategy, _)| strategy == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(_, name)| *name == text).map(|(strategy, _)| *strategy);
        let names: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
        found.ok_or_else(|| format!("`{text}` is no strategy; there are {}", names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (strategy, name) in NAMES {
            assert_eq!((strategy.to_string().as_str(), name.parse()), (name, Ok(strategy)));
        }
        assert!("haq".parse::<Strategy>().unwrap_err().contains("rl, evolution"));
    }
}
