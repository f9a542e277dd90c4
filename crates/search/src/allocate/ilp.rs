//! The exact choice under any number of budgets, as an integer linear program.
//!
//! A [`Problem`] enters, the choice with the least sum of damages leaves. Of the other allocators it knows [`greedy`], whose choice is
//! where the solver starts.

use super::greedy;
use crate::{Limit, Problem, SearchError};
use microlp::{ComparisonOp, LinearExpr, OptimizationDirection, SolveOptions, Variable};

/// The choice with the least sum of damages that keeps every limit.
///
/// With `x[i, c] = 1` if item `i` has its width number `c`: minimise `Σ damage[i, c] · x[i, c]` where `Σ_c x[i, c] = 1` for every item,
/// and `Σ cost · x ≤ most` for every limit. What two items `i` and `j` cost together counts as `y[c, d] = x[i, c] · x[j, d]`, which
/// `Σ_d y[c, d] = x[i, c]` and `Σ_c y[c, d] = x[j, d]` make linear.
///
/// Exact but for one part in 10⁹ of what [`greedy`]'s choice damages above the least of every item. Limits are kept to the last unit: a
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
        let choices = program.solve(&start)?;
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
    /// By item: the widths that may be chosen, with their variables.
    choices: Vec<Vec<(usize, Variable)>>,
}

impl Program {
    /// `None` if nothing can be better than `start`.
    fn new(problem: &Problem, start: &[usize]) -> Option<Self> {
        let bounds = problem
            .items
            .iter()
            .map(|item| item.damage.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[a, b], &d| [a.min(d), b.max(d)]));
        let bounds: Vec<[f64; 2]> = bounds.collect();
        let above = |i: usize, c: usize| problem.items[i].damage[c] - bounds[i][0];
        let fits = problem.fits(start);
        // Nothing that damages more than this is in the best choice.
        let worst: f64 = match fits {
            true => start.iter().enumerate().map(|(i, &c)| above(i, c)).sum(),
            false => bounds.iter().map(|[least, most]| most - least).sum(),
        };
        if fits && worst == 0.0 {
            return None;
        }
        let mut program = microlp::Problem::new(OptimizationDirection::Minimize);
        let unit = if worst > 0.0 { worst / LARGEST[0] } else { 1.0 };
        let mut of_item = |i: usize| {
            let kept = (0..problem.items[i].widths.len()).filter(|&c| above(i, c) <= worst);
            let kept: Vec<_> = kept.map(|c| (c, program.add_binary_var(above(i, c) / unit))).collect();
            program.add_constraint(kept.iter().map(|&(_, x)| (x, 1.0)), ComparisonOp::Eq, 1.0);
            kept
        };
        let choices = (0..problem.items.len()).map(&mut of_item).collect();
        let mut program = Program { program, choices };
        problem.limits.iter().for_each(|limit| program.limit(problem, limit));
        Some(program)
    }

    fn limit(&mut self, problem: &Problem, limit: &Limit) {
        let range = |cost: &[u64]| [cost.iter().min(), cost.iter().max()].map(|end| end.copied().unwrap_or(0));
        let ranges: Vec<[u64; 2]> = limit.terms.iter().map(|term| range(&term.cost)).collect();
        if ranges.iter().map(|[_, most]| most).sum::<u64>() <= limit.most {
            return;
        }
        let unit = ranges.iter().map(|[least, most]| most - least).max().unwrap_or(0).max(1) as f64 / LARGEST[1];
        let mut sum = LinearExpr::empty();
        for (term, [least, _]) in limit.terms.iter().zip(&ranges) {
            let cost = |at: usize| (term.cost[at] - least) as f64 / unit;
            match term.other {
                None => self.choices[term.item].iter().for_each(|&(c, x)| sum.add(x, cost(c))),
                Some(other) => {
                    let columns = problem.items[other].widths.len();
                    for (c, d, y) in self.products(term.item, other) {
                        sum.add(y, cost(c * columns + d));
                    }
                }
            }
        }
        let least: u64 = ranges.iter().map(|[least, _]| least).sum();
        self.program.add_constraint(sum, ComparisonOp::Le, (limit.most as f64 - least as f64) / unit);
    }

    /// Variables that are 1 where both item `i` has width `c` and item `j` width `d`: `(c, d, variable)`.
    fn products(&mut self, i: usize, j: usize) -> Vec<(usize, usize, Variable)> {
        let mut products = vec![];
        for &(c, _) in &self.choices[i] {
            for &(d, _) in &self.choices[j] {
                products.push((c, d, self.program.add_var(0.0, (0.0, 1.0))));
            }
        }
        for &(c, x) in &self.choices[i] {
            let row = products.iter().filter(|y| y.0 == c).map(|y| (y.2, 1.0));
            self.program.add_constraint(row.chain([(x, -1.0)]), ComparisonOp::Eq, 0.0);
        }
        for &(d, x) in &self.choices[j] {
            let column = products.iter().filter(|y| y.1 == d).map(|y| (y.2, 1.0));
            self.program.add_constraint(column.chain([(x, -1.0)]), ComparisonOp::Eq, 0.0);
        }
        products
    }

    fn solve(&self, start: &[usize]) -> Result<Vec<usize>, SearchError> {
        let hint = self.choices.iter().zip(start);
        let mut options = SolveOptions::default();
        let share = |is_start: bool| if is_start { 1.0 } else { 0.0 };
        options.warm_start =
            Some(hint.flat_map(|(kept, &s)| kept.iter().map(move |&(c, x)| (x, share(c == s)))).collect());
        let outcome = self.program.solve_with(options)?;
        let solution = outcome.solution().expect("without limits of time the solver goes on to the end");
        let chosen = |kept: &Vec<(usize, Variable)>| {
            let largest = kept.iter().max_by(|a, b| solution.var_value(a.1).total_cmp(&solution.var_value(b.1)));
            largest.map_or(0, |&(c, _)| c)
        };
        Ok(self.choices.iter().map(chosen).collect())
    }

    /// At least one item is to be chosen otherwise.
    fn rule_out(&mut self, choices: &[usize]) {
        let chosen = self.choices.iter().zip(choices).flat_map(|(kept, &c)| kept.iter().filter(move |k| k.0 == c));
        let sum: Vec<(Variable, f64)> = chosen.map(|&(_, x)| (x, 1.0)).collect();
        self.program.add_constraint(sum, ComparisonOp::Le, choices.len() as f64 - 1.0);
    }
}

#[cfg(test)]
mod tests;
