//! The agent in its environment.

use super::*;
use crate::{
    Budget, Limit, Term,
    strategy::{best, toy},
    testing,
};

fn item(widths: &[u8]) -> Item {
    Item { name: String::new(), kind: Kind::Weight, widths: widths.to_vec(), damage: vec![0.0; widths.len()] }
}

/// Enough seeds that chance alone does not pass: of these problems, random search solves one in five.
#[test]
fn reaches_98_percent_of_the_optimum_within_300_episodes() {
    for seed in 0..3 {
        let (problem, features) = toy::network(seed, 16);
        let scale = 1.0 / problem.damage(&problem.uniform(4));
        let settings = Settings { evaluations: 300, seed: seed + 100, start: vec![] };
        let reached = |damage: f64| toy::share_of_optimum(&problem, damage) >= 0.98;
        let mut done = false;
        let trials = search(&problem, &features, scale, &settings, &mut |choices| {
            let damage = problem.damage(choices);
            let measured = (!done).then_some(damage);
            done = reached(damage);
            Ok(measured)
        });
        let trials = trials.unwrap();
        assert!(reached(best(&trials).unwrap().damage), "seed {seed}: {:?}", best(&trials));
    }
}

#[test]
fn an_action_is_rounded_as_the_source_does() {
    let item = item(&[2, 3, 4, 5, 6, 8]);
    // round(1.5 + 7a), half to even, kept within 2 to 8, and 7 is as far from 6 as from 8.
    for (action, width) in [
        (0.0, 2),
        (0.2, 3),
        (0.5, 5),
        (0.7, 6),
        (0.75, 6),
        (0.8, 6),
        (0.9, 8),
        (1.0, 8),
        (2.0 / 7.0, 4),
        (1.0 / 7.0, 2),
    ] {
        assert_eq!(item.widths[choice(&item, action)], width, "{action}");
    }
    (0..6).for_each(|c| assert_eq!(choice(&item, action(&item, c)), c));
}

#[test]
fn items_are_narrowed_from_the_last_to_the_first_over_and_over() {
    let term = |item: usize| Term { item, other: None, cost: vec![2, 3, 4] };
    let limit = |most: u64, items: &[usize]| Limit {
        budget: Budget::Size(most),
        most,
        terms: items.iter().map(|&i| term(i)).collect(),
    };
    let problem = |limits: Vec<Limit>| Problem { items: vec![item(&[2, 3, 4]); 4], limits };
    for (most, expected) in
        [(16, [2, 2, 2, 2]), (15, [2, 2, 2, 1]), (12, [1, 1, 1, 1]), (10, [1, 1, 0, 0]), (8, [0; 4])]
    {
        let mut choices = vec![2; 4];
        enforce(&problem(vec![limit(most, &[0, 1, 2, 3])]), &mut choices);
        assert_eq!(choices, expected, "{most}");
    }
    // What an exceeded budget does not depend on is left alone.
    let mut choices = vec![2; 4];
    enforce(&problem(vec![limit(99, &[3]), limit(5, &[0, 2]), limit(99, &[1])]), &mut choices);
    assert_eq!(choices, [1, 2, 0, 2]);
}

#[test]
fn the_agent_sees_what_it_chose_and_learns_the_reward_at_each_step() {
    let (problem, features) = toy::two_budgets(1, 3);
    let mut walk = Walk::new(&problem, &features);
    let mut actions = [0.99, 0.0, 0.5, 0.2].into_iter();
    let choices = walk.walk(|_| actions.next().unwrap());
    let widths: Vec<u8> = choices.iter().zip(&problem.items).map(|(&c, item)| item.widths[c]).collect();
    assert_eq!(widths, [8, 8, 8, 2, 5, 3]);
    let ends: Vec<[f32; 2]> = walk.taken.iter().map(|(state, _)| [state[8], state[9]]).collect();
    assert_eq!(ends, [[1.0, 1.0], [1.0, 0.0], [0.25, 1.0], [0.625, 0.0]]);
    // The layers 0, 1, 2: pointwise, depthwise, pointwise; the index runs from 0 to 1.
    let column = |c: usize| walk.taken.iter().map(|(state, _)| state[c]).collect::<Vec<f32>>();
    assert_eq!(column(0), [1.0, 1.0, 0.0, 0.0]);
    assert_eq!(column(7), [0.5, 0.5, 1.0, 1.0]);
    assert_eq!(column(1), [0.0; 4], "all layers have as many channels");
}

#[test]
fn what_cannot_be_measured_teaches_no_nonsense() {
    let (problem, features) = toy::network(1, 4);
    let settings = Settings { evaluations: 40, seed: 1, start: vec![] };
    let mut damages = [f64::NAN, f64::INFINITY, 1e300, 1.0].into_iter().cycle();
    let trials = search(&problem, &features, 1.0, &settings, &mut |_| Ok(damages.next())).unwrap();
    let widths: Vec<&Vec<usize>> = trials[22..].iter().map(|trial| &trial.choices).collect();
    assert!(widths.iter().any(|choices| choices != &widths[0]), "{widths:?}");
}

#[test]
fn features_are_those_of_the_layers() {
    let network = testing::network();
    let layers = network.layers();
    let named = |name: &str, kind: Kind| Item { name: name.into(), kind, ..item(&[4]) };
    let mut items: Vec<Item> = layers.iter().map(|layer| named(&layer.weight, Kind::Weight)).collect();
    items.push(named(&layers[1].input, Kind::Input));
    items.push(named("nowhere", Kind::Weight));
    let found = features(&network.ground(), &items);
    let [first, last] = [&found[0], &found[layers.len() - 1]];
    assert_eq!((first.in_channels, first.stride, first.kernel, first.pixels, first.index), (3, 2, 3, 256, 0));
    assert_eq!((last.out_channels, last.stride, last.kernel, last.pixels), (10, 0, 1, 1));
    for (layer, found) in layers.iter().zip(&found) {
        let weight = network.graph.constant(&layer.weight).unwrap();
        assert_eq!(found.weights, weight.len());
        let dense = found.in_channels * found.out_channels * found.kernel * found.kernel;
        assert_eq!(weight.len(), if found.depthwise { dense / found.in_channels } else { dense }, "{}", layer.weight);
    }
    assert!(found.iter().any(|f| f.depthwise));
    assert_eq!(found[layers.len()], found[1]);
    assert_eq!(found[layers.len() + 1], Features::default());
}
