//! Assignments that keep the budgets: narrowed until they fit, widened until nothing more fits, drawn at random.
//!
//! Costs are taken to rise with widths, as [`Problem::new`] makes them: what does not fit now does not fit later either.

use crate::{Limit, Problem};
use fewbits_train::random::Random;

/// Draws the width of every item at random, narrows items at random until the budgets are kept, and spends what is left.
pub fn draw(problem: &Problem, random: &mut Random) -> Vec<usize> {
    let mut choices: Vec<usize> = problem.items.iter().map(|item| random.below(item.widths.len())).collect();
    narrow(problem, &mut choices, &[], random);
    spend(problem, &mut choices, random);
    choices
}

/// Takes random items of exceeded budgets to their next narrower width until all budgets are kept; items in `spared` come last.
pub fn narrow(problem: &Problem, choices: &mut [usize], spared: &[usize], random: &mut Random) {
    while !problem.fits(choices) {
        let open = exceeding(problem, choices);
        let others: Vec<usize> = open.iter().copied().filter(|i| !spared.contains(i)).collect();
        let among = if others.is_empty() { open } else { others };
        if among.is_empty() {
            return;
        }
        choices[among[random.below(among.len())]] -= 1;
    }
}

/// Takes random items to their next wider width as long as the budgets are kept.
pub fn spend(problem: &Problem, choices: &mut [usize], random: &mut Random) {
    let mut open: Vec<usize> = (0..choices.len()).collect();
    while !open.is_empty() {
        let at = random.below(open.len());
        let i = open[at];
        let wider = choices[i] + 1 < problem.items[i].widths.len() && {
            choices[i] += 1;
            let fits = problem.fits(choices);
            choices[i] -= usize::from(!fits);
            fits
        };
        if !wider {
            open.swap_remove(at);
        }
    }
}

/// The items with a narrower width on which the cost of an exceeded budget depends, ascending.
pub fn exceeding(problem: &Problem, choices: &[usize]) -> Vec<usize> {
    let mut counts = vec![false; choices.len()];
    let exceeded = |(l, limit): &(usize, &Limit)| problem.cost(*l, choices) > limit.most;
    for (_, limit) in problem.limits.iter().enumerate().filter(exceeded) {
        limit.terms.iter().flat_map(|term| [Some(term.item), term.other]).flatten().for_each(|i| counts[i] = true);
    }
    (0..choices.len()).filter(|&i| counts[i] && choices[i] > 0).collect()
}
