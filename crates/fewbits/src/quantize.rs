//! Post-training quantization: prepare, place, observe, choose ranges, and hand over to [`crate::refine`].

use crate::{
    Error, Model,
    methods::{Method, Methods},
    observe::{Observation, observe},
    progress::Progress,
    refine::{Step, refine, stages},
    sqnr::BalancedSqnr,
    stream::{Source, outputs},
};
use fewbits_data::Batch;
use fewbits_graph::{
    DType, Graph, Grids, QuantParams, Tensor,
    exec::{self, Executor, Mode},
    op::Fact,
    passes::{self, Change, OutputSlot, SiluSlot},
};
use fewbits_kernels::Threads;
use fewbits_methods::{
    bias_absorption, bias_correction, equalization,
    expectation::{self, Normals},
    output_scaling,
};
use fewbits_quant::{
    Range, RangeRule, Stats, WeightRule,
    calibrate::{self, Policy},
    importance,
    placement::{Placement, Site, place},
    target::Target,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Replacement constants by name.
pub type Patches = BTreeMap<String, Arc<Tensor>>;

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

/// What changed weights must gain to be taken before broken roundings are repaired: weights as they were trained lead to better ones.
const RESHAPING_GAIN_BEFORE_REPAIR_DB: f64 = 3.0;
/// Bits of weights at which plain rounding breaks networks.
const BREAKING_BITS: u8 = 4;
/// Default of [`Settings::time_budget`].
pub const TIME_BUDGET: Duration = Duration::from_secs(600);
/// Samples on which [`Ranges::Auto`] compares the rules.
const COMPARED_SAMPLES: usize = 32;
/// Samples from which weights are reshaped, and on which that is judged.
const RESHAPING_SAMPLES: usize = 16;
/// Places from which an output counts as spatial.
const MANY_PLACES: usize = 64;

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
    /// What may be done to weights, scales and biases.
    pub methods: Methods,
    /// Nodes that take no part.
    pub keep_float: BTreeSet<String>,
    /// Time after which [`Methods::Auto`] goes no further: a step under way ends with what it has.
    pub time_budget: Duration,
    /// Steps for each layer or block whose rounding is learned, if not the method's own default.
    pub iterations: Option<usize>,
    /// Seed of everything random.
    pub seed: u64,
    /// The file that is made, for long steps to leave their state beside.
    pub partial: Option<PathBuf>,
    /// Go on from that state, if there is one.
    pub resume: bool,
    /// Weights reshaped before, which are taken as they are.
    pub reshaped: Option<Reshaped>,
}

impl Settings {
    /// The bits that ranges and reshaped weights are judged at. Where methods are to repair weights that plain rounding breaks, they are
    /// judged with weights of 8 bits: a broken network ranks nothing but noise.
    fn judged_policy(&self) -> Policy {
        let breaks = self.policy.least_weight_bits() <= BREAKING_BITS && !stages(self, None).is_empty();
        if breaks { self.policy.with_weights_from(8) } else { self.policy.clone() }
    }

    /// Everything by default but `target` and `policy`.
    pub fn new(target: Target, policy: Policy) -> Self {
        Settings {
            target,
            policy,
            ranges: Ranges::Auto,
            methods: Methods::Auto,
            keep_float: BTreeSet::new(),
            time_budget: TIME_BUDGET,
            iterations: None,
            seed: 0,
            partial: None,
            resume: false,
            reshaped: None,
        }
    }
}

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
    let shapes = data_shapes(model, source)?;
    let (prepared, changes) = passes::prepare(&model.graph).map_err(Error::graph(&model.path))?;
    check_same(model, &prepared, &shapes, threads)?;
    let first =
        |count: usize| Source { indices: source.indices[..count.min(source.indices.len())].to_vec(), ..*source };
    let facts = exec::infer(&prepared, &shapes).map_err(Error::graph(&model.path))?;
    // Folded graphs have the tensors of the unfolded one.
    let normals =
        expectation::of_normalizations(&passes::trainable(&model.graph, false).map_err(Error::graph(&model.path))?);
    let reshaped = match &settings.reshaped {
        Some(reshaped) => reshaped.clone(),
        None => reshape(&prepared, &facts, normals, settings, &first(RESHAPING_SAMPLES), threads, progress)?,
    };
    let Reshaped { mut patches, ranges, normals } = reshaped.clone();
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
    let ground = Ground {
        graph: &graph,
        placement: &placement,
        facts: &facts,
        stats: &stats,
        ranges: &ranges,
        weights: &judged_grids,
        means: &means,
    };
    let mut choices = Vec::new();
    progress.begin("choosing ranges", compared.indices.len() * rules.len());
    for &rule in &rules {
        let choice = choose(&ground, settings, rule)?;
        let trial = match references.is_empty() {
            true => None,
            false => {
                let patched = patched(&graph, &choice.biases);
                let mode = Mode::Integer(&choice.grids);
                let sqnr_db = output_sqnr(&patched, mode, &compared, &references, threads, progress)?;
                Some(Trial { rule, sqnr_db })
            }
        };
        choices.push((choice, trial));
    }
    progress.end();
    let trials: Vec<Trial> = choices.iter().filter_map(|(_, trial)| trial.clone()).collect();
    // Of equals the first: the simpler rule.
    let best = (0..trials.len()).rev().max_by(|&a, &b| trials[a].sqnr_db.total_cmp(&trials[b].sqnr_db)).unwrap_or(0);
    let (judged, _) = choices.swap_remove(best);
    let doubted = !judged.biases.is_empty() && settings.methods == Methods::Auto;
    let mut corrects = true;
    if let Some(Trial { sqnr_db, .. }) = trials.get(best).filter(|_| doubted) {
        let mode = Mode::Integer(&judged.grids);
        corrects = output_sqnr(&graph, mode, &compared, &references, threads, progress)? <= *sqnr_db;
    }
    let Choice { grids, biases, guarded } =
        choose(&Ground { weights: &weight_grids, ..ground }, settings, rules[best])?;
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
        rule: rules[best],
        trials,
        stats,
        guarded,
        steps: vec![],
    };
    refine(quantized, &facts, source, settings, threads, progress, begun)
}

/// Grids under one rule, and the biases that go with them.
struct Choice {
    grids: Grids,
    biases: Patches,
    guarded: Vec<String>,
}

/// What grids are chosen from.
struct Ground<'a> {
    graph: &'a Graph,
    placement: &'a Placement,
    facts: &'a BTreeMap<String, Fact>,
    stats: &'a Stats,
    /// Ranges that are given.
    ranges: &'a BTreeMap<String, Range>,
    weights: &'a BTreeMap<String, QuantParams>,
    /// `E[x]` by channel of what layers multiply, if biases are corrected.
    means: &'a BTreeMap<String, Vec<f64>>,
}

fn choose(ground: &Ground<'_>, settings: &Settings, rule: RangeRule) -> Result<Choice, Error> {
    let Ground { graph, placement, facts, stats, ranges, weights, means } = *ground;
    let mut grids = calibrate::activations(graph, placement, stats, &settings.policy, &settings.target, rule, ranges)?;
    let guarded = calibrate::add_weights(graph, placement, weights, &mut grids);
    let biases = bias_correction::corrections(graph, &grids, facts, means);
    Ok(Choice { grids, biases, guarded })
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

/// Changed weights and biases that leave the float network as it is, and what follows from them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reshaped {
    patches: Patches,
    ranges: BTreeMap<String, Range>,
    /// What layers put out, as far as BatchNormalizations say.
    normals: Normals,
}

/// Output scaling, and equalization and absorption of biases where they bring the quantized outputs closer on `source`.
fn reshape(
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
    let between = groups.iter().flat_map(|g| &g.tensors).chain(silus.iter().map(|s| &s.tensor));
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
    let sqnr = |reshaped: &Reshaped| -> Result<f64, Error> {
        let (graph, placement) = placed(prepared, &reshaped.patches, settings);
        let observed = observed_tensors(&graph, &placement);
        let seen = observe(&graph, observed, source, &none, 0, threads, progress)?;
        let rule = RangeRule::Percentile(99.99);
        let quick = Policy { weight_rule: WeightRule::MinMax, ..settings.judged_policy() };
        let weights = calibrate::weights(&graph, &placement, &quick)?;
        // Without means there is no bias correction, and the comparison is of ranges alone.
        let ground = Ground {
            graph: &graph,
            placement: &placement,
            facts,
            stats: &seen.stats,
            ranges: &reshaped.ranges,
            weights: &weights,
            means: &BTreeMap::new(),
        };
        let choice = choose(&ground, settings, rule)?;
        output_sqnr(&graph, Mode::Integer(&choice.grids), source, &references, threads, progress)
    };
    let is_repaired = settings.judged_policy() != settings.policy;
    let gain = if is_repaired { RESHAPING_GAIN_BEFORE_REPAIR_DB } else { 0.0 };
    let better = |method: Method, old: Reshaped, new: Reshaped| -> Result<Reshaped, Error> {
        let taken = new != old && (settings.methods.demands(method) || sqnr(&new)? > sqnr(&old)? + gain);
        Ok(if taken { new } else { old })
    };
    if equalizes {
        let output_scaling::Scaling { patches, ranges } = output_scaling::scaling(prepared, &outputs, &stats);
        best = Reshaped { patches, ranges, ..best };
        outputs.iter().for_each(|slot| drop(best.normals.remove(&slot.tensor)));
        let equalized = equalized(prepared, &best, &silus, &stats, settings);
        best = better(Method::Equalize, best, equalized)?;
    }
    if absorbs {
        let graph = patched(prepared, &best.patches);
        let tensors = seams.iter().map(|seam| seam.tensor.clone()).collect();
        let Observation { stats, .. } = observe(&graph, tensors, source, &none, 0, threads, progress)?;
        let absorbed = absorbed(&graph, facts, &best, &stats);
        best = better(Method::AbsorbBias, best, absorbed)?;
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
    let equalization::Equalized { patches, factors } =
        equalization::equalize(&graph, stats, settings.policy.per_channel);
    new.patches.extend(patches);
    for (tensor, factors) in factors {
        let channels = new.normals.get_mut(&tensor).into_iter().flatten();
        channels.zip(factors).for_each(|(channel, factor)| *channel = channel.times(factor));
    }
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

/// The graph that is quantized: `prepared` with changed constants, without the slots that stayed neutral.
pub fn laid_out(prepared: &Graph, patches: &Patches, grids: &Grids) -> Graph {
    let graph = passes::drop_neutral_slots(&patched(prepared, patches));
    passes::drop_layer_input_slots(&graph, |slot| grids.params(slot).is_none())
}

/// The same before there are grids, and where they will be: a layer input that would have 8 bits needs no slot, since the tensor
/// behind it has 8 as well.
fn placed(prepared: &Graph, patches: &Patches, settings: &Settings) -> (Graph, Placement) {
    let graph = passes::drop_neutral_slots(&patched(prepared, patches));
    let place = |graph: &Graph| place(graph, &settings.target, &settings.keep_float);
    let sites = place(&graph).sites;
    let bits = |slot: &str| sites.get(slot).map_or(8, |site| settings.policy.activation_bits(slot, site));
    let graph = passes::drop_layer_input_slots(&graph, |slot| bits(slot) == 8);
    let placement = place(&graph);
    (graph, placement)
}

/// `graph` with `patches` in place of its constants.
fn patched(graph: &Graph, patches: &Patches) -> Graph {
    let mut graph = graph.clone();
    graph.constants.extend(patches.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
    graph
}

/// Shapes of the inputs as the data have them, for one run of the network.
pub(crate) fn data_shapes(model: &Model, source: &Source<'_>) -> Result<Vec<Vec<usize>>, Error> {
    Model::input(&model.graph)?;
    let first = source.indices.first().copied().ok_or_else(|| Error::Usage {
        what: "there are no calibration samples".into(),
        hint: "--samples must be at least 1".into(),
    })?;
    let mut shape = Batch::read(source.dataset, source.preprocess, &[first])?.shape;
    if let Some(n) = shape.first_mut() {
        *n = Model::fixed_batch(&model.graph).unwrap_or(1);
    }
    Ok(vec![shape])
}

/// Checks that the prepared graph computes what the model computes, on one made-up input.
///
/// # Errors
/// [`Error::Model`] if an output differs by more than one part in a thousand of its largest element.
fn check_same(model: &Model, graph: &Graph, shapes: &[Vec<usize>], threads: usize) -> Result<(), Error> {
    let inputs: Vec<Tensor> = model.graph.inputs.iter().zip(shapes).map(|(v, dims)| example(v.dtype, dims)).collect();
    let threads = Threads::new(threads);
    let outputs = |graph: &Graph| Executor::new(graph, Mode::Float, &threads).run(&inputs);
    let (before, after) = (outputs(&model.graph), outputs(graph));
    let (before, after) = (before.map_err(Error::graph(&model.path))?, after.map_err(Error::graph(&model.path))?);
    for ((a, b), info) in before.iter().zip(&after).zip(&graph.outputs) {
        let (Some(a), Some(b)) = (a.as_f32(), b.as_f32()) else { continue };
        let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
        // A NaN on one side only is a difference; f32::max would pass it over.
        let difference = |(x, y): (&f32, &f32)| if x.is_nan() && y.is_nan() || x == y { 0.0 } else { (x - y).abs() };
        let worse = |m: f32, d: f32| if m.is_nan() || d.is_nan() { f32::NAN } else { m.max(d) };
        let apart = a.iter().zip(b).map(difference).fold(0f32, worse);
        if apart.is_nan() || apart > 1e-3 * largest.max(1e-6) {
            return Err(Error::Model {
                path: model.path.clone(),
                what: format!("preparation changed output `{}` by {apart} (largest element {largest})", info.name),
                hint: "this is a defect of Fewbits, or the model computes with numbers that are not finite",
            });
        }
    }
    Ok(())
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

/// [`BalancedSqnr`] in dB of the outputs of `graph` in `mode` against `references`, one list of outputs per chunk of samples.
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
    let mut chunk = 0;
    outputs(graph, mode, source, threads, progress, |seen| {
        for ((sqnr, reference), output) in sqnr.iter_mut().zip(&references[chunk]).zip(&seen.outputs) {
            if let (Some(x), Some(y)) = (reference.as_f32(), output.as_f32()) {
                sqnr.add(&reference.dims, x, y);
            }
        }
        chunk += 1;
        Ok(())
    })?;
    Ok(BalancedSqnr::db(&sqnr))
}
