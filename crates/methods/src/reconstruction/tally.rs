//! What became of the units that a method learned, for the report.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What became of the units of a network: a line for the report.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    outcomes: Mutex<BTreeMap<Outcome, usize>>,
    /// Whose outputs' Fisher information is not known, though it was asked for.
    unweighted: AtomicUsize,
}

impl Tally {
    pub fn add(&self, outcome: Outcome) {
        *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// Adds a unit without Fisher information.
    pub fn add_unweighted(&self) {
        self.unweighted.fetch_add(1, Ordering::Relaxed);
    }

    /// `what` are the units.
    pub fn findings(&self, what: &str) -> Vec<String> {
        let counts = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |(outcome, count): (&Outcome, &usize)| match outcome {
            Outcome::Learned => format!("{count} learned"),
            Outcome::NotCloser => format!("{count} left as they were, since samples held back came no closer"),
            Outcome::NoTime => format!("{count} left for lack of time or of samples"),
            Outcome::NoDerivative => format!("{count} left, which cannot be computed image by image and back"),
        };
        let all: Vec<String> = counts.iter().map(one).collect();
        let mut lines = if all.is_empty() { vec![] } else { vec![format!("{what}: {}", all.join(", "))] };
        let unweighted = self.unweighted.load(Ordering::Relaxed);
        if unweighted > 0 {
            lines.push(format!(
                "{what} without Fisher information, as nothing behind them has a derivative: {unweighted}"
            ));
        }
        lines
    }
}

/// What became of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Learned,
    NotCloser,
    NoTime,
    NoDerivative,
}
