//! The exact choice under any number of budgets, as an integer linear program.
//!
//! A [`Problem`] enters, the choice with the least sum of damages leaves. Of the other allocators it knows [`greedy`], whose choice is
//! where the solver starts.

mod group;

use super::greedy;
use crate::{Problem, SearchError};
use group::{Group, Way};
use microlp::{ComparisonOp, OptimizationDirection, SolveOptions, Variable};

/// The choice with the least sum of damages that keeps every limit.
///
/// Items that have costs together, such as a layer's weight and its input, form groups. The ways to choose the widths of a group that no
/// other way is as good as at everything are listed; then, with `x[g, w] = 1` if group `g` goes its way number `w`: minimise
/// `Σ damage[g, w] · x[g, w]` where `Σ_w x[g, w] = 1` for every group, and `Σ cost[g, w] · x[g, w] ≤ most` for every limit.
///
/// Exact but for one part in 10⁹ of what [`greedy`]'s choice damages above the least of every group. Limits are kept to the last unit: a
/// choice that keeps them within the solver's tolerance only is ruled out, and the rest solved again.
///
/// Source: Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization" (2021), section 3.4, there for one budget and two widths (test
/// `published_choices_of_hawq_v3`).
///
/// # Errors
/// [`SearchError::Solver`] if nothing keeps all limits together, or the solver fails.
pub fn ilp(problem: &Problem) -> Result<Vec<usize>, SearchError> {
    let start = greedy(problem);
    let Some(mut program) = Program::new(problem, &start) else { return Ok(start) };
    loop {
        let choices = program.solve(problem.items.len())?;
        if problem.fits(&choices) {
            return Ok(choices);
        }
        program.rule_out(&choices);
    }
}

/// What the largest coefficients of the objective and of limits are: far above the solver's absolute tolerances.
const LARGEST: [f64; 2] = [1e3, 1e4];

struct Program {
    program: microlp::Problem,
    /// By group: the ways that it may go, with their variables.
    ways: Vec<Vec<(Way, Variable)>>,
    /// Where the solver starts.
    start: Vec<(Variable, f64)>,
}

impl Program {
    /// `None` if nothing can be better than `start`.
    fn new(problem: &Problem, start: &[usize]) -> Option<Self> {
        let groups = group::groups(problem);
        let least: Vec<f64> = groups.iter().map(Group::least_damage).collect();
        let fits = problem.fits(start);
        // Nothing that damages more than this is in the best choice.
        let worst = match fits {
            true => groups.iter().zip(&least).map(|(group, least)| group.damage(problem, start) - least).sum(),
            false => groups.iter().zip(&least).map(|(group, least)| group.most_damage() - least).sum::<f64>(),
        };
        if fits && worst <= 0.0 {
            return None;
        }
        let mut program = microlp::Problem::new(OptimizationDirection::Minimize);
        let unit = if worst > 0.0 { worst / LARGEST[0] } else { 1.0 };
        let mut hint = vec![];
        let mut ways = vec![];
        for (group, least) in groups.into_iter().zip(least) {
            let begin = fits.then(|| group.at_least_as_good(problem, start)).flatten();
            let mut of_group = vec![];
            for (i, way) in group.ways.into_iter().enumerate().filter(|(_, way)| way.damage - least <= worst) {
                let x = program.add_binary_var((way.damage - least) / unit);
                hint.extend(begin.map(|begin| (x, if begin == i { 1.0 } else { 0.0 })));
                of_group.push((way, x));
            }
            program.add_constraint(of_group.iter().map(|&(_, x)| (x, 1.0)), ComparisonOp::Eq, 1.0);
            ways.push(of_group);
        }
        let mut program = Program { program, ways, start: hint };
        (0..problem.limits.len()).for_each(|limit| program.limit(limit, problem.limits[limit].most));
        Some(program)
    }

    /// The costs of the ways under limit number `limit` are at most `most` together.
    fn limit(&mut self, limit: usize, most: u64) {
        let costs = |ways: &[(Way, Variable)]| ways.iter().map(|(way, _)| way.costs[limit]).collect::<Vec<_>>();
        let least: Vec<u64> = self.ways.iter().map(|ways| costs(ways).into_iter().min().unwrap_or(0)).collect();
        let largest: Vec<u64> = self.ways.iter().map(|ways| costs(ways).into_iter().max().unwrap_or(0)).collect();
        if largest.iter().sum::<u64>() <= most {
            return;
        }
        let widest = largest.iter().zip(&least).map(|(largest, least)| largest - least).max().unwrap_or(0);
        let unit = widest.max(1) as f64 / LARGEST[1];
        let all = self.ways.iter().zip(&least).flat_map(|(ways, least)| ways.iter().map(move |way| (way, least)));
        let sum: Vec<(Variable, f64)> =
            all.map(|((way, x), least)| (*x, (way.costs[limit] - least) as f64 / unit)).collect();
        let room = most as f64 - least.iter().sum::<u64>() as f64;
        self.program.add_constraint(sum, ComparisonOp::Le, room / unit);
    }

    fn solve(&self, items: usize) -> Result<Vec<usize>, SearchError> {
        let mut options = SolveOptions::default();
        options.warm_start = Some(self.start.clone()).filter(|start| !start.is_empty());
        let outcome = self.program.solve_with(options)?;
        let solution = outcome.solution().expect("without limits of time the solver goes on to the end");
        let mut choices = vec![0; items];
        for ways in &self.ways {
            let chosen = ways.iter().max_by(|a, b| solution.var_value(a.1).total_cmp(&solution.var_value(b.1)));
            chosen.into_iter().flat_map(|(way, _)| &way.choices).for_each(|&(item, choice)| choices[item] = choice);
        }
        Ok(choices)
    }

    /// At least one group is to go another way.
    fn rule_out(&mut self, choices: &[usize]) {
        let chosen = |(way, _): &&(Way, Variable)| way.choices.iter().all(|&(item, choice)| choices[item] == choice);
        let gone = self.ways.iter().flat_map(|ways| ways.iter().find(chosen));
        let sum: Vec<(Variable, f64)> = gone.map(|&(_, x)| (x, 1.0)).collect();
        self.program.add_constraint(sum, ComparisonOp::Le, self.ways.len() as f64 - 1.0);
    }
}

#[cfg(test)]
mod tests;
