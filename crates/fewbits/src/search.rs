//! Mixed precision from calibration images: how many bits each weight, and if asked each input of a layer, gets under budgets, and the
//! network quantized with what was found.

mod drop;
mod inside;
mod journal;
pub mod report;
mod result;
mod settings;
mod strategy;
mod trials;

use crate::{
    Error, Model,
    methods::Methods,
    plan,
    progress::Progress,
    quantize::{self, Quantized, quantize},
    refine::{MEMORY, Runs, Stage},
    stream::Source,
    summary::packed,
};
use fewbits_graph::{Grids, exec, op::Fact};
use fewbits_kernels::Threads;
use fewbits_methods::{Ground, classes};
use fewbits_quant::calibrate;
use fewbits_search::{
    Bits, Budget, Given, Metric, Prepared, Problem, Rounding, SearchError, Sensitivity, Whole,
    allocate::{self, Allocator},
    hessian, sensitivity,
    strategy::{self as sampling, Trial, evolution, random, rl},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use inside::Rounder;
pub use inside::check as check_inside;
use journal::Journal;
use result::Told;
pub use result::{Figure, Found, Point, Row, Sort};
pub use settings::Settings;
pub use strategy::Strategy;
use trials::Trials;

/// Steps of [`Strategy::Greedy`] between two measurements of the whole network.
const BETWEEN_MEASUREMENTS: usize = 5;
/// The most samples on which the damage of single layers is measured.
const TABLE_SAMPLES: usize = 64;
/// Sizes at which the front is looked for.
const FRONT_POINTS: u64 = 10;
/// Of hundreds of assignments on few samples the one with the least damage was lucky, too: so many of the best are measured on all.
const FINALISTS: usize = 8;

/// Searches bits for `model` and quantizes it with them by `settings`, which are completed with the bits.
///
/// # Errors
/// Errors of the data, the network, the methods and the search.
pub fn search(
    model: &Model,
    source: &Source<'_>,
    settings: &mut quantize::Settings,
    search: &Settings,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(Found, Quantized), Error> {
    let begun = Instant::now();
    inside::check(search.inside)?;
    let first = measured_network(model, source, settings, search, threads, progress)?;
    let facts = exec::infer(&first.float, &quantize::data_shapes(model, source)?).map_err(Error::graph(&model.path))?;
    let ground = Ground { float: &first.float, placement: &first.placement, facts: &facts, stats: &first.stats };
    let seen = thinned(source, search.samples);
    let few = thinned(&seen, TABLE_SAMPLES);
    let (pool, runs) = (Threads::new(threads), Runs::of(&few, &first.float));
    // What the drop of a network is measured on has grids everywhere; else those of 8 bits make no difference.
    let counts = settings.policy.activation_bits < 8 || search.max_drop.is_some();
    let fixed = search.input_widths.is_empty() && counts;
    let activations = fixed.then_some(&first.grids);
    if search.max_drop.is_some() && !classifies(&ground) {
        return Err(Error::Usage {
            what: "--max-drop counts samples whose class changes, and the outputs are no scores of classes".into(),
            hint: "give a --budget".into(),
        });
    }
    let metric = search.metric.unwrap_or_else(|| search.strategy.metric(classifies(&ground)));
    let rounding = Rounding::from(&settings.policy);
    let edge_bits = Some(settings.policy.edge_bits).filter(|edge| search.widths.iter().any(|width| width < edge));

    let asked = serde_json::json!({
        "model": fewbits_quant::plan::model_sha256(&first.prepared),
        "data": source.dataset.path().display().to_string(),
        "preprocess": source.preprocess.to_string(),
        "samples": seen.indices,
        "settings": format!("{:?}", Settings { journal: None, resume: false, time_budget: Duration::ZERO, evaluations: 0, ..search.clone() }),
        "quantization": plan::describe(&first, settings, source.indices.len()),
        "seed": settings.seed,
    });
    let mut journal = Journal::open(search.journal.as_deref(), &asked, search.resume)?;

    let mut table = match search.strategy {
        Strategy::Hessian => {
            let config = hessian::Config { seed: settings.seed, ..hessian::Config::default() };
            let traces = hessian::traces(ground, &runs, &config, &pool, progress)?;
            traces.sensitivity(ground, activations, &search.widths, rounding, &pool)?
        }
        strategy => {
            let level = search.level.unwrap_or(strategy.level());
            let config = sensitivity::Config { metric, level, widths: search.widths.clone(), rounding, memory: MEMORY };
            sensitivity::measure(ground, &runs, activations, &config, &pool, progress)?
        }
    };
    let rounded = match search.inside {
        None => Prepared::new(),
        Some(method) => {
            let widths: BTreeSet<u8> = search.widths.iter().copied().chain(edge_bits).collect();
            let widths: Vec<u8> = widths.into_iter().collect();
            let samples = Runs::of(&seen, &first.float);
            let rounder = Rounder { ground, first: &first, settings, samples: &samples, threads: &pool };
            inside::rounded(method, &widths, &rounder, progress)?
        }
    };
    let inputs_at = input_grids(&first, &facts, settings, &search.input_widths)?;
    let on = |source: &Source<'_>| -> Result<Whole<'_>, Error> {
        let runs = Runs::batched(source, &first.float);
        let whole = Whole::new(ground, &runs, activations, metric, rounding, &pool)?;
        Ok(whole.with_rounded(rounded.clone()).with_inputs_at(inputs_at.clone()))
    };
    let mut whole = on(&seen)?;
    if !search.input_widths.is_empty() {
        table.inputs = whole.input_damages(&search.input_widths, progress)?;
        table.input_widths.clone_from(&search.input_widths);
    }
    let mut given = Given { edge_bits, rest: rest_bytes(&first, &table), latency: search.latency.as_ref() };
    let mut budgets = search.budgets.clone();
    let mut within_drop = None;
    if let Some(most) = search.max_drop {
        let (budget, choices) = drop::smallest(&table, &mut whole, &budgets, given, most, progress)?;
        budgets.push(budget);
        within_drop = choices;
    }
    let mut problem = Problem::new(&table, &budgets, given)?;
    journal.check(&problem)?;
    loop {
        let mut trials = Trials::new(&problem, &mut whole, &mut journal, search, begun, progress);
        explore(&mut trials, ground, search, settings.seed)?;
        let (mut trials, mut best) = trials.done()?;
        if search.strategy.is_sampling() && seen.indices.len() < source.indices.len() {
            best = best_on_all(&problem, &trials, best, &mut on(source)?)?;
        }
        let mut bits = problem.bits(&best.choices);
        if let (Some(most), Some(choices)) = (search.max_drop, within_drop.as_ref().filter(|c| problem.fits(c))) {
            // The least damage need not change the fewest classes.
            if drop::changed(&mut whole, &bits)? > most {
                bits = problem.bits(choices);
                best = Trial { choices: choices.clone(), damage: whole.damage(&bits)? };
                trials.push(best.clone());
            }
        }
        (settings.policy.weight_bits_of, settings.policy.activation_bits_of) = (bits.weights, bits.inputs);
        let shipped = quantize::Settings { reshaped: Some(first.reshaped.clone()), ..settings.clone() };
        let quantized = quantize(model, source, &shipped, threads, progress)?;
        let agreement = match classifies(&ground) {
            true => Some(drop::agreement(&quantized, &seen, threads, progress)?),
            false => None,
        };
        let told = Told {
            quantized: &quantized,
            target: &settings.target,
            table: &table,
            problem: &problem,
            search,
            agreement,
            trials: &trials,
            best: &best,
            metric,
            layer_samples: few.indices.len(),
            samples: seen.indices.len(),
            edge_bits,
        };
        let mut found = result::describe(&told)?;
        // Where the final network has more grids than the first one had, less is left for weights.
        let more = rest_bytes(&quantized, &table).saturating_sub(given.rest);
        if found.kept || more == 0 || problem.check().is_err() {
            found.points = points(&problem, &table, given, search, &trials, &mut whole)?;
            found.settle(|point| Ok(whole.damage(&point.bits())?))?;
            if classifies(&ground) {
                found.agree(|bits| Ok(1.0 - whole.damage_by(Metric::TopOne, bits)?))?;
            }
            return Ok((found, quantized));
        }
        given.rest += more;
        problem = Problem::new(&table, &budgets, given)?;
    }
}

/// The network that damage is measured on. It is reshaped as the final one, but what comes after grids is left out. Any width below 8 gives
/// every input that others read too a grid of its own.
fn measured_network(
    model: &Model,
    source: &Source<'_>,
    settings: &quantize::Settings,
    search: &Settings,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Quantized, Error> {
    let mut plain =
        quantize::Settings { time_budget: Duration::ZERO, partial: None, reshaped: None, ..settings.clone() };
    match &mut plain.methods {
        // Reshaping is judged by the fewest bits that there may be.
        Methods::Auto => plain.policy.weight_bits = search.widths.first().map_or(8, |&bits| bits),
        Methods::Basic => {}
        Methods::List(list) => list.retain(|&method| Stage::of(method, settings, None).is_none()),
    }
    if let Some(&least) = search.input_widths.first() {
        plain.policy.activation_bits = least.min(7);
    }
    quantize(model, source, &plain, threads, progress)
}

/// Every n-th sample of `source`, so that there are `most` at most.
fn thinned<'a>(source: &Source<'a>, most: usize) -> Source<'a> {
    let stride = source.indices.len().div_ceil(most.max(1)).max(1);
    Source { indices: source.indices.iter().copied().step_by(stride).collect(), ..*source }
}

/// Tries assignments as the strategy says; the one with the least measured damage is chosen.
fn explore(trials: &mut Trials<'_, '_>, ground: Ground<'_>, search: &Settings, seed: u64) -> Result<(), Error> {
    let problem = trials.problem;
    if let Err(least) = problem.check() {
        trials.progress.line(&format!("{least}: everything gets the fewest bits"));
        trials.keep(&vec![0; problem.items.len()])?;
        return Ok(());
    }
    let alike = search.widths.iter().rev().map(|&bits| problem.uniform(bits)).find(|choices| problem.fits(choices));
    let damage = alike.as_ref().map(|choices| trials.keep(choices)).transpose()?;
    // Rewards of about 1.
    let scale = damage.map_or(1.0, |damage| 1.0 / damage.max(1e-6));
    let warm = matches!(search.strategy, Strategy::Rl | Strategy::Evolution) && !search.cold_start;
    let start = if warm { alike.into_iter().chain([exact(problem)?]).collect() } else { vec![] };
    let settings = sampling::Settings { evaluations: search.evaluations, seed, start };
    match search.strategy {
        Strategy::Rl => {
            let features = rl::features(&ground, &problem.items);
            trials.sample(|measure| rl::search(problem, &features, scale, &settings, measure))?;
        }
        Strategy::Evolution => trials.sample(|measure| evolution::search(problem, &settings, measure))?,
        Strategy::Random => trials.sample(|measure| random::search(problem, &settings, measure))?,
        Strategy::Greedy => {
            allocate::greedy_remeasured(problem, BETWEEN_MEASUREMENTS, |choices| trials.measure(choices)).ok();
        }
        Strategy::Ofm | Strategy::Kl | Strategy::Hessian => {
            let choices = match search.allocator {
                None => exact(problem)?,
                Some(allocator) => allocated(allocator, trials)?,
            };
            trials.keep(&choices)?;
        }
    }
    if let (Some(best), true) = (trials.best().cloned(), search.patience > 0) {
        allocate::swap(problem, &best.choices, best.damage, search.patience, |choices| trials.measure(choices)).ok();
    }
    Ok(())
}

/// The exact minimum of added damages.
fn exact(problem: &Problem) -> Result<Vec<usize>, SearchError> {
    if problem.separable().is_some() { allocate::knapsack(problem) } else { allocate::ilp(problem) }
}

fn allocated(allocator: Allocator, trials: &mut Trials<'_, '_>) -> Result<Vec<usize>, Error> {
    let problem = trials.problem;
    Ok(match allocator {
        Allocator::Knapsack => allocate::knapsack(problem)?,
        Allocator::Ilp => allocate::ilp(problem)?,
        Allocator::Greedy => {
            let additive = |choices: &[usize]| Ok::<_, SearchError>(problem.damage(choices));
            let choices = allocate::greedy(problem);
            allocate::swap(problem, &choices, problem.damage(&choices), 1, additive)?.0
        }
        Allocator::GreedyRemeasured => {
            let measured =
                allocate::greedy_remeasured(problem, BETWEEN_MEASUREMENTS, |choices| trials.measure(choices));
            measured.unwrap_or_else(|_| allocate::greedy(problem))
        }
    })
}

/// Of the best of `trials` that fit, `best` among them, the one with the least damage on the samples of `whole`.
fn best_on_all(problem: &Problem, trials: &[Trial], best: Trial, whole: &mut Whole<'_>) -> Result<Trial, Error> {
    let mut finalists: Vec<&Trial> = trials.iter().filter(|trial| problem.fits(&trial.choices)).collect();
    finalists.sort_by(|a, b| a.damage.total_cmp(&b.damage));
    finalists.dedup_by(|a, b| a.choices == b.choices);
    // The same bits everywhere were tried first.
    let first = trials.first().filter(|trial| problem.fits(&trial.choices));
    let mut least: Option<(f64, &Trial)> = None;
    for trial in finalists.into_iter().take(FINALISTS).chain(first) {
        let damage = whole.damage(&problem.bits(&trial.choices))?;
        if least.is_none_or(|(least, _)| damage < least) {
            least = Some((damage, trial));
        }
    }
    Ok(least.map_or(best, |(_, trial)| trial.clone()))
}

/// What was tried, the same bits everywhere, and, without trials by the hundred, what is best at sizes between the least and the most.
fn points(
    problem: &Problem,
    table: &Sensitivity,
    given: Given<'_>,
    search: &Settings,
    trials: &[Trial],
    whole: &mut Whole<'_>,
) -> Result<Vec<Point>, Error> {
    let sizes = Problem::new(table, &[Budget::Size(u64::MAX)], given)?;
    let point = |sort: Sort, choices: &[usize], damage: f64| {
        let Bits { weights, inputs } = problem.bits(choices);
        Point { sort, bytes: sizes.cost(0, choices) + given.rest, damage, agreement: None, weights, inputs }
    };
    let mut points: Vec<Point> = trials.iter().map(|trial| point(Sort::Tried, &trial.choices, trial.damage)).collect();
    for &bits in &search.widths {
        let choices = problem.uniform(bits);
        points.push(point(Sort::Uniform(bits), &choices, whole.damage(&problem.bits(&choices))?));
    }
    if !search.strategy.is_sampling() {
        let [least, most] = [vec![0; problem.items.len()], problem.widest()].map(|choices| sizes.cost(0, &choices));
        for part in 0..=FRONT_POINTS {
            let bytes = given.rest + least + (most - least) * part / FRONT_POINTS;
            let choices = allocate::knapsack(&Problem::new(table, &[Budget::Size(bytes)], given)?)?;
            points.push(point(Sort::Front, &choices, whole.damage(&problem.bits(&choices))?));
        }
    }
    Ok(points)
}

/// Grids of inputs of layers at each of `widths`, by the rule that was chosen for the network.
fn input_grids(
    quantized: &Quantized,
    facts: &BTreeMap<String, Fact>,
    settings: &quantize::Settings,
    widths: &[u8],
) -> Result<BTreeMap<u8, Grids>, Error> {
    let Quantized { float, placement, stats, rule, reshaped, .. } = quantized;
    let ranges = calibrate::with_known(&reshaped.ranges, float, placement, facts);
    let at = |&bits: &u8| {
        let policy = calibrate::Policy { activation_bits: bits, edge_bits: bits, ..settings.policy.clone() };
        let grids = calibrate::activations(float, placement, stats, &policy, &settings.target, *rule, &ranges)?;
        Ok((bits, grids))
    };
    widths.iter().map(at).collect()
}

/// Whether the outputs are scores of classes.
fn classifies(ground: &Ground<'_>) -> bool {
    let scores = |name: &String| ground.facts.get(name).is_some_and(|fact| classes(&fact.dims).is_some());
    ground.float.outputs.iter().all(|info| scores(&info.name))
}

/// Bytes of everything but the weights of `table`.
fn rest_bytes(quantized: &Quantized, table: &Sensitivity) -> u64 {
    let Quantized { graph, grids, placement, .. } = quantized;
    let bits = |name: &str| grids.params(name).map_or(8, |params| params.grid.bits);
    let weights: u64 = table.layers.iter().map(|layer| layer.bytes_at(bits(&layer.weight))).sum();
    packed(graph, grids, placement) - weights
}

#[cfg(test)]
mod tests;
