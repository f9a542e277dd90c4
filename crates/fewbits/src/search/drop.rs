//! The smallest network within a drop of accuracy: a budget is found by bisection, what is within it by the search.

use super::exact;
use crate::{Error, progress::Progress};
use fewbits_search::{Budget, Given, Metric, Problem, Sensitivity, Whole};

/// Halvings of the range of mean bits.
const STEPS: usize = 7;

/// The least mean bits, beside `budgets`, at which the best assignment changes the class of at most `drop` percent of the samples,
/// weights rounded as `whole` rounds them; those of the widest widths if none does. The accuracy itself falls by less: some classes were wrong before, some become right.
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
    progress.begin("smallest network within the drop", STEPS);
    for _ in 0..STEPS {
        let middle = 0.5 * (low + high);
        let problem = Problem::new(table, &within(middle), given)?;
        let fits = problem.check().is_ok();
        let changed =
            if fits { 100.0 * whole.damage_by(Metric::TopOne, &problem.bits(&exact(&problem)?))? } else { 100.0 };
        progress.say(&format!("{middle:.3} bits: {changed:.2} % of the classes change"));
        if changed <= drop {
            high = middle
        } else {
            low = middle
        }
        progress.step();
    }
    progress.end();
    Ok(Budget::AvgBits(high))
}
