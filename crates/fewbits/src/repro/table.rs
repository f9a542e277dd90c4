//! What a published table is: rows with what the paper found and how it is found again, and the orderings that it claims.

use fewbits_train::{
    quantizers::{Method, Settings},
    recipe::Fold,
};
use std::fmt;

/// A published table. Accuracies are top-1, percent, on ImageNet.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name on the command line.
    pub name: &'static str,
    /// Paper and table.
    pub source: &'static str,
    /// The network, as the paper writes it.
    pub network: &'static str,
    /// The same in the zoo.
    pub architecture: &'static str,
    /// What stands in for it on small images.
    pub proxy: &'static str,
    /// Of the float network.
    pub float: f64,
    /// Runs of each row.
    pub seeds: usize,
    /// Whether size is part of the table.
    pub sizes: bool,
    /// In the paper's order.
    pub rows: Vec<Row>,
    /// What the paper concludes.
    pub claims: Vec<Claim>,
}

/// One number of a table and how it is found again.
#[derive(Clone, Debug)]
pub struct Row {
    /// What the paper calls it.
    pub name: &'static str,
    /// Bits of weights.
    pub weights: u8,
    /// Bits of activations.
    pub activations: u8,
    /// What the paper found.
    pub published: Accuracy,
    /// How it is found again.
    pub way: Way,
}

/// A mean over runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// Mean, percent.
    pub mean: f64,
    /// Standard deviation, where there are several runs.
    pub spread: Option<f64>,
}

/// How a row comes about.
#[derive(Clone, Debug)]
pub enum Way {
    /// By training, one scale for each weight tensor.
    Train {
        /// The method.
        method: Method,
        /// Its choices.
        settings: Box<Settings>,
        /// Batch normalization and weights.
        fold: Fold,
    },
    /// By `fewbits quantize`, one scale for each weight tensor.
    Quantize,
}

/// How two neighbours in a chain compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `<`: less.
    Less,
    /// `≪`: at least [`POINT`] less.
    MuchLess,
    /// `≈`: less than [`POINT`] apart.
    Close,
}

/// What "much" and "close" turn on, in points: the LSQ+ tables have pairs called equal up to 0.7 apart, pairs called far from 2.2.
pub const POINT: f64 = 1.0;

impl Relation {
    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Relation::Less => left < right,
            Relation::MuchLess => left <= right - POINT,
            Relation::Close => (left - right).abs() < POINT,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Relation::Less => "<",
            Relation::MuchLess => "≪",
            Relation::Close => "≈",
        })
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Mean top-1.
    Top1,
    /// Its spread over runs.
    Spread,
}

/// An ordering of rows at one width.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What is compared.
    pub quantity: Quantity,
    /// Bits of weights and of activations.
    pub bits: (u8, u8),
    /// Names of rows; each stands in a relation to the next.
    pub first: &'static str,
    /// The others.
    pub rest: &'static [(Relation, &'static str)],
}

impl Claim {
    /// Whether it holds for these accuracies; `None` if one is missing.
    pub fn holds(&self, accuracy: impl Fn(&str, (u8, u8)) -> Option<Accuracy>) -> Option<bool> {
        let value = |row: &str| {
            let found = accuracy(row, self.bits)?;
            if self.quantity == Quantity::Spread { found.spread } else { Some(found.mean) }
        };
        let mut left = value(self.first)?;
        let mut all = true;
        for (relation, row) in self.rest {
            let right = value(row)?;
            all &= relation.holds(left, right);
            left = right;
        }
        Some(all)
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quantity = if self.quantity == Quantity::Spread { "spread" } else { "top-1" };
        write!(f, "W{}A{} {quantity}: {}", self.bits.0, self.bits.1, self.first)?;
        self.rest.iter().try_for_each(|(relation, row)| write!(f, " {relation} {row}"))
    }
}

impl Table {
    /// What the paper found.
    pub fn published(&self, row: &str, bits: (u8, u8)) -> Option<Accuracy> {
        self.rows.iter().find(|r| r.name == row && (r.weights, r.activations) == bits).map(|r| r.published)
    }
}
