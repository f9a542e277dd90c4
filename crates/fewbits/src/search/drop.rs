//! The smallest network within a drop of accuracy: a budget is found by bisection, what is within it by the search.

use super::exact;
use crate::{
    Error,
    progress::Progress,
    quantize::Quantized,
    stream::{Source, outputs},
};
use fewbits_data::metrics::top1;
use fewbits_graph::{Graph, exec::Mode};
use fewbits_methods::classes;
use fewbits_search::{Bits, Budget, Given, Metric, Problem, Sensitivity, Whole};

/// Halvings of the range of mean bits.
const STEPS: usize = 7;

/// The least mean bits, beside `budgets`, at which the best assignment changes the class of at most `drop` percent of the samples, weights
/// rounded as `whole` rounds them, and that assignment; the widest, and none, if there is none. The accuracy itself falls by less: some
/// classes were wrong before, some become right.
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
) -> Result<(Budget, Option<Vec<usize>>), Error> {
    let within = |bits: f64| [budgets, &[Budget::AvgBits(bits)]].concat();
    let ends = [table.widths.first(), table.widths.last()];
    let [mut low, mut high] = ends.map(|width| f64::from(width.copied().unwrap_or(8)));
    let mut keeps = |bits: f64| -> Result<Option<Vec<usize>>, Error> {
        let problem = Problem::new(table, &within(bits), given)?;
        progress.step();
        if problem.check().is_err() {
            return Ok(None);
        }
        let choices = exact(&problem)?;
        let changed = changed(whole, &problem.bits(&choices))?;
        progress.say(&format!("{bits:.3} bits: {changed:.2} % of the classes change"));
        Ok(Some(choices).filter(|_| changed <= drop))
    };
    let mut found = None;
    progress.begin("smallest network within the drop", STEPS);
    for _ in 0..STEPS {
        let middle = 0.5 * (low + high);
        match keeps(middle)? {
            Some(choices) => (high, found) = (middle, Some(choices)),
            None => low = middle,
        }
    }
    progress.end();
    Ok((Budget::AvgBits(high), found))
}

/// Percent of the samples whose class `bits` change.
///
/// # Errors
/// Those of the network.
pub fn changed(whole: &mut Whole<'_>, bits: &Bits) -> Result<f64, Error> {
    Ok(100.0 * whole.damage_by(Metric::TopOne, bits)?)
}

/// Share of the samples of `source` that `quantized` puts into the class of the float network, in integers.
///
/// # Errors
/// Those of the data and the networks.
pub fn agreement(
    quantized: &Quantized,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<f64, Error> {
    let classes_of = |graph: &Graph, mode: Mode<'_>| -> Result<Vec<usize>, Error> {
        let mut found = vec![];
        outputs(graph, mode, source, threads, progress, |seen| {
            let scores = seen.outputs.first().and_then(|scores| Some((scores.as_f32()?, classes(&scores.dims)?)));
            if let Some((scores, classes)) = scores {
                found.extend(scores.chunks(classes).map(top1).take(seen.batch.indices.len()));
            }
            Ok(())
        })?;
        Ok(found)
    };
    let float = classes_of(&quantized.float, Mode::Float)?;
    let integer = classes_of(&quantized.graph, Mode::Integer(&quantized.grids))?;
    let same = float.iter().zip(&integer).filter(|(a, b)| a == b).count();
    Ok(same as f64 / float.len().max(1) as f64)
}
