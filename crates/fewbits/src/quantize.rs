//! Post-training quantization: prepare, place, observe, choose ranges.

use crate::{
    Error, Model,
    correct::{Patches, correct_biases},
    observe::{Observation, observe},
    progress::Progress,
    sqnr::Sqnr,
    stream::{Run, Source, stream},
};
use fewbits_graph::{
    DType, Graph, Grids, Tensor,
    exec::{self, Executor, Mode},
    passes::{self, Change},
};
use fewbits_kernels::Threads;
use fewbits_quant::{
    RangeRule, Stats,
    calibrate::{self, Policy},
    importance,
    placement::{Placement, Site, place},
    target::Target,
};
use serde::Serialize;
use std::{collections::BTreeSet, fmt, str::FromStr};

/// How activation ranges are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ranges {
    /// Every rule of [`CANDIDATES`] is tried on calibration samples; the one whose outputs come closest to the float network's wins.
    Auto,
    /// One rule.
    Rule(RangeRule),
}

/// The rules that [`Ranges::Auto`] tries.
pub const CANDIDATES: &[RangeRule] = &[
    RangeRule::MinMax,
    RangeRule::Percentile(99.999),
    RangeRule::Percentile(99.99),
    RangeRule::Mse,
    RangeRule::OutputMse,
    RangeRule::MeanMinMax,
];

/// Samples on which [`Ranges::Auto`] compares the rules.
const COMPARED_SAMPLES: usize = 32;
/// Samples from which biases are corrected.
const CORRECTION_SAMPLES: usize = 32;

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ranges::Auto => f.write_str("auto"),
            Ranges::Rule(rule) => rule.fmt(f),
        }
    }
}

impl FromStr for Ranges {
    type Err = fewbits_quant::QuantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" { Ok(Ranges::Auto) } else { text.parse().map(Ranges::Rule) }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The runtime that the result is for.
    pub target: Target,
    /// Bits and weight rules.
    pub policy: Policy,
    /// Activation ranges.
    pub ranges: Ranges,
    /// Whether biases are corrected for the mean that rounding adds.
    pub bias_correction: bool,
    /// Nodes that take no part.
    pub keep_float: BTreeSet<String>,
}

/// How close one range rule came to the float network.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The rule.
    pub rule: RangeRule,
    /// SQNR of the outputs, dB.
    pub sqnr_db: f64,
}

/// A quantized network and how it came about.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The prepared float network, with patches.
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
    /// Weights with channels whose scale was raised for their bias.
    pub guarded: Vec<String>,
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
    if model.grids.is_some() {
        return Err(Error::Model {
            path: model.path.clone(),
            what: "it is quantized already".into(),
            hint: "quantize the float model that it was made from",
        });
    }
    check_names(model, &settings.keep_float)?;
    let (graph, changes) = prepare(model)?;
    let placement = place(&graph, &settings.target, &settings.keep_float);
    let observed = observed_tensors(&graph, &placement);
    let compared = source.indices.len().min(COMPARED_SAMPLES);
    let kept = if settings.ranges == Ranges::Auto { compared.div_ceil(Model::fixed_batch(&graph).unwrap_or(1)) } else { 0 };
    let facts = exec::infer(&graph, &model.example_shapes()).map_err(Error::graph(&model.path))?;
    let weights = importance::weights(&graph, &facts);
    let Observation { stats, references } = observe(&graph, observed, source, &weights, kept, threads, progress)?;

    let rules = match settings.ranges {
        Ranges::Auto => CANDIDATES.to_vec(),
        Ranges::Rule(rule) => vec![rule],
    };
    let mut choices = Vec::new();
    let mut guarded = Vec::new();
    for &rule in &rules {
        let mut grids = calibrate::activations(&graph, &placement, &stats, &settings.policy, &settings.target, |_| rule)?;
        guarded = calibrate::weights(&graph, &placement, &settings.policy, &mut grids)?;
        choices.push(grids);
    }
    let first = |count: usize| Source { indices: source.indices[..count].to_vec(), ..*source };
    let patches = match settings.bias_correction {
        true => {
            let samples = first(source.indices.len().min(CORRECTION_SAMPLES));
            correct_biases(model, &graph, &choices, &samples, threads, progress)?
        }
        false => vec![Patches::new(); choices.len()],
    };
    let mut trials = Vec::new();
    let chosen = if rules.len() == 1 { 0 } else {
        progress.begin("choosing ranges", compared * rules.len());
        let subset = first(compared);
        for ((&rule, grids), patches) in rules.iter().zip(&choices).zip(&patches) {
            let patched = patched(&graph, patches);
            let sqnr_db = output_sqnr(&patched, Mode::Integer(grids), &subset, &references, threads, progress)?;
            trials.push(Trial { rule, sqnr_db });
        }
        progress.end();
        // Of equals the first: the simpler rule.
        (0..trials.len()).rev().max_by(|&a, &b| trials[a].sqnr_db.total_cmp(&trials[b].sqnr_db)).unwrap_or(0)
    };
    let (grids, patches, rule) = (choices.swap_remove(chosen), patches[chosen].clone(), rules[chosen]);
    Ok(Quantized { graph: patched(&graph, &patches), changes, placement, grids, patches, rule, trials, stats, guarded })
}

/// `graph` with `patches` in place of its constants.
fn patched(graph: &Graph, patches: &Patches) -> Graph {
    let mut graph = graph.clone();
    graph.constants.extend(patches.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
    graph
}

/// The prepared graph, after a check that it computes the same as the original.
///
/// # Errors
/// [`Error::Model`] if an output of the prepared graph differs by more than one part in a thousand of its largest element.
pub fn prepare(model: &Model) -> Result<(Graph, Vec<Change>), Error> {
    let (graph, changes) = passes::prepare(&model.graph).map_err(Error::graph(&model.path))?;
    let shapes = model.example_shapes();
    let inputs: Vec<Tensor> = model.graph.inputs.iter().zip(&shapes).map(|(v, dims)| example(v.dtype, dims)).collect();
    let threads = Threads::new(0);
    let outputs = |graph: &Graph| Executor::new(graph, Mode::Float, &threads).run(&inputs);
    let (before, after) = (outputs(&model.graph), outputs(&graph));
    let (before, after) = (before.map_err(Error::graph(&model.path))?, after.map_err(Error::graph(&model.path))?);
    for ((a, b), info) in before.iter().zip(&after).zip(&graph.outputs) {
        let (Some(a), Some(b)) = (a.as_f32(), b.as_f32()) else { continue };
        let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
        let apart = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
        if !(apart <= 1e-3 * largest.max(1e-6)) {
            return Err(Error::Model {
                path: model.path.clone(),
                what: format!("preparation changed output `{}` by {apart} (largest element {largest})", info.name),
                hint: "this is a defect of Fewbits, or the model computes with numbers that are not finite",
            });
        }
    }
    Ok((graph, changes))
}

/// A smooth, varied input: `sin` of the element's position.
fn example(dtype: DType, dims: &[usize]) -> Tensor {
    let count: usize = dims.iter().product();
    match dtype {
        DType::F32 => Tensor::f32(dims, (0..count).map(|i| (i as f32 * 0.37).sin()).collect()),
        DType::I64 => Tensor::i64(dims, vec![0; count]),
        DType::I32 => Tensor::i32(dims, vec![0; count]),
        DType::U8 => Tensor::u8(dims, vec![0; count]),
        DType::I8 => Tensor::i8(dims, vec![0; count]),
        DType::Bool | DType::Raw(_) => Tensor::bool(dims, vec![false; count]),
    }
}

/// The tensors whose statistics the placement needs.
fn observed_tensors(graph: &Graph, placement: &Placement) -> Vec<String> {
    let own = |(name, site): (&String, &Site)| {
        (matches!(site, Site::Activation { .. }) && graph.constant(name).is_none()).then(|| name.clone())
    };
    placement.sites.iter().filter_map(own).collect()
}

fn check_names(model: &Model, names: &BTreeSet<String>) -> Result<(), Error> {
    let known = |name: &&String| model.graph.nodes.iter().any(|n| n.name == **name);
    match names.iter().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => Err(Error::Usage {
            what: format!("`{}` has no node `{name}`", model.path.display()),
            hint: "`fewbits inspect` lists the nodes".into(),
        }),
    }
}

/// SQNR in dB of the outputs of `graph` in `mode` against `references`, one list of outputs per chunk of samples.
///
/// # Errors
/// As [`stream`].
pub fn output_sqnr(
    graph: &Graph,
    mode: Mode<'_>,
    source: &Source<'_>,
    references: &[Vec<Tensor>],
    threads: usize,
    progress: &dyn Progress,
) -> Result<f64, Error> {
    let run = Run { graph, mode, observed: vec![] };
    let mut sqnr = Sqnr::default();
    let mut chunk = 0;
    stream(
        &run,
        source,
        threads,
        progress,
        |_| (),
        |(), _| {},
        |(), seen| Ok(seen.outputs),
        |outputs| {
            for (reference, output) in references[chunk].iter().zip(&outputs) {
                if let (Some(reference), Some(output)) = (reference.as_f32(), output.as_f32()) {
                    sqnr.add(reference, output);
                }
            }
            chunk += 1;
            Ok(())
        },
    )?;
    Ok(sqnr.db())
}
