//! Allocators against brute force on random problems.

use super::*;
use crate::{Budget, Item, Kind, Limit, Term, testing::Random};
use std::convert::Infallible;

/// An item with what each of its widths costs.
pub(super) type Priced = (Item, Vec<u64>);

pub(super) fn priced(widths: &[u8], cost: Vec<u64>, damage: Vec<f64>) -> Priced {
    (Item { name: String::new(), kind: Kind::Weight, widths: widths.to_vec(), damage }, cost)
}

pub(super) fn problem(items: Vec<Priced>, most: u64) -> Problem {
    let terms = items.iter().enumerate().map(|(item, (_, cost))| Term { item, other: None, cost: cost.clone() });
    let limit = Limit { budget: Budget::Size(most), most, unit: 1.0, rest: 0, terms: terms.collect() };
    Problem { limits: vec![limit], items: items.into_iter().map(|(item, _)| item).collect() }
}

/// The same with another limit.
fn limited(mut problem: Problem, most: u64) -> Problem {
    problem.limits[0].most = most;
    problem
}

/// Damages that fall with the width most of the time, costs that rise.
pub(super) fn random_problem(seed: u64, items: usize, largest: u64) -> Problem {
    let mut random = Random::new(seed);
    let widths = [2u8, 3, 4, 6, 8];
    let item = |_| {
        let (elements, sensitivity) = (1 + random.below(largest), random.uniform());
        let kept: Vec<u8> = widths.iter().copied().filter(|&w| w == 8 || random.below(4) > 0).collect();
        let damage = kept.iter().map(|&w| sensitivity * 4f64.powi(-i32::from(w)) * (0.5 + random.uniform())).collect();
        priced(&kept, kept.iter().map(|&w| elements * u64::from(w)).collect(), damage)
    };
    let problem = problem((0..items).map(item).collect(), 0);
    let (least, most) = (problem.cost(0, &vec![0; items]), problem.cost(0, &problem.widest()));
    let most = least + random.below(most - least + 1);
    limited(problem, most)
}

/// Every assignment.
fn all(problem: &Problem) -> Vec<Vec<usize>> {
    problem.items.iter().fold(vec![vec![]], |all, item| {
        let longer = |c: usize| all.iter().map(move |head: &Vec<usize>| [head.as_slice(), &[c]].concat());
        (0..item.widths.len()).flat_map(longer).collect()
    })
}

pub(super) fn least_damage(problem: &Problem) -> f64 {
    let fitting = all(problem).into_iter().filter(|choices| problem.fits(choices));
    fitting.map(|choices| problem.damage(&choices)).fold(f64::INFINITY, f64::min)
}

#[test]
fn knapsack_is_as_good_as_brute_force() {
    for seed in 0..200 {
        let problem = random_problem(seed, 1 + seed as usize % 6, 5000);
        let choices = knapsack(&problem).unwrap();
        assert!(problem.fits(&choices));
        let least = least_damage(&problem);
        assert!((problem.damage(&choices) / least - 1.0).abs() < 1e-12, "seed {seed}: {choices:?}, {least}");
    }
}

#[test]
fn knapsack_in_coarse_units_keeps_the_limit_and_loses_little() {
    for seed in 0..3 {
        let problem = random_problem(seed, 6, 1 << 40);
        let choices = knapsack(&problem).unwrap();
        assert!(problem.fits(&choices));
        // What fits with one unit less for every item is found.
        let most = problem.limits[0].most;
        let smaller = limited(problem.clone(), most - 6 * (most >> 18));
        assert!(problem.damage(&choices) <= least_damage(&smaller) * (1.0 + 1e-12));
    }
}

#[test]
fn a_wide_limit_gives_the_least_damage_and_the_least_cost_is_enough() {
    let problem = limited(random_problem(5, 4, 100), u64::MAX);
    let best = |item: &Item| item.damage.iter().copied().fold(f64::INFINITY, f64::min);
    let least: f64 = problem.items.iter().map(best).sum();
    assert_eq!(problem.damage(&knapsack(&problem).unwrap()), least);
    assert_eq!(greedy(&problem), problem.widest());
    let least = problem.cost(0, &[0; 4]);
    let problem = limited(problem, least);
    for choices in [knapsack(&problem).unwrap(), greedy(&problem)] {
        assert_eq!(choices, [0; 4]);
    }
}

#[test]
fn greedy_keeps_the_limit_and_a_swap_brings_it_close_to_the_best() {
    let mut ratios: Vec<f64> = vec![];
    for seed in 0..100 {
        let problem = random_problem(seed, 5, 5000);
        let choices = greedy(&problem);
        assert!(problem.fits(&choices));
        let before = problem.damage(&choices);
        let additive = |c: &[usize]| Ok::<_, Infallible>(problem.damage(c));
        let (swapped, after) = swap(&problem, &choices, before, 1, additive).unwrap();
        assert!(after <= before && problem.fits(&swapped));
        assert_eq!(after, problem.damage(&swapped));
        // No single change and no pair is left that would help.
        let better = |c: &Vec<usize>| problem.damage(c) < after && problem.fits(c);
        let near = |c: &Vec<usize>| c.iter().zip(&swapped).filter(|(a, b)| a != b).count() <= 2;
        assert!(!all(&problem).iter().any(|c| near(c) && better(c)), "seed {seed}");
        ratios.push(after / least_damage(&problem));
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[50] < 1.0 + 1e-9 && ratios[95] < 1.5, "{ratios:?}");
}

#[test]
fn remeasuring_with_the_prediction_changes_nothing() {
    for seed in 0..50 {
        let problem = random_problem(seed, 5, 5000);
        // Damages that fall with the width.
        let mut problem = problem;
        problem.items.iter_mut().for_each(|item| item.damage.sort_by(|a, b| b.total_cmp(a)));
        for every in [1, 5] {
            let mut last = 0;
            let measure = |c: &[usize]| {
                last = problem.cost(0, c);
                Ok::<_, Infallible>(problem.damage(c))
            };
            assert_eq!(greedy_remeasured(&problem, every, measure).unwrap(), greedy(&problem), "seed {seed}");
            assert!(last <= problem.limits[0].most, "the last assignment was measured");
        }
    }
}

#[test]
fn remeasuring_finds_items_that_harm_each_other() {
    // All alike alone, but the first two do ten times the damage when either is narrow.
    let item = priced(&[2, 4, 8], vec![2, 4, 8], vec![4.0, 1.0, 0.0]);
    let problem = problem(vec![item; 4], 24);
    let true_damage = |c: &[usize]| {
        let of = |i: usize| problem.items[i].damage[c[i]] * if i < 2 { 10.0 } else { 1.0 };
        (0..4).map(of).sum::<f64>()
    };
    let measured = greedy_remeasured(&problem, 1, |c| Ok::<_, Infallible>(true_damage(c))).unwrap();
    let (swapped, after) =
        swap(&problem, &measured, true_damage(&measured), 100, |c| Ok::<_, Infallible>(true_damage(c))).unwrap();
    assert!(after <= true_damage(&measured) && after < true_damage(&greedy(&problem)));
    assert_eq!((&swapped[..2], after), (&[2, 2][..], 2.0));
}

#[test]
fn errors_of_measuring_are_passed_on() {
    let problem = limited(random_problem(1, 3, 10), 1);
    assert_eq!(greedy_remeasured(&problem, 1, |_| Err("no")), Err("no"));
}
