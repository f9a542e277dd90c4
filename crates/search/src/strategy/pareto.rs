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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::toy;
    use fewbits_train::random::Random;

    #[test]
    fn the_front_is_what_brute_force_finds() {
        let (problem, _) = toy::network(1, 4);
        let mut random = Random::new(1);
        for _ in 0..200 {
            // Few different damages and costs, so that there are equals; one trial was not measurable.
            let mut draw =
                |_| Trial { choices: (0..4).map(|_| random.below(2)).collect(), damage: random.below(6) as f64 };
            let mut trials: Vec<Trial> = (0..12).map(&mut draw).collect();
            trials[5].damage = f64::NAN;
            let point = |i: usize| (problem.cost(0, &trials[i].choices), trials[i].damage);
            let dominates = |j: usize, i: usize| {
                let ((cost, damage), (other_cost, other_damage)) = (point(j), point(i));
                cost <= other_cost && damage <= other_damage && (point(j) != point(i) || j < i)
            };
            let measured = (0..12).filter(|&i| i != 5);
            let mut expected: Vec<usize> = measured.filter(|&i| !(0..12).any(|j| j != i && dominates(j, i))).collect();
            expected.sort_by_key(|&i| point(i).0);
            assert_eq!(front(&problem, &trials), expected);
        }
        assert!(front(&problem, &[]).is_empty());
    }
}
