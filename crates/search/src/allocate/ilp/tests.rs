//! The integer program against brute force, the knapsack and published choices.

use super::*;
use crate::{
    Budget, Item, Kind, Limit, Term,
    allocate::{
        knapsack,
        tests::{least_damage, priced, problem, random_problem},
    },
    testing::Random,
};

/// `weights` items and the inputs that they read, two of them the same now and then, with widths of their own. The first limit is on
/// weights alone, the second on both; both are just kept by one choice at least. Damages and costs span `decades`.
fn random_pairs(seed: u64, weights: usize, limits: usize, decades: f64) -> Problem {
    let mut random = Random::new(seed);
    let widths = [2u8, 4, 5, 8];
    let mut items: Vec<Item> = vec![];
    let mut terms = [vec![], vec![]];
    let mut input = None;
    for _ in 0..weights {
        let size = |random: &mut Random| 10f64.powf(decades * random.uniform());
        let mut item = |kind, random: &mut Random| {
            let kept: Vec<u8> = widths.iter().copied().filter(|&w| w == 8 || random.below(3) > 0).collect();
            let worst = size(random) * 1e-5;
            let damage = kept.iter().map(|&w| worst * 4f64.powi(-i32::from(w)) * (0.5 + random.uniform())).collect();
            items.push(Item { name: String::new(), kind, widths: kept, damage });
            items.len() - 1
        };
        let weight = item(Kind::Weight, &mut random);
        let other = match input {
            Some(shared) if random.below(3) == 0 => shared,
            _ => item(Kind::Input, &mut random),
        };
        input = Some(other);
        let (elements, macs) = (size(&mut random) as u64, size(&mut random) as u64);
        let bits = |i: usize| items[i].widths.iter().map(|&w| u64::from(w));
        terms[0].push(Term { item: weight, other: None, cost: bits(weight).map(|b| elements * b + 7).collect() });
        let cost = bits(weight).flat_map(|b| bits(other).map(move |a| macs * b * a)).collect();
        terms[1].push(Term { item: weight, other: Some(other), cost });
    }
    let choice: Vec<usize> = items.iter().map(|item| random.below(item.widths.len() as u64) as usize).collect();
    let limit = |terms| Limit { budget: Budget::Size(0), most: 0, unit: 1.0, rest: 0, terms };
    let limits: Vec<Limit> = terms.into_iter().rev().take(limits).map(limit).collect();
    let mut problem = Problem { items, limits };
    let most: Vec<u64> = (0..problem.limits.len()).map(|l| problem.cost(l, &choice)).collect();
    problem.limits.iter_mut().zip(most).for_each(|(limit, most)| limit.most = most);
    problem
}

fn check(problem: &Problem, what: &str) {
    let choices = ilp(problem).unwrap();
    assert!(problem.fits(&choices), "{what}");
    let (found, least) = (problem.damage(&choices), least_damage(problem));
    let start = problem.damage(&greedy(problem));
    assert!(found - least <= 1e-9 * start.max(least), "{what}: {found}, least {least}");
}

#[test]
fn as_good_as_brute_force_under_one_limit() {
    (0..200).for_each(|seed| check(&random_problem(seed, 1 + seed as usize % 6, 5000), &format!("seed {seed}")));
}

#[test]
fn as_good_as_brute_force_where_widths_of_two_items_cost_together() {
    for (seed, limits) in (0..150).flat_map(|seed| [(seed, 1), (seed, 2)]) {
        check(&random_pairs(seed, 1 + seed as usize % 4, limits, 4.0), &format!("seed {seed}, {limits} limits"));
    }
}

#[test]
fn damages_and_costs_of_many_decades_do_not_disturb_it() {
    for seed in 0..50 {
        check(&random_problem(seed, 5, 1 << 40), &format!("seed {seed}"));
        check(&random_pairs(seed, 3, 2, 8.0), &format!("pairs, seed {seed}"));
    }
}

#[test]
fn as_good_as_the_knapsack_on_a_whole_network() {
    for seed in 0..5 {
        let problem = random_problem(seed, 60, 4000);
        let [exact, table] = [ilp(&problem), knapsack(&problem)].map(|choices| problem.damage(&choices.unwrap()));
        assert!((exact / table - 1.0).abs() < 1e-8, "seed {seed}: {exact}, {table}");
        let mut twice = problem.clone();
        twice.limits.push(Limit { most: problem.limits[0].most + 1000, ..problem.limits[0].clone() });
        let again = problem.damage(&ilp(&twice).unwrap());
        assert!((exact / again - 1.0).abs() < 1e-8, "seed {seed}: {exact}, {again}");
    }
}

#[test]
fn limits_are_kept_to_the_last_unit() {
    // The wide choice is over by one part in 10¹⁵, far below what the solver can tell.
    let item = || priced(&[2, 8], vec![1, 500_000_000_000_000], vec![1.0, 0.0]);
    for (most, expected) in [(1_000_000_000_000_000, 0.0), (999_999_999_999_999, 1.0)] {
        let problem = problem(vec![item(), item()], most);
        let choices = ilp(&problem).unwrap();
        assert!(problem.fits(&choices));
        assert_eq!(problem.damage(&choices), expected);
    }
}

#[test]
fn limits_that_exclude_each_other_are_an_error() {
    let mut problem = problem(vec![priced(&[2, 8], vec![1, 2], vec![1.0, 0.0])], 1);
    problem.limits.push(problem.limits[0].clone());
    problem.limits[1].terms[0].cost = vec![2, 1];
    let error = ilp(&problem).unwrap_err();
    assert!(matches!(error, SearchError::Solver(microlp::Error::Infeasible)), "{error}");
}

/// ResNet-18 without its first and last layer: mean traces and squared changes of the weights, published with their sizes, times and
/// the layers that got 4 bits (github.com/Zhen-Dong/HAWQ, `ILP.ipynb` at 87ad098 and `bit_config.py` at 800ed9c).
#[rustfmt::skip]
mod hawq {
    pub const TRACES: [f64; 19] = [
        0.06857826, 0.03162379, 0.03298575, 0.01205663, 0.02222431, 0.00596336, 0.06931772, 0.00807129, 0.00372905, 0.00530698,
        0.00209011, 0.00737569, 0.00210454, 0.00151197, 0.00158041, 0.00078146, 0.00451841, 0.00098745, 0.00072944,
    ];
    pub const CHANGES_8: [f64; 19] = [
        0.0235, 0.0125, 0.0102, 0.0082, 0.0145, 0.0344, 0.0023, 0.0287, 0.0148, 0.0333,
        0.0682, 0.0027, 0.0448, 0.0336, 0.0576, 0.1130, 0.0102, 0.0947, 0.0532,
    ];
    pub const CHANGES_4: [f64; 19] = [
        6.7430, 3.9691, 3.3281, 2.6796, 4.7277, 10.5966, 0.6827, 9.0942, 4.8857, 10.7599,
        21.7546, 0.8603, 14.5324, 10.9651, 18.7706, 36.4044, 3.1572, 29.6994, 17.4016,
    ];
    pub const PARAMETERS: [u64; 19] = [
        36864, 36864, 36864, 36864, 73728, 147456, 8192, 147456, 147456, 294912,
        589824, 32768, 589824, 589824, 1179648, 2359296, 131072, 2359296, 2359296,
    ];
    pub const MACS: [u64; 19] = [
        115605504, 115605504, 115605504, 115605504, 57802752, 115605504, 6422528, 115605504, 115605504, 57802752,
        115605504, 6422528, 115605504, 115605504, 57802752, 115605504, 6422528, 115605504, 115605504,
    ];
    /// In units of 10 ps.
    pub const TIMES_4: [u64; 19] = [
        21094404, 21092674, 21104113, 21086851, 13642465, 19167506, 2532183, 19148203, 19142914, 11395316,
        20556011, 1917474, 20566918, 20566509, 13185102, 22287786, 1790088, 22304611, 22286099,
    ];
    pub const TIMES_8: [u64; 19] = [
        36189111, 36211718, 31141909, 30454471, 19184896, 38948934, 3341690, 38904905, 38928590, 19134735,
        34307431, 2802354, 34313329, 34310756, 21117103, 37376585, 2896843, 37398187, 37405185,
    ];
    /// Convolutions of a shortcut, each with the layer that has its width.
    pub const TIED: [(usize, usize); 3] = [(6, 4), (11, 9), (16, 14)];
}

#[test]
fn published_choices_of_hawq_v3() {
    let size = [4, 8].map(|bits| hawq::PARAMETERS.map(|n| n * bits));
    let operations = [16, 64].map(|bits| hawq::MACS.map(|n| n * bits));
    let times = [hawq::TIMES_4, hawq::TIMES_8];
    let cases: [(_, u64, &[usize]); 9] = [
        (size, 75, &[13, 18]),
        (size, 50, &[15, 17, 18]),
        (size, 25, &[14, 15, 16, 17, 18]),
        (operations, 75, &[8, 13, 15, 18]),
        (operations, 50, &[3, 8, 12, 13, 14, 15, 16, 17, 18]),
        (operations, 25, &[3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]),
        (times, 75, &[8, 13, 15, 18]),
        (times, 50, &[5, 8, 12, 13, 15, 17, 18]),
        (times, 25, &[3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]),
    ];
    for (costs, percent, four) in cases {
        let group =
            |layer: usize| hawq::TIED.iter().find(|(shortcut, _)| *shortcut == layer).map_or(layer, |tied| tied.1);
        let of = |layer: usize, numbers: &dyn Fn(usize) -> f64| {
            (0..19).filter(|&l| group(l) == layer).map(numbers).sum::<f64>()
        };
        let leaders: Vec<usize> = (0..19).filter(|&layer| group(layer) == layer).collect();
        let item = |&layer: &usize| {
            let cost = costs.map(|costs| of(layer, &|l| costs[l] as f64) as u64);
            let damage = [hawq::CHANGES_4, hawq::CHANGES_8].map(|changes| of(layer, &|l| hawq::TRACES[l] * changes[l]));
            priced(&[4, 8], cost.to_vec(), damage.to_vec())
        };
        let [least, most] = costs.map(|costs| costs.iter().sum::<u64>());
        let problem = problem(leaders.iter().map(item).collect(), least + (most - least) * percent / 100);
        let choices = ilp(&problem).unwrap();
        let found: Vec<usize> =
            (0..19).filter(|&layer| choices[leaders.iter().position(|&l| l == group(layer)).unwrap()] == 0).collect();
        assert_eq!(found, four, "{percent} %");
    }
}
