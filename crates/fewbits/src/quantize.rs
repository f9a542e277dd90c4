//! Post-training quantization: prepare, place, observe, choose ranges, and hand over to [`crate::refine`].

mod check;
mod choice;
mod grounds;
mod layout;
mod reshape;
mod settings;

use crate::{
    Error, Model, inspect,
    methods::Method,
    observe::{Observation, observe},
    progress::Progress,
    refine::{Step, refine},
    sqnr::BalancedSqnr,
    stream::{Source, outputs},
};
use fewbits_graph::{
    Graph, Grids, Tensor,
    exec::{self, Mode},
    passes::{self, Change},
};
use fewbits_kernels::Threads;
use fewbits_methods::{
    Draft, Ground,
    aciq::bits::share_out,
    bias_correction,
    expectation::{self, Normals},
    layers,
};
use fewbits_quant::{RangeRule, Stats, calibrate, importance, placement::Placement};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc, time::Instant};

pub(crate) use check::data_shapes;
use check::{check_channel_bits, check_names, check_same};
use choice::{Basis, Choice, Chosen, Compared, choose_rule};
pub use layout::laid_out;
use layout::{observed_tensors, placed};
pub use reshape::Reshaped;
use reshape::{RESHAPING_SAMPLES, reshape};
pub use settings::{CANDIDATES, Ranges, Settings, TIME_BUDGET};

/// Replacement constants by name.
pub type Patches = BTreeMap<String, Arc<Tensor>>;

/// Samples on which [`Ranges::Auto`] compares the rules.
const COMPARED_SAMPLES: usize = 32;

/// How close one range rule came to the float network.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The rule.
    pub rule: RangeRule,
    /// [`BalancedSqnr`] of the outputs, dB.
    pub sqnr_db: f64,
}

/// A quantized network and how it came about.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The prepared float network, as the plan names it.
    pub prepared: Graph,
    /// The same, rescaled: computes what the model computes.
    pub float: Graph,
    /// How it was rescaled.
    pub reshaped: Reshaped,
    /// The same with corrected biases: what is quantized.
    pub graph: Graph,
    /// What preparation changed.
    pub changes: Vec<Change>,
    /// Where the grids are.
    pub placement: Placement,
    /// The grids.
    pub grids: Grids,
    /// Constants that were changed.
    pub patches: Patches,
    /// The rule that was applied to activations.
    pub rule: RangeRule,
    /// Every rule that was tried.
    pub trials: Vec<Trial>,
    /// What calibration saw.
    pub stats: Stats,
    /// What became of bits by channel, where they were asked for.
    pub channel_bits: Option<String>,
    /// Weights with channels whose scale was raised for their bias.
    pub guarded: Vec<String>,
    /// What was done after the ranges were chosen, and what it brought.
    pub steps: Vec<Step>,
}

/// Quantizes `model` from the samples of `source`.
///
/// # Errors
/// [`Error::Model`] if the model is quantized already or preparation changed what it computes; errors of the data and of ranges.
pub fn quantize(
    model: &Model,
    source: &Source<'_>,
    settings: &Settings,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Quantized, Error> {
    let begun = Instant::now();
    if model.grids.is_some() {
        return Err(Error::Model {
            path: model.path.clone(),
            what: "it is quantized already".into(),
            hint: "quantize the float model that it was made from",
        });
    }
    check_names(model, &settings.keep_float)?;
    check_channel_bits(settings)?;
    let shapes = data_shapes(model, source)?;
    let (prepared, changes) = passes::prepare(&model.graph).map_err(Error::graph(&model.path))?;
    check_same(model, &prepared, &shapes, threads)?;
    let first =
        |count: usize| Source { indices: source.indices[..count.min(source.indices.len())].to_vec(), ..*source };
    let facts = exec::infer(&prepared, &shapes).map_err(Error::graph(&model.path))?;
    if layers(&prepared, &placed(&prepared, &Patches::new(), settings).1).is_empty() {
        return Err(Error::Model {
            path: model.path.clone(),
            what: "there is no layer to quantize".into(),
            hint: "`fewbits inspect` says of each node why it stays float; so do those of --keep-float",
        });
    }
    // Folded graphs have the tensors of the unfolded one.
    let normals =
        expectation::of_normalizations(&passes::trainable(&model.graph, false).map_err(Error::graph(&model.path))?);
    if settings.methods.demands(Method::BiasCorrectionAnalytic) && normals.is_empty() {
        return Err(Error::Usage {
            what: "--method bias-correction-analytic takes the statistics of BatchNormalizations, and the network has none"
                .into(),
            hint: "take bias-correction, which measures means on the calibration samples".into(),
        });
    }
    let reshaped = match &settings.reshaped {
        Some(reshaped) => reshaped.clone(),
        None => reshape(&prepared, &facts, normals, settings, &first(RESHAPING_SAMPLES), threads, progress)?,
    };
    let Reshaped { mut patches, ranges, normals, mut steps } = reshaped.clone();
    let (graph, placement) = placed(&prepared, &patches, settings);
    let facts = exec::infer(&graph, &shapes).map_err(Error::graph(&model.path))?;
    let rules = match settings.ranges {
        Ranges::Auto => CANDIDATES.to_vec(),
        Ranges::Rule(rule) => vec![rule],
    };
    let weighs = |rule: &RangeRule| *rule == RangeRule::OutputMse;
    let weights = if rules.iter().any(weighs) { importance::weights(&graph, &facts) } else { BTreeMap::new() };
    let compared = first(if rules.len() > 1 { COMPARED_SAMPLES } else { 0 });
    let kept = compared.indices.len().div_ceil(Model::fixed_batch(&graph).unwrap_or(1));
    let observed = observed_tensors(&graph, &placement);
    let Observation { stats, references } = observe(&graph, observed, source, &weights, kept, threads, progress)?;

    let weight_grids = calibrate::weights(&graph, &placement, &settings.policy)?;
    let judged_grids = calibrate::weights(&graph, &placement, &settings.judged_policy())?;
    let means = source_means(&graph, &stats, &normals, settings);
    let basis = Basis {
        graph: &graph,
        placement: &placement,
        facts: &facts,
        stats: &stats,
        ranges: &ranges,
        weights: &judged_grids,
        means: &means,
    };
    let compared = Compared { source: compared, references, threads, progress };
    let Chosen { rule, trials, corrects, step } = choose_rule(basis, settings, &rules, &compared)?;
    steps.extend(step);
    let Choice { mut grids, mut biases, guarded } = Basis { weights: &weight_grids, ..basis }.choose(settings, rule)?;
    let mut channel_bits = None;
    if settings.policy.channel_bits {
        let ground = Ground { float: &graph, placement: &placement, facts: &facts, stats: &stats };
        let mut draft = Draft { graph: graph.clone(), grids };
        channel_bits = share_out(ground, &mut draft, &Threads::new(threads));
        biases = bias_correction::corrections_of(&graph, &draft.graph, &draft.grids, &facts, &means);
        patches.extend(draft.patches(&graph));
        grids = draft.grids;
    }
    if corrects {
        patches.extend(biases);
    }
    let (float, graph) = (graph, laid_out(&prepared, &patches, &grids));
    let quantized = Quantized {
        prepared,
        float,
        reshaped,
        graph,
        changes,
        placement,
        grids,
        patches,
        rule,
        trials,
        stats,
        channel_bits,
        guarded,
        steps,
    };
    let mut quantized = refine(quantized, &facts, source, settings, threads, progress, begun)?;
    if settings.methods.are_measured() {
        let (graph, placement) = placed(&quantized.prepared, &Patches::new(), settings);
        let before = inspect::numeric_warnings(&graph, &placement, &Stats::default());
        let rescaled = inspect::numeric_warnings(&quantized.float, &quantized.placement, &quantized.stats);
        grounds::explain(&mut quantized.steps, &before, &rescaled, settings.policy.per_channel);
    }
    Ok(quantized)
}

/// The means that biases are corrected with: those of the samples, and in their place those of `normals` with the analytic form.
fn source_means(graph: &Graph, stats: &Stats, normals: &Normals, settings: &Settings) -> BTreeMap<String, Vec<f64>> {
    let analytic = settings.methods.demands(Method::BiasCorrectionAnalytic);
    let mut means = match analytic || settings.methods.allows(Method::BiasCorrection) {
        true => bias_correction::means(stats),
        false => BTreeMap::new(),
    };
    if analytic {
        let known = expectation::propagate(graph, normals).into_iter();
        means.extend(known.map(|(name, channels)| (name, channels.iter().map(|c| c.mean).collect())));
    }
    means
}

/// [`BalancedSqnr`] in dB of the outputs of `graph` in `mode` against `references`, one list of outputs per chunk of samples. The zeros that
/// fill up a fixed batch do not count.
///
/// # Errors
/// As [`outputs`].
pub fn output_sqnr(
    graph: &Graph,
    mode: Mode<'_>,
    source: &Source<'_>,
    references: &[Vec<Tensor>],
    threads: usize,
    progress: &dyn Progress,
) -> Result<f64, Error> {
    let mut sqnr = vec![BalancedSqnr::default(); graph.outputs.len()];
    let size = Model::fixed_batch(graph).unwrap_or(1);
    let mut chunk = 0;
    outputs(graph, mode, source, threads, progress, |seen| {
        for ((sqnr, reference), output) in sqnr.iter_mut().zip(&references[chunk]).zip(&seen.outputs) {
            if let (Some(x), Some(y)) = (reference.as_f32(), output.as_f32()) {
                // Where axis 0 is not the batch, the whole tensor belongs to one sample.
                let is_batch = reference.dims.first() == Some(&size);
                let kept = if is_batch { x.len() / size * seen.batch.indices.len() } else { x.len() };
                sqnr.add(&reference.dims, &x[..kept], &y[..kept.min(y.len())]);
            }
        }
        chunk += 1;
        Ok(())
    })?;
    Ok(BalancedSqnr::db(&sqnr))
}
