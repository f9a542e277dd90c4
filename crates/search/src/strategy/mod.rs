//! Searches that measure whole assignments, one after the other, and let what they find decide what to try next.
//!
//! A [`Problem`] and a function that measures the damage of an assignment enter; the assignments that were measured leave, in order.
//! What is proposed depends on the seed, the problem and the measured damages only, and always keeps the budgets: a search is
//! resumed by running it again and answering what is known already without measuring. It knows no network, no clock and no file.

pub mod evolution;
pub mod fitting;
pub mod pareto;
pub mod random;
pub mod rl;

use crate::{Problem, SearchError};

/// An assignment that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// The choice of each item, as in [`Problem::items`].
    pub choices: Vec<usize>,
    /// What was measured; lower is better.
    pub damage: f64,
}

/// Measures an assignment. `None` ends the search.
pub type Measure<'a> = dyn FnMut(&[usize]) -> Result<Option<f64>, SearchError> + 'a;

/// What all strategies are told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The most assignments that are measured.
    pub evaluations: usize,
    /// Start of the random numbers.
    pub seed: u64,
    /// Assignments to begin with, such as the solution of an allocator. Those that exceed a budget are left out.
    pub start: Vec<Vec<usize>>,
}

/// The best trial, the first of equals.
pub fn best(trials: &[Trial]) -> Option<&Trial> {
    trials.iter().min_by(|a, b| a.damage.total_cmp(&b.damage))
}

/// A search under way.
struct Record<'r, 'm> {
    measure: &'r mut Measure<'m>,
    evaluations: usize,
    trials: Vec<Trial>,
}

impl<'r, 'm> Record<'r, 'm> {
    fn new(settings: &Settings, measure: &'r mut Measure<'m>) -> Self {
        Record { measure, evaluations: settings.evaluations, trials: vec![] }
    }

    /// Measures `choices`. `None` if the search is over.
    fn measure(&mut self, choices: &[usize]) -> Result<Option<f64>, SearchError> {
        if self.trials.len() == self.evaluations {
            return Ok(None);
        }
        let damage = (self.measure)(choices)?;
        if let Some(damage) = damage {
            self.trials.push(Trial { choices: choices.to_vec(), damage });
        }
        Ok(damage)
    }

    fn knows(&self, choices: &[usize]) -> bool {
        self.trials.iter().any(|trial| trial.choices == choices)
    }
}

impl Settings {
    fn fitting_start<'a>(&'a self, problem: &'a Problem) -> impl Iterator<Item = &'a Vec<usize>> {
        self.start.iter().filter(|choices| problem.fits(choices))
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod toy;
