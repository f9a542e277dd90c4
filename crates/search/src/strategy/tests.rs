//! What holds for all strategies, and how far the plain ones come.

use super::*;
use crate::strategy::{rl::Features, toy};
use std::collections::BTreeSet;

type Search = fn(&Problem, &[Features], &Settings, &mut Measure<'_>) -> Result<Vec<Trial>, SearchError>;

const STRATEGIES: [(&str, Search); 3] = [
    ("random", |problem, _, settings, measure| random::search(problem, settings, measure)),
    ("evolution", |problem, _, settings, measure| evolution::search(problem, settings, measure)),
    ("rl", |problem, features, settings, measure| rl::search(problem, features, 0.1, settings, measure)),
];

fn settings(evaluations: usize, seed: u64) -> Settings {
    Settings { evaluations, seed, start: vec![] }
}

#[test]
fn every_trial_fits_and_is_what_was_measured() {
    let (one, both) = (toy::network(1, 9), toy::two_budgets(1, 5));
    for (name, search) in STRATEGIES {
        for (problem, features) in [&one, &both] {
            let mut asked = vec![];
            let trials = search(problem, features, &settings(60, 1), &mut |choices| {
                assert!(problem.fits(choices), "{name}: {choices:?}");
                asked.push(Trial { choices: choices.to_vec(), damage: problem.damage(choices) });
                Ok(Some(problem.damage(choices)))
            });
            assert_eq!(trials.unwrap(), asked);
            assert_eq!(asked.len(), 60);
            let free = (0..problem.items.len()).filter(|&i| problem.items[i].widths.len() > 1);
            let chosen = |i: usize| asked.iter().map(|trial| trial.choices[i]).collect::<BTreeSet<_>>().len();
            free.for_each(|i| assert!(chosen(i) > 1, "{name}: item {i} is never changed"));
        }
    }
}

#[test]
fn trials_depend_on_seed_and_damages_alone_so_that_a_search_resumes() {
    let (problem, features) = toy::network(2, 6);
    for (name, search) in STRATEGIES {
        let run = |seed: u64, evaluations: usize| {
            search(&problem, &features, &settings(evaluations, seed), &mut |c| Ok(Some(problem.damage(c)))).unwrap()
        };
        let trials = run(7, 40);
        assert_eq!(run(7, 40), trials, "{name}");
        assert_eq!(run(7, 30), trials[..30], "{name}: a shorter search is the start of a longer one");
        assert_ne!(run(8, 40), trials, "{name}");
    }
}

#[test]
fn nothing_is_measured_behind_an_end_or_an_error() {
    let (problem, features) = toy::network(3, 6);
    for (name, search) in STRATEGIES {
        for (end, start) in [(0, vec![]), (1, vec![vec![0; 6]; 3]), (25, vec![])] {
            let mut asked = 0;
            let trials = search(&problem, &features, &Settings { start, ..settings(100, 1) }, &mut |choices| {
                asked += 1;
                Ok((asked <= end).then(|| problem.damage(choices)))
            });
            assert_eq!((trials.unwrap().len(), asked), (end, end + 1), "{name}");
        }
        let error = search(&problem, &features, &settings(9, 1), &mut |_| Err(SearchError::NoLayers));
        assert!(matches!(error, Err(SearchError::NoLayers)), "{name}");
    }
}

#[test]
fn a_search_begins_with_the_start_that_fits() {
    let (problem, features) = toy::network(4, 6);
    let start = vec![vec![0; 6], problem.widest(), problem.uniform(3)];
    for (name, search) in STRATEGIES {
        let settings = Settings { start: start.clone(), ..settings(30, 1) };
        let trials = search(&problem, &features, &settings, &mut |c| Ok(Some(problem.damage(c)))).unwrap();
        let choices: Vec<&Vec<usize>> = trials[..2].iter().map(|trial| &trial.choices).collect();
        assert_eq!(choices, [&start[0], &start[2]], "{name}");
        assert_eq!(trials.len(), 30);
    }
}

#[test]
fn a_search_ends_when_there_is_nothing_else() {
    let (mut tight, features) = toy::network(5, 3);
    tight.limits[0].most = tight.cost(0, &[0, 0, 0]);
    for (name, search) in STRATEGIES {
        for pinned in [false, true] {
            let mut problem = tight.clone();
            if pinned {
                problem.items.iter_mut().for_each(|item| item.widths.truncate(1));
            }
            let trials = search(&problem, &features, &settings(25, 1), &mut |c| Ok(Some(problem.damage(c)))).unwrap();
            assert!(trials.iter().all(|trial| trial.choices == [0, 0, 0]));
            // The agent cannot know that its proposals are all narrowed to the same one.
            assert_eq!(trials.len(), if name == "rl" && !pinned { 25 } else { 1 }, "{name}");
        }
    }
}

#[test]
fn evolution_comes_closer_to_the_optimum_than_random_search() {
    for seed in 0..10 {
        let (problem, _) = toy::network(seed, 16);
        let mut measure = |c: &[usize]| Ok(Some(problem.damage(c)));
        let of = |trials: Vec<Trial>| toy::share_of_optimum(&problem, best(&trials).unwrap().damage);
        let evolved = of(evolution::search(&problem, &settings(300, seed), &mut measure).unwrap());
        let drawn = of(random::search(&problem, &settings(300, seed), &mut measure).unwrap());
        assert!(evolved > 0.99 && drawn > 0.93 && drawn < evolved, "seed {seed}: {evolved}, {drawn}");
        assert!(evolved <= 1.0 + 1e-9);
    }
}

#[test]
fn random_search_spends_the_budget_and_repeats_nothing() {
    let (problem, _) = toy::two_budgets(6, 8);
    let trials = random::search(&problem, &settings(200, 1), &mut |c| Ok(Some(problem.damage(c)))).unwrap();
    for Trial { choices, .. } in &trials {
        for i in (0..choices.len()).filter(|&i| choices[i] + 1 < problem.items[i].widths.len()) {
            let mut wider = choices.clone();
            wider[i] += 1;
            assert!(!problem.fits(&wider), "there is room for item {i} of {choices:?}");
        }
    }
    assert_eq!(trials.iter().map(|trial| &trial.choices).collect::<BTreeSet<_>>().len(), 200);
}
