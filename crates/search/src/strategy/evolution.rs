//! Evolution: the best assignments so far are crossed and changed in one or two items.

use super::{Measure, Record, Settings, Trial, fitting};
use crate::{Problem, SearchError};
use fewbits_train::random::Random;

/// Assignments that may be parents: the best that are known.
const POPULATION: usize = 20;
/// How many of them are drawn for a tournament, of which the best becomes a parent.
const TOURNAMENT: usize = 4;
/// How often a child has two parents; each item is then either one's with equal chance.
const CROSSOVER: f64 = 0.5;
/// Children in a row that are known already before the search is over.
const PATIENCE: usize = 1000;

/// Measures the start and random assignments until there is a population, then children of its members. A child goes to a
/// neighbouring width in one item or two, is narrowed elsewhere until it keeps the budgets, and spends what is left. None is
/// measured twice.
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
        let young = record.trials.len() < POPULATION;
        let mut population: Vec<&Trial> = record.trials.iter().collect();
        population.sort_by(|a, b| a.damage.total_cmp(&b.damage));
        population.truncate(POPULATION);
        let mut children = (0..PATIENCE).map(|_| match young {
            true => fitting::draw(problem, &mut random),
            false => child(problem, &population, &mut random),
        });
        let Some(choices) = children.find(|choices| !record.knows(choices)) else { break };
        if record.measure(&choices)?.is_none() {
            break;
        }
    }
    Ok(record.trials)
}

/// `population` is sorted, the best first.
fn child(problem: &Problem, population: &[&Trial], random: &mut Random) -> Vec<usize> {
    let parent = |random: &mut Random| {
        let winner = (0..TOURNAMENT).map(|_| random.below(population.len())).min().unwrap_or(0);
        &population[winner].choices
    };
    let mut choices = parent(random).clone();
    if random.uniform() < CROSSOVER {
        let other = parent(random);
        choices.iter_mut().zip(other).filter(|_| random.uniform() < 0.5).for_each(|(c, &other)| *c = other);
    }
    let free: Vec<usize> = (0..choices.len()).filter(|&i| problem.items[i].widths.len() > 1).collect();
    if free.is_empty() {
        return choices;
    }
    let changed: Vec<usize> = (0..1 + random.below(2)).map(|_| free[random.below(free.len())]).collect();
    for &i in &changed {
        let (last, up) = (problem.items[i].widths.len() - 1, random.below(2) == 1);
        choices[i] = if choices[i] == 0 || (up && choices[i] < last) { choices[i] + 1 } else { choices[i] - 1 };
    }
    fitting::narrow(problem, &mut choices, &changed, random);
    fitting::spend(problem, &mut choices, random);
    choices
}
