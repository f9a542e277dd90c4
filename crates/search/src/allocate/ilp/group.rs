//! Items that have costs together, and the ways to choose their widths that are worth a thought.
//!
//! A [`Problem`] enters; groups leave that have nothing to do with each other but for the limits.

use crate::{Problem, Term};
use std::collections::BTreeSet;

/// Widths for all items of a group.
#[derive(Clone, Debug)]
pub(super) struct Way {
    /// Item and choice.
    pub choices: Vec<(usize, usize)>,
    /// Their damages, added up.
    pub damage: f64,
    /// What they cost, by limit.
    pub costs: Vec<u64>,
}

/// Items that have costs together.
#[derive(Debug)]
pub(super) struct Group {
    /// Every way but those that another one is as good as, in damage and under every limit; by rising damage.
    pub ways: Vec<Way>,
}

impl Group {
    pub fn least_damage(&self) -> f64 {
        self.ways.first().map_or(0.0, |way| way.damage)
    }

    pub fn most_damage(&self) -> f64 {
        self.ways.last().map_or(0.0, |way| way.damage)
    }

    /// What the group damages with these choices.
    pub fn damage(&self, problem: &Problem, choices: &[usize]) -> f64 {
        let items = self.ways.first().map(|way| &way.choices[..]).unwrap_or_default();
        items.iter().map(|&(item, _)| problem.items[item].damage[choices[item]]).sum()
    }

    /// The number of a way that damages no more and costs no more than these choices.
    pub fn at_least_as_good(&self, problem: &Problem, choices: &[usize]) -> Option<usize> {
        let items: Vec<usize> = self.ways.first()?.choices.iter().map(|&(item, _)| item).collect();
        let way = items.iter().fold(Way::new(problem), |way, &item| way.with(problem, item, choices[item]));
        self.ways.iter().position(|other| other.is_as_good_as(&way))
    }
}

impl Way {
    fn new(problem: &Problem) -> Self {
        Way { choices: vec![], damage: 0.0, costs: vec![0; problem.limits.len()] }
    }

    /// With one item more, and what it costs together with those that are there.
    fn with(&self, problem: &Problem, item: usize, choice: usize) -> Self {
        let mut way = self.clone();
        way.choices.push((item, choice));
        way.damage += problem.items[item].damage[choice];
        let choice_of = |item: usize| way.choices.iter().find(|(other, _)| *other == item).map(|&(_, choice)| choice);
        let cost = |term: &Term| match term.other {
            None => Some(term.cost[choice]),
            Some(other) => {
                let columns = problem.items[other].widths.len();
                Some(term.cost[choice_of(term.item)? * columns + choice_of(other)?])
            }
        };
        for (sum, limit) in way.costs.iter_mut().zip(&problem.limits) {
            let own = limit.terms.iter().filter(|term| term.item == item || term.other == Some(item));
            *sum += own.filter_map(cost).sum::<u64>();
        }
        way
    }

    fn is_as_good_as(&self, other: &Way) -> bool {
        self.damage <= other.damage && self.costs.iter().zip(&other.costs).all(|(a, b)| a <= b)
    }
}

/// All items, those that share a term together.
pub(super) fn groups(problem: &Problem) -> Vec<Group> {
    let pairs = || {
        let terms = problem.limits.iter().flat_map(|limit| &limit.terms);
        terms.filter_map(|term| term.other.map(|other| (term.item, other)))
    };
    let mut group_of: Vec<usize> = (0..problem.items.len()).collect();
    for (item, other) in pairs() {
        let [kept, gone] = [group_of[item], group_of[other]];
        group_of.iter_mut().filter(|group| **group == gone).for_each(|group| *group = kept);
    }
    let others: BTreeSet<usize> = pairs().map(|(_, other)| other).collect();
    let of_number = |number: usize| {
        let items = (0..problem.items.len()).filter(|&item| group_of[item] == number);
        let (centres, rest): (Vec<usize>, Vec<usize>) = items.partition(|item| others.contains(item));
        (!(centres.is_empty() && rest.is_empty())).then(|| group(problem, &centres, &rest))
    };
    (0..problem.items.len()).filter_map(of_number).collect()
}

/// Once the widths of `centres` are chosen, those of the `rest` have nothing to do with each other.
fn group(problem: &Problem, centres: &[usize], rest: &[usize]) -> Group {
    let longer = |ways: &[Way], item: usize| -> Vec<Way> {
        let widths = 0..problem.items[item].widths.len();
        ways.iter().flat_map(|way| widths.clone().map(move |choice| way.with(problem, item, choice))).collect()
    };
    let starts = centres.iter().fold(vec![Way::new(problem)], |ways, &item| longer(&ways, item));
    let all =
        starts.into_iter().flat_map(|start| rest.iter().fold(vec![start], |ways, &item| best(longer(&ways, item))));
    Group { ways: best(all.collect()) }
}

/// Without ways that another one is as good as, by rising damage; of equals the first is kept.
fn best(mut ways: Vec<Way>) -> Vec<Way> {
    ways.sort_by(|a, b| a.damage.total_cmp(&b.damage).then_with(|| a.costs.cmp(&b.costs)));
    let mut kept: Vec<Way> = vec![];
    for way in ways {
        if !kept.iter().any(|other| other.is_as_good_as(&way)) {
            kept.push(way);
        }
    }
    kept
}
