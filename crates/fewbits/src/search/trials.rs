//! Assignments tried on the whole network: measured once, written down, counted.

use super::{Journal, Settings};
use crate::{Error, progress::Progress};
use fewbits_search::{
    Problem, SearchError, Whole,
    strategy::{Measure, Trial},
};
use std::time::Instant;

/// Why no damage is told.
#[derive(Debug)]
pub struct Over;

/// The assignments of one search, and what measures them.
pub struct Trials<'a, 'w> {
    /// What is chosen.
    pub problem: &'a Problem,
    /// Told of each assignment.
    pub progress: &'a dyn Progress,
    whole: &'a mut Whole<'w>,
    journal: &'a mut Journal,
    left: usize,
    /// `None` if it is beyond all time.
    deadline: Option<Instant>,
    all: Vec<Trial>,
    failed: Option<Error>,
    /// Whether `whole` knows the best of the journal, with which others are compared.
    caught_up: bool,
}

impl<'a, 'w> Trials<'a, 'w> {
    /// No assignment yet, of a search that began at `begun`.
    pub fn new(
        problem: &'a Problem,
        whole: &'a mut Whole<'w>,
        journal: &'a mut Journal,
        search: &Settings,
        begun: Instant,
        progress: &'a dyn Progress,
    ) -> Self {
        let (left, deadline) = (search.evaluations, begun.checked_add(search.time_budget));
        progress.begin("searching", left);
        Trials { problem, progress, whole, journal, left, deadline, all: vec![], failed: None, caught_up: false }
    }

    /// Measures `choices` whatever the budget of evaluations says.
    ///
    /// # Errors
    /// Those of the network and the journal.
    pub fn keep(&mut self, choices: &[usize]) -> Result<f64, Error> {
        let damage = match self.journal.get(choices) {
            Some(damage) => damage,
            None => {
                if let (false, Some(best)) = (self.caught_up, self.journal.best()) {
                    self.whole.compared(&self.problem.bits(best))?;
                }
                self.caught_up = true;
                let damage = self.whole.compared(&self.problem.bits(choices))?;
                self.journal.add(choices, damage)?
            }
        };
        self.all.push(Trial { choices: choices.to_vec(), damage });
        if let Some(best) = self.best() {
            self.progress.say(&format!("damage {:.4}, best {:.4}", damage, best.damage));
        }
        Ok(damage)
    }

    /// Measures `choices`, if there is time and none failed before.
    ///
    /// # Errors
    /// [`Over`] if not.
    pub fn measure(&mut self, choices: &[usize]) -> Result<f64, Over> {
        // What is known costs no time: a search that goes on gets as far as it was.
        let late =
            self.deadline.is_some_and(|deadline| Instant::now() > deadline) && self.journal.get(choices).is_none();
        if self.left == 0 || self.failed.is_some() || late {
            return Err(Over);
        }
        self.left -= 1;
        self.progress.step();
        self.keep(choices).map_err(|error| {
            self.failed = Some(error);
            Over
        })
    }

    /// Lets `strategy` measure.
    ///
    /// # Errors
    /// Those of the strategy.
    pub fn sample(
        &mut self,
        strategy: impl FnOnce(&mut Measure<'_>) -> Result<Vec<Trial>, SearchError>,
    ) -> Result<(), Error> {
        strategy(&mut |choices| Ok(self.measure(choices).ok()))?;
        Ok(())
    }

    /// The assignment with the least damage of those that fit, or of all if none does.
    pub fn best(&self) -> Option<&Trial> {
        let fits = |trial: &&Trial| self.problem.fits(&trial.choices);
        let by_damage = |a: &&Trial, b: &&Trial| a.damage.total_cmp(&b.damage);
        self.all.iter().filter(fits).min_by(by_damage).or_else(|| self.all.iter().min_by(by_damage))
    }

    /// Every assignment in order, and the best; the narrowest if something fits, but none that was tried does.
    ///
    /// # Errors
    /// What went wrong while one was measured.
    pub fn done(mut self) -> Result<(Vec<Trial>, Trial), Error> {
        self.progress.end();
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let fits = |best: &&Trial| self.problem.fits(&best.choices) || self.problem.check().is_err();
        let best = match self.best().filter(fits) {
            Some(best) => best.clone(),
            None => {
                let narrowest = vec![0; self.problem.items.len()];
                let damage = self.keep(&narrowest)?;
                Trial { choices: narrowest, damage }
            }
        };
        Ok((self.all, best))
    }
}
