//! Weights and biases changed so that the float network stays as it is and the quantized one comes closer: output scaling, equalization,
//! absorption of biases. (Where activations have few bits, equalization lets a Clip take what is not worth resolving.)

use super::{
    choice::Basis,
    layout::{observed_tensors, patched, placed},
    output_sqnr, source_means,
};
use crate::{
    Error,
    methods::Method,
    observe::{Observation, observe},
    progress::Progress,
    quantize::{Patches, Ranges, Settings},
    refine::Step,
    stream::Source,
};
use fewbits_graph::{
    Graph,
    exec::Mode,
    op::Fact,
    passes::{self, OutputSlot, SiluSlot},
};
use fewbits_methods::{bias_absorption, equalization, expectation::Normals, output_scaling};
use fewbits_quant::{
    Range, RangeRule, Stats, WeightRule,
    calibrate::{self, Policy},
    importance,
    target::Style,
};
use std::{collections::BTreeMap, time::Instant};

/// What changed weights must gain to be taken before broken roundings are repaired: weights as they were trained lead to better ones. With
/// activations of few bits, those are what breaks.
const RESHAPING_GAIN_BEFORE_REPAIR_DB: f64 = 3.0;
/// Samples from which weights are reshaped, and on which that is judged.
pub(super) const RESHAPING_SAMPLES: usize = 16;
/// Of these range rules the best decides, where ranges are chosen later.
const JUDGED_BY: [RangeRule; 3] = [RangeRule::MinMax, RangeRule::Mse, RangeRule::MeanMinMax];
/// Places from which an output counts as spatial.
const MANY_PLACES: usize = 64;

/// Changed weights and biases that leave the float network as it is, and what follows from them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reshaped {
    pub(super) patches: Patches,
    pub(crate) ranges: BTreeMap<String, Range>,
    /// What layers put out, as far as BatchNormalizations say.
    pub(super) normals: Normals,
    /// What was tried, and what it brought.
    pub(super) steps: Vec<Step>,
}

/// Output scaling, and equalization and absorption of biases where they bring the quantized outputs closer on `source`.
pub(super) fn reshape(
    prepared: &Graph,
    facts: &BTreeMap<String, Fact>,
    normals: Normals,
    settings: &Settings,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Reshaped, Error> {
    let mut best = Reshaped { normals, ..Reshaped::default() };
    let [equalizes, absorbs] = [Method::Equalize, Method::AbsorbBias].map(|method| settings.methods.allows(method));
    let outputs = spatial_outputs(prepared, facts);
    let (groups, silus) = (equalization::groups(prepared), passes::silu_slots(prepared));
    let seams = bias_absorption::seams(prepared, facts);
    let between = groups.iter().flat_map(equalization::Group::observed).chain(silus.iter().map(|s| &s.tensor));
    let written = seams.iter().map(|seam| &seam.tensor).filter(|_| absorbs);
    let tensors: Vec<String> = match equalizes {
        true => outputs.iter().map(|s| &s.tensor).chain(between).chain(written).cloned().collect(),
        false => written.cloned().collect(),
    };
    if tensors.is_empty() {
        return Ok(best);
    }
    let none = BTreeMap::new();
    let Observation { stats, references } = observe(prepared, tensors, source, &none, usize::MAX, threads, progress)?;
    let rules = match settings.ranges {
        Ranges::Auto => JUDGED_BY.to_vec(),
        Ranges::Rule(rule) => vec![rule],
    };
    let sqnr = |reshaped: &Reshaped| -> Result<f64, Error> {
        let (graph, placement) = placed(prepared, &reshaped.patches, settings);
        let observed = observed_tensors(&graph, &placement);
        let weighted =
            if rules.contains(&RangeRule::OutputMse) { importance::weights(&graph, facts) } else { none.clone() };
        let seen = observe(&graph, observed, source, &weighted, 0, threads, progress)?;
        let quick = Policy { weight_rule: WeightRule::MinMax, ..settings.judged_policy() };
        let weights = calibrate::weights(&graph, &placement, &quick)?;
        // What bias correction mends is no reason for or against.
        let means = source_means(&graph, &seen.stats, &reshaped.normals, settings);
        let basis = Basis {
            graph: &graph,
            placement: &placement,
            facts,
            stats: &seen.stats,
            ranges: &reshaped.ranges,
            weights: &weights,
            means: &means,
        };
        let by = |&rule: &RangeRule| {
            let choice = basis.choose(settings, rule)?;
            let mode = Mode::Integer(&choice.grids);
            output_sqnr(&patched(&graph, &choice.biases), mode, source, &references, threads, progress)
        };
        rules.iter().map(by).try_fold(f64::NEG_INFINITY, |best, db| Ok(best.max(db?)))
    };
    let is_repaired = settings.judged_policy() != settings.policy;
    let gain =
        if is_repaired && !settings.policy.has_low_activations() { RESHAPING_GAIN_BEFORE_REPAIR_DB } else { 0.0 };
    let mut best_db = None;
    let mut better = |name: &str, demanded: bool, old: Reshaped, new: Reshaped| -> Result<Reshaped, Error> {
        if new == old {
            return Ok(old);
        }
        let begun = Instant::now();
        let before_db = best_db.map_or_else(|| sqnr(&old), Ok)?;
        let after_db = sqnr(&new)?;
        let kept = demanded || after_db > before_db + gain;
        best_db = Some(if kept { after_db } else { before_db });
        let margin = (gain > 0.0 && !demanded).then(|| format!("weights of 8 bits; to be kept it must gain {gain} dB"));
        let (methods, findings) = (name.to_string(), margin.into_iter().collect());
        let step = Step { methods, before_db, after_db, kept, findings, seconds: begun.elapsed().as_secs_f64() };
        let mut chosen = if kept { new } else { old };
        chosen.steps.push(step);
        Ok(chosen)
    };
    let demands = |method: Method| settings.methods.demands(method);
    if equalizes {
        let output_scaling::Scaling { patches, ranges } = output_scaling::scaling(prepared, &outputs, &stats);
        let mut scaled = Reshaped { patches, ranges, ..best.clone() };
        outputs.iter().for_each(|slot| drop(scaled.normals.remove(&slot.tensor)));
        best = better("output scaling", true, best, scaled)?;
        let equalized = equalized(prepared, &best, &silus, &stats, settings);
        best = better("equalize", demands(Method::Equalize), best, equalized)?;
    }
    if absorbs {
        let graph = patched(prepared, &best.patches);
        let tensors = seams.iter().map(|seam| seam.tensor.clone()).collect();
        let Observation { stats, .. } = observe(&graph, tensors, source, &none, 0, threads, progress)?;
        let absorbed = absorbed(&graph, facts, &best, &stats);
        best = better("absorb-bias", demands(Method::AbsorbBias), best, absorbed)?;
    }
    Ok(best)
}

/// `reshaped`, equalized.
fn equalized(
    prepared: &Graph,
    reshaped: &Reshaped,
    silus: &[SiluSlot],
    stats: &Stats,
    settings: &Settings,
) -> Reshaped {
    let mut new = reshaped.clone();
    let graph = patched(prepared, &new.patches);
    let policy = &settings.policy;
    let config = equalization::Config {
        per_channel: policy.per_channel,
        activation_bits: policy.activation_bits,
        rounds_between: settings.target.style == Style::InputsAndOutputs,
    };
    let equalized = equalization::equalize(&graph, stats, config);
    for (tensor, factors) in equalized.factors(&graph) {
        let channels = new.normals.get_mut(&tensor).into_iter().flatten();
        channels.zip(factors).for_each(|(channel, factor)| *channel = channel.times(factor));
    }
    new.patches.extend(equalized.patches);
    let (patches, ranges) = equalization::silu_patches(&patched(prepared, &new.patches), silus, stats);
    new.patches.extend(patches);
    new.ranges.extend(ranges);
    silus.iter().for_each(|slot| drop(new.normals.remove(prepared.nodes[slot.first].output())));
    new
}

/// `reshaped`, which made `graph`, with high biases absorbed.
fn absorbed(graph: &Graph, facts: &BTreeMap<String, Fact>, reshaped: &Reshaped, stats: &Stats) -> Reshaped {
    let mut new = reshaped.clone();
    let bias_absorption::Absorbed { patches, taken } = bias_absorption::absorb(graph, facts, &new.normals, stats);
    new.patches.extend(patches);
    for (tensor, taken) in taken {
        let channels = new.normals.get_mut(&tensor).into_iter().flatten();
        channels.zip(taken).for_each(|(channel, taken)| channel.mean -= taken);
    }
    new
}

/// The last layers whose output has many places: every channel shows its range in a few images. A classifier's does not, since
/// most classes are not among them.
fn spatial_outputs(prepared: &Graph, facts: &BTreeMap<String, Fact>) -> Vec<OutputSlot> {
    let places = |name: &str| facts.get(name).map_or(0, |f| f.dims.iter().skip(2).product::<usize>());
    let slots = passes::output_slots(prepared).into_iter();
    slots.filter(|slot| !slot.rectified && places(&slot.tensor) >= MANY_PLACES).collect()
}
