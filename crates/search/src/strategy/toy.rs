//! Toy problems for tests: layers like those of a small network, with made-up damages.

use super::rl::Features;
use crate::{Budget, Item, Kind, Limit, Problem, Term};
use fewbits_train::random::Random;

const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];

/// Pointwise and depthwise layers of growing size, 4 bits on average. Damages fall by about four with every bit and add up, so that
/// [`crate::allocate::knapsack`] finds the optimum; depthwise and early layers are more sensitive, and chance does the rest.
pub fn network(seed: u64, layers: usize) -> (Problem, Vec<Features>) {
    let mut random = Random::keyed(&[seed, 77]);
    let (mut items, mut terms, mut features) = (vec![], vec![], vec![]);
    let (mut channels, mut side) = (16, 56);
    for index in 0..layers {
        let depthwise = index % 3 == 1;
        let stride = if index % 9 == 4 { 2 } else { 1 };
        let out_channels = if index % 9 == 8 { channels * 3 / 2 } else { channels };
        let (kernel, weights) = if depthwise { (3, 9 * channels) } else { (1, channels * out_channels) };
        let (in_channels, pixels) = (channels, side * side);
        features.push(Features { depthwise, in_channels, out_channels, stride, kernel, weights, pixels, index });
        let early = 1.0 + 2.0 * (-(index as f64) / 8.0).exp();
        let sensitivity = random.normal().exp() * early * if depthwise { 3.0 } else { 1.0 };
        let damage = WIDTHS.map(|w| sensitivity * 4f64.powi(2 - i32::from(w)) * random.between(0.8, 1.2));
        let cost = WIDTHS.map(|w| weights as u64 * u64::from(w));
        items.push(item(index, Kind::Weight, damage.to_vec()));
        terms.push(Term { item: index, other: None, cost: cost.to_vec() });
        (channels, side) = (out_channels, side / stride);
    }
    let weights: usize = features.iter().map(|f| f.weights).sum();
    (Problem { items, limits: vec![Limit { budget: Budget::AvgBits(4.0), most: 4 * weights as u64, terms }] }, features)
}

/// Weights and inputs in turn under two budgets: bits of weights, and products of both. The first two are pinned.
pub fn two_budgets(seed: u64, layers: usize) -> (Problem, Vec<Features>) {
    let (mut problem, features) = network(seed, layers);
    let weights = std::mem::take(&mut problem.items);
    for (index, weight) in weights.into_iter().enumerate() {
        let damage = weight.damage.iter().map(|damage| damage / 2.0).collect();
        problem.items.extend([weight, item(index, Kind::Input, damage)]);
    }
    for pinned in &mut problem.items[..2] {
        (pinned.widths, pinned.damage) = (vec![8], vec![0.0]);
    }
    let Limit { terms, .. } = &mut problem.limits[0];
    terms.remove(0);
    terms.iter_mut().for_each(|term| term.item *= 2);
    let product = |term: &Term| Term {
        item: term.item,
        other: Some(term.item + 1),
        cost: term.cost.iter().flat_map(|&cost| WIDTHS.map(|w| cost * u64::from(w))).collect(),
    };
    let products: Vec<Term> = terms.iter().map(product).collect();
    let most = products.iter().map(|term| term.cost[WIDTHS.len() * WIDTHS.len() - 1]).sum::<u64>() / 3;
    problem.limits.push(Limit { budget: Budget::Bops(most as f64), most, terms: products });
    let features = features.iter().flat_map(|&f| [f, f]).collect();
    (problem, features)
}

fn item(index: usize, kind: Kind, damage: Vec<f64>) -> Item {
    Item { name: format!("{kind:?} {index}"), kind, widths: WIDTHS.to_vec(), damage }
}

/// What part of the damage that the best choice avoids is avoided: 0 with the fewest bits everywhere, the worst assignment that
/// fits, and 1 at the optimum of a separable problem.
pub fn share_of_optimum(problem: &Problem, damage: f64) -> f64 {
    let worst = problem.damage(&vec![0; problem.items.len()]);
    let optimum = problem.damage(&crate::allocate::knapsack(problem).unwrap());
    (worst - damage) / (worst - optimum)
}
