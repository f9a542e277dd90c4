//! Spending a budget: from a [`Problem`] to one width for each item.
//!
//! All of them are deterministic: of equals the first is taken.

mod ilp;

pub use ilp::ilp;

use crate::{Problem, SearchError};
use std::{fmt, str::FromStr};

/// How the budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocator {
    /// [`greedy`].
    Greedy,
    /// [`greedy_remeasured`].
    GreedyRemeasured,
    /// [`knapsack`].
    Knapsack,
    /// [`ilp`].
    Ilp,
}

impl fmt::Display for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Allocator::Greedy => "greedy",
            Allocator::GreedyRemeasured => "greedy-remeasure",
            Allocator::Knapsack => "dp",
            Allocator::Ilp => "ilp",
        })
    }
}

impl FromStr for Allocator {
    type Err = SearchError;

    fn from_str(text: &str) -> Result<Self, SearchError> {
        match text {
            "greedy" => Ok(Allocator::Greedy),
            "greedy-remeasure" => Ok(Allocator::GreedyRemeasured),
            "dp" | "knapsack" => Ok(Allocator::Knapsack),
            "ilp" => Ok(Allocator::Ilp),
            _ => Err(SearchError::Unknown {
                what: "allocator",
                text: text.into(),
                known: "dp, ilp, greedy, greedy-remeasure",
            }),
        }
    }
}

/// From the widest width of every item down: the step to the next narrower width that adds the least damage for what it saves, until
/// the limit is kept.
pub fn greedy(problem: &Problem) -> Vec<usize> {
    let mut choices = problem.widest();
    let trust = vec![1.0; choices.len()];
    while let Some(i) = cheapest_step(problem, &choices, &trust) {
        choices[i] -= 1;
    }
    choices
}

/// As [`greedy`], but after every `every` steps (at least 1) the whole assignment is measured. What it should have come to is what was
/// measured before, and the predicted damage of the steps at the rate at which predictions held until then. By the ratio of the two,
/// within a factor of 4, the items that were narrowed count for more or less from then on: so what interacts is left alone.
///
/// # Errors
/// Those of `measure`.
pub fn greedy_remeasured<E>(
    problem: &Problem,
    every: usize,
    mut measure: impl FnMut(&[usize]) -> Result<f64, E>,
) -> Result<Vec<usize>, E> {
    const MOST: f64 = 4.0;
    let mut choices = problem.widest();
    let mut trust = vec![1.0; choices.len()];
    let start = measure(&choices)?;
    let (mut measured, mut predicted_total, mut rate) = (start, 0.0, 1.0);
    loop {
        let (before, mut predicted) = (choices.clone(), 0.0);
        for _ in 0..every.max(1) {
            let Some(i) = cheapest_step(problem, &choices, &trust) else { break };
            predicted += added(problem, &choices, i).max(0.0);
            choices[i] -= 1;
        }
        if choices == before {
            break;
        }
        let now = measure(&choices)?;
        let factor = now / (measured + rate * predicted);
        if factor.is_finite() {
            let narrowed = (0..choices.len()).filter(|&i| choices[i] != before[i]);
            narrowed.for_each(|i| trust[i] *= factor.clamp(1.0 / MOST, MOST));
        }
        predicted_total += predicted;
        rate = if predicted_total > 0.0 { ((now - start) / predicted_total).max(0.0) } else { 1.0 };
        measured = now;
    }
    Ok(choices)
}

/// The item whose next narrower width adds the least damage for the share of the excess that it takes away; `trust` multiplies damages.
/// `None` if the limits are kept, or nothing helps.
fn cheapest_step(problem: &Problem, choices: &[usize], trust: &[f64]) -> Option<usize> {
    let excess = problem.excess(choices);
    if excess == 0.0 {
        return None;
    }
    let mut tried = choices.to_vec();
    let mut best = None;
    for i in (0..choices.len()).filter(|&i| choices[i] > 0) {
        tried[i] -= 1;
        let saved = excess - problem.excess(&tried);
        tried[i] += 1;
        let price = added(problem, choices, i) * trust[i] / saved;
        if saved > 0.0 && best.is_none_or(|(_, least)| price < least) {
            best = Some((i, price));
        }
    }
    best.map(|(i, _)| i)
}

/// Damage that the next narrower width of item `i` adds.
fn added(problem: &Problem, choices: &[usize], i: usize) -> f64 {
    let damage = &problem.items[i].damage;
    damage[choices[i] - 1] - damage[choices[i]]
}

/// Cells of the table of [`knapsack`].
const CELLS: u64 = 1 << 19;

/// The choice with the least sum of damages, by dynamic programming over what is spent (multiple-choice knapsack).
///
/// Exact where the limit is at most 2^19 times the greatest common divisor of all costs above each item's least. Beyond that, costs are
/// counted in units of `limit / 2^19`, rounded up: never over the limit, and at most one unit per item is left unused.
/// Items × widths × cells steps, items × cells bytes.
///
/// # Errors
/// [`SearchError::NotSeparable`] if there are several limits, or costs of two items together.
pub fn knapsack(problem: &Problem) -> Result<Vec<usize>, SearchError> {
    let (costs, limit) = problem.separable().ok_or(SearchError::NotSeparable { allocator: "dp" })?;
    let least: Vec<u64> = costs.iter().map(|cost| cost.iter().copied().min().unwrap_or(0)).collect();
    let above = |i: usize, c: usize| costs[i][c] - least[i];
    let most: u64 = costs.iter().zip(&least).map(|(cost, least)| cost.iter().max().unwrap_or(least) - least).sum();
    let room = limit.saturating_sub(least.iter().sum()).min(most);
    let all = (0..costs.len()).flat_map(|i| (0..costs[i].len()).map(move |c| (i, c)));
    let divisor = all.fold(0, |d, (i, c)| gcd(d, above(i, c))).max(1);
    let unit = divisor * room.div_ceil(divisor).div_ceil(CELLS).max(1);
    let cells = (room / unit) as usize + 1;
    // best[s]: the least damage of the items so far if at most s units are spent.
    let mut best = vec![0.0; cells];
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(problem.items.len());
    for (i, item) in problem.items.iter().enumerate() {
        let mut next = vec![f64::INFINITY; cells];
        let mut from = vec![0u8; cells];
        for (c, &damage) in item.damage.iter().enumerate() {
            let spent = above(i, c).div_ceil(unit) as usize;
            for s in spent..cells {
                let total = best[s - spent] + damage;
                if total < next[s] {
                    (next[s], from[s]) = (total, c as u8);
                }
            }
        }
        best = next;
        taken.push(from);
    }
    let mut choices = vec![0; problem.items.len()];
    let mut left = cells - 1;
    for i in (0..choices.len()).rev() {
        choices[i] = usize::from(taken[i][left]);
        left -= above(i, choices[i]).div_ceil(unit) as usize;
    }
    Ok(choices)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Changes the width of one item, or of two, as long as that keeps the limit and `measure` says that it helps. Of the changes, those that
/// promise most come first; after `patience` in a row that did not help, it is over. `measured` is the damage of `choices`; the damage
/// of the result is returned with it.
///
/// # Errors
/// Those of `measure`.
pub fn swap<E>(
    problem: &Problem,
    choices: &[usize],
    measured: f64,
    patience: usize,
    mut measure: impl FnMut(&[usize]) -> Result<f64, E>,
) -> Result<(Vec<usize>, f64), E> {
    let (mut best, mut best_damage) = (choices.to_vec(), measured);
    'search: loop {
        for tried in neighbours(problem, &best).into_iter().take(patience) {
            let damage = measure(&tried)?;
            if damage < best_damage {
                (best, best_damage) = (tried, damage);
                continue 'search;
            }
        }
        return Ok((best, best_damage));
    }
}

/// Every assignment within the limits that differs from `choices` in one item or two, the most promising first.
fn neighbours(problem: &Problem, choices: &[usize]) -> Vec<Vec<usize>> {
    let single: Vec<(usize, usize)> = (0..choices.len())
        .flat_map(|i| (0..problem.items[i].widths.len()).map(move |c| (i, c)))
        .filter(|&(i, c)| c != choices[i])
        .collect();
    let gain = |&(i, c): &(usize, usize)| problem.items[i].damage[c] - problem.items[i].damage[choices[i]];
    let mut moves: Vec<(f64, Vec<usize>)> = vec![];
    for (n, one) in single.iter().enumerate() {
        for other in std::iter::once(one).chain(single[n + 1..].iter().filter(|other| other.0 != one.0)) {
            let mut changed = choices.to_vec();
            changed[one.0] = one.1;
            changed[other.0] = other.1;
            if problem.fits(&changed) {
                moves.push((if one == other { gain(one) } else { gain(one) + gain(other) }, changed));
            }
        }
    }
    moves.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    moves.into_iter().map(|(_, changed)| changed).collect()
}

#[cfg(test)]
mod tests;
