//! The smallest network within a drop of accuracy: a budget is found by bisection, what is within it by the search.

use super::exact;
use crate::{Error, progress::Progress};
use fewbits_search::{Bits, Budget, Given, Metric, Problem, Sensitivity, Whole};

/// Halvings of the range of mean bits.
const STEPS: usize = 7;

/// The least mean bits, beside `budgets`, at which the best assignment changes the class of at most `drop` percent of the samples, weights
/// rounded as `whole` rounds them; the widest if there are none. The accuracy itself falls by less: some classes were wrong before, some
/// become right.
///
/// # Errors
/// Those of the network and the problem.
pub fn smallest(
    table: &Sensitivity,
    whole: &mut Whole<'_>,
    budgets: &[Budget],
    given: Given<'_>,
    drop: f64,
    progress: &dyn Progress,
) -> Result<Budget, Error> {
    let within = |bits: f64| [budgets, &[Budget::AvgBits(bits)]].concat();
    let ends = [table.widths.first(), table.widths.last()];
    let [mut low, mut high] = ends.map(|width| f64::from(width.copied().unwrap_or(8)));
    let mut changed_at = |bits: f64| -> Result<f64, Error> {
        let problem = Problem::new(table, &within(bits), given)?;
        let fits = problem.check().is_ok();
        let changed = if fits { changed(whole, &problem.bits(&exact(&problem)?))? } else { 100.0 };
        progress.say(&format!("{bits:.3} bits: {changed:.2} % of the classes change"));
        progress.step();
        Ok(changed)
    };
    progress.begin("smallest network within the drop", STEPS);
    for _ in 0..STEPS {
        let middle = 0.5 * (low + high);
        *(if changed_at(middle)? <= drop { &mut high } else { &mut low }) = middle;
    }
    progress.end();
    Ok(Budget::AvgBits(high))
}

/// Percent of the samples whose class `bits` change.
///
/// # Errors
/// Those of the network.
pub fn changed(whole: &mut Whole<'_>, bits: &Bits) -> Result<f64, Error> {
    Ok(100.0 * whole.damage_by(Metric::TopOne, bits)?)
}
