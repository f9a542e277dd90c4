//! Random search: the yardstick of every other strategy.

use super::{Measure, Record, Settings, Trial, fitting};
use crate::{Problem, SearchError};
use fewbits_train::random::Random;

/// Draws in a row that bring nothing new before all assignments count as known.
const PATIENCE: usize = 1000;

/// Measures random assignments that spend the budget ([`fitting::draw`]), none of them twice, after those of the start.
///
/// # Errors
/// Those of `measure`.
pub fn search(problem: &Problem, settings: &Settings, measure: &mut Measure<'_>) -> Result<Vec<Trial>, SearchError> {
    let mut random = Random::new(settings.seed);
    let mut record = Record::new(settings, measure);
    for choices in settings.fitting_start(problem) {
        if record.measure(choices)?.is_none() {
            return Ok(record.trials);
        }
    }
    loop {
        let mut draws = (0..PATIENCE).map(|_| fitting::draw(problem, &mut random));
        let Some(choices) = draws.find(|choices| !record.knows(choices)) else { break };
        if record.measure(&choices)?.is_none() {
            break;
        }
    }
    Ok(record.trials)
}
