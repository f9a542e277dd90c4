//! The trials that are worth a look: nothing both cheaper and less damaging was found.

use super::Trial;
use crate::Problem;

/// Positions of the trials that no other one dominates, by rising cost of the first budget and falling damage. A trial dominates
/// another if it is at most as large in both and smaller in one; of equals the first is taken. Without a budget, the best trial.
pub fn front(problem: &Problem, trials: &[Trial]) -> Vec<usize> {
    let cost = |trial: &Trial| if problem.limits.is_empty() { 0 } else { problem.cost(0, &trial.choices) };
    let mut order: Vec<(u64, usize)> = trials.iter().enumerate().map(|(i, trial)| (cost(trial), i)).collect();
    order.sort_by(|(cost, i), (other, j)| cost.cmp(other).then(trials[*i].damage.total_cmp(&trials[*j].damage)));
    let mut least = f64::INFINITY;
    order.retain(|&(_, i)| {
        trials[i].damage < least && {
            least = trials[i].damage;
            true
        }
    });
    order.into_iter().map(|(_, i)| i).collect()
}
