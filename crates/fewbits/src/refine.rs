//! Methods that need samples: learned rounding, scales, zero points and biases, measured on samples that they do not see.

mod stage;

use crate::{
    Error, Model,
    partial::{Mark, Partial},
    plan,
    progress::Progress,
    quantize::{Patches, Quantized, Settings, laid_out, output_sqnr},
    stream::{Source, outputs},
};
use fewbits_graph::{Graph, QuantParams, Tensor, exec::Mode, op::Fact};
use fewbits_kernels::Threads;
use fewbits_methods::{BlockMethod, Draft, Ground, Mirrored, Samples, Walk, e2e_qp, layers, walk::walk_through};
use fewbits_quant::weights::guard_bias;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fmt,
    sync::OnceLock,
    time::{Duration, Instant},
};

pub(crate) use stage::{Stage, stages};

/// Of how many samples one is held back for measuring.
const HELD_BACK: usize = 8;
/// The most samples of a run where they are not looked at one by one.
const BATCH: usize = 8;
/// Bytes of samples' tensors that are kept in memory.
pub(crate) const MEMORY: usize = 2 << 30;

/// What one step brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The methods, in order.
    pub methods: String,
    /// [`crate::sqnr::BalancedSqnr`] of the outputs on held-back samples before it, dB.
    pub before_db: f64,
    /// The same after it.
    pub after_db: f64,
    /// Whether its result was taken.
    pub kept: bool,
    /// What its methods were there for and what they decided, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// How long it took; 0 where nothing may depend on the clock.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seconds: f64,
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { methods, before_db, after_db, .. } = self;
        let verdict = fewbits_report::verdict(self.kept, *before_db, *after_db);
        write!(f, "{methods:<34} {before_db:6.2} -> {after_db:6.2} dB  {:5.1} s  {verdict}", self.seconds)
    }
}

/// Takes `quantized` through the steps of `settings`. The time budget counts from `begun`, less what killed runs of the same took up to
/// the block or step that they ended in.
///
/// # Errors
/// Errors of the data, the network and the methods.
pub fn refine(
    quantized: Quantized,
    facts: &BTreeMap<String, Fact>,
    source: &Source<'_>,
    settings: &Settings,
    threads: usize,
    progress: &dyn Progress,
    begun: Instant,
) -> Result<Quantized, Error> {
    let exploring = settings.methods.explore(&settings.policy);
    let is_over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| Instant::now() >= deadline);
    let deadline = |spent: Duration| begun.checked_add(settings.time_budget - spent).filter(|_| exploring);
    if stages(settings, None).is_empty() || is_over(deadline(Duration::ZERO)) {
        return Ok(quantized);
    }
    let (seen, held) = split(source, Model::fixed_batch(&quantized.float).unwrap_or(1));
    if seen.indices == held.indices {
        progress.line("so few samples that steps are judged on those that they learn from: give 16 or more");
    }
    // Where equalization clips what is hardly ever seen, the rescaled network is not quite the same.
    let references = float_outputs(&quantized.prepared, &held, threads, progress)?;
    let closeness =
        |draft: &Draft| output_sqnr(&draft.graph, Mode::Integer(&draft.grids), &held, &references, threads, progress);
    let Quantized { prepared, float, placement, stats, .. } = &quantized;
    let ground = Ground { float, placement, facts, stats };
    let pool = Threads::new(threads);
    let start = Draft { graph: quantized.graph.clone(), grids: quantized.grids.clone() };
    let described = json!({
        "settings": plan::describe(&quantized, settings, seen.indices.len()),
        "seed": settings.seed,
        "data": source.dataset.path().display().to_string(),
        "preprocess": source.preprocess.to_string(),
        "samples": seen.indices,
    });
    let plan = || plan::of(&quantized, settings, source.indices.len(), settings.seed, source.stated());
    let mut partial = settings.partial.as_deref().map(|output| Partial::new(output, prepared, plan()));
    let found = match &partial {
        Some(partial) if settings.resume => partial.read(&start, &described)?,
        _ => None,
    };
    if settings.resume && found.is_none() {
        progress.line("no run of the same command is under way: it begins anew");
    }
    let (mut best, mut next, mut mark) = match found {
        Some(found) => found,
        None => {
            let best_db = closeness(&start)?;
            (start.clone(), start, Mark { settings: described, best_db, ..Mark::default() })
        }
    };
    // Of the whole quantization, by killed runs.
    let earlier = mark.spent;
    let spent = Duration::try_from_secs_f64(earlier).unwrap_or(settings.time_budget);
    let deadline = deadline(spent.min(settings.time_budget));
    let stages = stages(settings, deadline);
    let mirrors = settings.mirrors && !source.dataset.is_prepared();
    let road = Road { prepared, ground, seen: &seen, mirrors, pool: &pool, progress };
    for (number, stage) in stages.iter().enumerate().skip(mark.done.len()) {
        // A step under way ends with what it has.
        if is_over(deadline) && mark.blocks == 0 {
            let left: Vec<String> = stages[number..].iter().map(Stage::name).collect();
            progress.line(&format!("time is up: {} left out; a longer --time-budget helps", left.join(", ")));
            break;
        }
        let stage_begun = Instant::now();
        // Of the blocks that a killed run was through with.
        let (found, spent) = (mark.findings.clone(), mark.seconds);
        let seconds = || spent + stage_begun.elapsed().as_secs_f64();
        let findings = || [&found[..], &stage.findings()].concat();
        let agreed = road.take(stage, &mut next, mark.blocks, deadline, |blocks, next| {
            (mark.blocks, mark.findings, mark.seconds) = (blocks, findings(), seconds());
            mark.spent = earlier + begun.elapsed().as_secs_f64();
            partial.as_mut().map_or(Ok(()), |partial| partial.write(&best, next, &mark, false))
        })?;
        guard_biases(&ground, &mut next);
        let (before_db, after_db) = (mark.best_db, closeness(&next)?);
        let kept = !exploring || after_db > before_db + stage.margin_db();
        let mut findings = findings();
        findings.extend((!agreed).then(|| format!("nothing was changed: {}", stage.why_nothing())));
        if !kept && after_db > before_db {
            findings.push(format!("to be kept it must gain {} dB", stage.margin_db()));
        }
        let step = Step { methods: stage.name(), before_db, after_db, kept, findings, seconds: seconds() };
        progress.line(&format!("step {step}"));
        mark.done.push(step);
        if kept {
            (best, mark.best_db) = (next.clone(), after_db);
        } else {
            next = best.clone();
        }
        (mark.blocks, mark.findings, mark.seconds) = (0, vec![], 0.0);
        mark.spent = earlier + begun.elapsed().as_secs_f64();
        if let Some(partial) = &mut partial {
            partial.write(&best, &next, &mark, true)?;
        }
    }
    if let Some(partial) = &partial {
        partial.remove();
    }
    let mut patches: Patches = quantized.patches.clone();
    patches.extend(best.patches(float));
    let graph = laid_out(prepared, &patches, &best.grids);
    let mut placement = placement.clone();
    for layer in layers(float, &quantized.placement).iter().filter(|layer| best.grids.params(&layer.weight).is_none()) {
        placement.nodes[layer.node].integer = false;
        placement.nodes[layer.node].reason = "its weight has zero points, which integer kernels do not multiply".into();
    }
    let steps = [&quantized.steps[..], &mark.done].concat();
    Ok(Quantized { graph, placement, grids: best.grids, patches, steps, ..quantized })
}

/// What every stage works with.
struct Road<'a> {
    /// The float network before it was rescaled.
    prepared: &'a Graph,
    ground: Ground<'a>,
    /// Samples that methods learn from.
    seen: &'a Source<'a>,
    /// Whether those who walk see them mirrored, too.
    mirrors: bool,
    pool: &'a Threads,
    progress: &'a dyn Progress,
}

impl Road<'_> {
    /// Takes `draft` through `stage`, which is to be over by `deadline`, from its block `first` on; `done` is told the draft after each
    /// block. Returns false if it could not change anything.
    fn take(
        &self,
        stage: &Stage,
        draft: &mut Draft,
        first: usize,
        deadline: Option<Instant>,
        done: impl FnMut(usize, &Draft) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let Road { prepared, ground, seen, mirrors, pool, progress } = *self;
        let runs = Runs::of(seen, ground.float);
        match stage {
            Stage::Walk(methods) => {
                let mirrored = Mirrored(&runs);
                let samples: &dyn Samples = if mirrors { &mirrored } else { &runs };
                let mut walk = Walk::new(ground, samples, MEMORY, pool)?;
                let methods: Vec<&dyn BlockMethod> = methods.iter().map(|m| &**m).collect();
                for _ in 0..first {
                    walk.advance(draft)?;
                }
                walk_through(&mut walk, draft, &methods, deadline, progress, done)?;
                Ok(true)
            }
            Stage::Outputs(method) => method.run(prepared, ground, draft, seen, pool, progress),
            Stage::Whole(config) => Ok(e2e_qp::tune(ground, draft, &runs, config, pool, progress)?),
        }
    }
}

/// What the float network makes of `source`, one list of outputs per run.
fn float_outputs(
    float: &Graph,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Tensor>>, Error> {
    let mut found = Vec::new();
    outputs(float, Mode::Float, source, threads, progress, |seen| {
        found.push(seen.outputs);
        Ok(())
    })?;
    Ok(found)
}

/// The samples that methods see, and every eighth run of the network, which they do not; all are both if there are few.
fn split<'a>(source: &Source<'a>, batch: usize) -> (Source<'a>, Source<'a>) {
    let part = |indices: Vec<usize>| Source { indices, ..*source };
    let runs: Vec<&[usize]> = source.indices.chunks(batch).filter(|run| run.len() == batch).collect();
    if runs.len() < 2 || source.indices.len() < 2 * HELD_BACK {
        let all = if runs.is_empty() { source.indices.clone() } else { runs.concat() };
        return (part(all.clone()), part(all));
    }
    let is_held = |i: usize| i % HELD_BACK == HELD_BACK - 1 || (runs.len() < HELD_BACK && i + 1 == runs.len());
    let of =
        |held: bool| part((0..runs.len()).filter(|&i| is_held(i) == held).flat_map(|i| runs[i].to_vec()).collect());
    (of(false), of(true))
}

/// Raises weight scales for biases that have become too large for them.
fn guard_biases(ground: &Ground<'_>, draft: &mut Draft) {
    for layer in layers(ground.float, ground.placement) {
        let scale = draft.grids.params(&layer.input).and_then(QuantParams::tensor_params);
        let bias = layer.bias.as_ref().and_then(|name| draft.graph.constant(name)).and_then(|t| t.as_f32());
        let params = draft.grids.params(&layer.weight).cloned();
        if let (Some((scale, _)), Some(bias), Some(mut params)) = (scale, bias, params)
            && !guard_bias(&mut params.scale, scale, bias).is_empty()
        {
            draft.set_params(&layer.weight, params);
        }
    }
}

/// A source as methods see it.
pub(crate) struct Runs<'a> {
    source: &'a Source<'a>,
    batch: usize,
    /// Of the first sample that was read: methods make everything ready for one.
    shape: OnceLock<Vec<usize>>,
}

impl<'a> Runs<'a> {
    pub(crate) fn of(source: &'a Source<'a>, graph: &Graph) -> Self {
        Runs { source, batch: Model::fixed_batch(graph).unwrap_or(1), shape: OnceLock::new() }
    }

    /// Several samples a run, if the network takes them: as many as divide their number.
    pub(crate) fn batched(source: &'a Source<'a>, graph: &Graph) -> Self {
        let divides = |batch: &usize| source.indices.len().is_multiple_of(*batch);
        let batch = Model::fixed_batch(graph).unwrap_or((1..=BATCH).rev().find(divides).unwrap_or(1));
        Runs { source, batch, shape: OnceLock::new() }
    }
}

impl Samples for Runs<'_> {
    fn count(&self) -> usize {
        self.source.indices.len().div_ceil(self.batch)
    }

    fn inputs(&self, i: usize) -> Result<Vec<Tensor>, Box<dyn std::error::Error + Send + Sync>> {
        let indices = self.source.indices.chunks(self.batch).nth(i).unwrap_or_default();
        let tensor = self.source.tensor(indices, self.batch)?.0;
        let first = self.shape.get_or_init(|| tensor.dims.clone());
        if *first != tensor.dims {
            return Err(Box::new(Error::Usage {
                what: format!("prepared samples are {first:?} and {:?}; these methods need one size", tensor.dims),
                hint: "give --resize-to HxW or --crop, or take --method basic".into(),
            }));
        }
        Ok(vec![tensor])
    }
}

#[cfg(test)]
mod tests;
