//! Mixed precision from calibration images: how damaging each width is for each layer, a budget spent accordingly, and the network
//! quantized with what was found.

use crate::{
    Error, Model,
    progress::Progress,
    quantize::{self, Quantized, quantize},
    refine::{MEMORY, Runs},
    stream::Source,
    summary::packed,
};
use fewbits_graph::exec;
use fewbits_kernels::Threads;
use fewbits_methods::Ground;
use fewbits_search::{
    Budget, Given, Level, Metric, Problem, Rounding, SearchError, Sensitivity, Whole,
    allocate::{self, Allocator},
    sensitivity,
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

/// How bits are searched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// By the similarity of output feature maps, layer by layer.
    #[default]
    Ofm,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ofm")
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "ofm" { Ok(Strategy::Ofm) } else { Err(format!("`{text}` is no strategy; there is ofm")) }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How.
    pub strategy: Strategy,
    /// What the network may cost.
    pub budget: Budget,
    /// Widths to choose from, ascending.
    pub widths: Vec<u8>,
    /// What damage is.
    pub metric: Metric,
    /// Where it is looked at.
    pub level: Level,
    /// How the budget is spent.
    pub allocator: Allocator,
    /// Steps between two measurements of [`Allocator::GreedyRemeasured`].
    pub every: usize,
    /// Exchanges in a row that may fail before the last search, on the measured damage of the whole network, is over; 0 leaves it out.
    pub patience: usize,
    /// The most calibration samples that damage is measured on, spread evenly over them.
    pub samples: usize,
}

impl Settings {
    /// Everything by default but the budget.
    pub fn new(budget: Budget) -> Self {
        Settings {
            strategy: Strategy::Ofm,
            budget,
            widths: vec![2, 3, 4, 5, 6, 8],
            metric: Metric::default(),
            level: Level::default(),
            allocator: Allocator::default(),
            every: 5,
            patience: 8,
            samples: 64,
        }
    }
}

/// Bits of one weight and how they came about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the node.
    pub layer: String,
    /// Name of the weight.
    pub weight: String,
    /// The bits it got.
    pub bits: u8,
    /// Of the first or last layers.
    pub edge: bool,
    /// Elements of the weight.
    pub elements: u64,
    /// Bytes with these bits.
    pub bytes: u64,
    /// Damage at each of [`Found::widths`], this layer alone.
    pub damage: Vec<f64>,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The strategy.
    pub strategy: Strategy,
    /// The budget.
    pub budget: String,
    /// Whether the quantized network keeps it.
    pub kept: bool,
    /// Bytes to deploy the quantized network ([`crate::summary::Sizes::packed`]).
    pub bytes: u64,
    /// Mean bits of the weights whose bits were chosen.
    pub average_bits: f64,
    /// Bit operations for one image.
    pub bops: u64,
    /// What damage is.
    pub metric: Metric,
    /// Where the damage of single layers was looked at.
    pub level: Level,
    /// The allocator.
    pub allocator: String,
    /// Samples that damage was measured on.
    pub samples: usize,
    /// Damage at the outputs, of all weights together, rounded to the nearest codes.
    pub damage: f64,
    /// The most bits that all weights could have alike within the budget, and their damage at the outputs.
    pub uniform: Option<(u8, f64)>,
    /// Widths that there were to choose from.
    pub widths: Vec<u8>,
    /// Every weight.
    pub layers: Vec<Row>,
}

/// Searches bits for the weights of `model` and quantizes it with them by `settings`, which are completed with the bits.
///
/// # Errors
/// [`SearchError::Infeasible`] if even the fewest bits are too many; errors of the data, the network and the methods.
pub fn search(
    model: &Model,
    source: &Source<'_>,
    settings: &mut quantize::Settings,
    search: &Settings,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(Found, Quantized), Error> {
    // The network that is measured is scaled as the final one, but its weights are not rounded.
    let plain = quantize::Settings { time_budget: Duration::ZERO, partial: None, ..settings.clone() };
    let first = quantize(model, source, &plain, threads, progress)?;
    let stride = source.indices.len().div_ceil(search.samples.max(1)).max(1);
    let seen = Source { indices: source.indices.iter().copied().step_by(stride).collect(), ..*source };
    let facts = exec::infer(&first.float, &quantize::data_shapes(model, source)?).map_err(Error::graph(&model.path))?;
    let ground = Ground { float: &first.float, placement: &first.placement, facts: &facts, stats: &first.stats };
    let (pool, runs) = (Threads::new(threads), Runs::of(&seen, &first.float));
    let activations = (settings.policy.activation_bits < 8).then_some(&first.grids);
    let config = sensitivity::Config {
        metric: search.metric,
        level: search.level,
        widths: search.widths.clone(),
        rounding: Rounding::from(&settings.policy),
        memory: MEMORY,
    };
    let table = sensitivity::measure(ground, &runs, activations, &config, &pool, progress)?;
    let mut whole = Whole::new(ground, &runs, activations, search.metric, config.rounding, &pool)?;
    let edge_bits = Some(settings.policy.edge_bits).filter(|edge| search.widths.iter().any(|width| width < edge));

    let mut rest = rest_bytes(&first, &table);
    loop {
        let problem = Problem::new(&table, &[search.budget], Given { edge_bits, rest, latency: None })?;
        let (choices, damage, uniform) = allocated(&problem, &mut whole, search)?;
        [settings.policy.weight_bits_of, _] = problem.bits(&choices);
        let quantized = quantize(model, source, settings, threads, progress)?;
        let mut found = describe(&quantized, &table, search, &settings.policy.weight_bits_of, edge_bits);
        (found.damage, found.uniform) = (damage, uniform);
        // Where the final network has more grids than the first one had, less is left for weights.
        let actual = rest_bytes(&quantized, &table);
        if found.kept || actual <= rest {
            return Ok((found, quantized));
        }
        rest = actual;
    }
}

/// Choices, their measured damage, and the best uniform bits with theirs.
type Allocated = (Vec<usize>, f64, Option<(u8, f64)>);

fn allocated(problem: &Problem, whole: &mut Whole<'_>, search: &Settings) -> Result<Allocated, SearchError> {
    let mut measure = |choices: &[usize]| whole.damage(&problem.bits(choices)[0]);
    let mut best = match search.allocator {
        Allocator::Greedy => {
            let choices = allocate::greedy(problem);
            let additive = |choices: &[usize]| Ok::<_, SearchError>(problem.damage(choices));
            allocate::swap(problem, &choices, problem.damage(&choices), 1, additive)?.0
        }
        Allocator::GreedyRemeasured => allocate::greedy_remeasured(problem, search.every, &mut measure)?,
        Allocator::Knapsack => allocate::knapsack(problem)?,
        Allocator::Ilp => allocate::ilp(problem)?,
    };
    let mut damage = measure(&best)?;
    let mut uniform = None;
    for &bits in search.widths.iter().rev() {
        let choices = problem.uniform(bits);
        if problem.fits(&choices) {
            let alike = measure(&choices)?;
            uniform = Some((bits, alike));
            if alike < damage {
                (best, damage) = (choices, alike);
            }
            break;
        }
    }
    let (best, damage) = allocate::swap(problem, &best, damage, search.patience, measure)?;
    Ok((best, damage, uniform))
}

/// Bytes of everything but the weights of `table`.
fn rest_bytes(quantized: &Quantized, table: &Sensitivity) -> u64 {
    let Quantized { graph, grids, placement, .. } = quantized;
    let bits = |name: &str| grids.params(name).map_or(8, |params| params.grid.bits);
    let weights: u64 = table.layers.iter().map(|layer| layer.bytes_at(bits(&layer.weight))).sum();
    packed(graph, grids, placement) - weights
}

fn describe(
    quantized: &Quantized,
    table: &Sensitivity,
    search: &Settings,
    bits: &BTreeMap<String, u8>,
    edge_bits: Option<u8>,
) -> Found {
    let Quantized { graph, grids, placement, .. } = quantized;
    let layers: Vec<Row> = table
        .layers
        .iter()
        .map(|layer| Row {
            layer: layer.layer.clone(),
            weight: layer.weight.clone(),
            bits: bits[&layer.weight],
            edge: layer.edge,
            elements: layer.elements,
            bytes: layer.bytes_at(bits[&layer.weight]),
            damage: layer.damage.clone(),
        })
        .collect();
    let bytes = packed(graph, grids, placement);
    let chosen = layers.iter().filter(|row| edge_bits.is_none() || !row.edge);
    let (sum, elements) =
        chosen.fold((0, 0), |(sum, n), row| (sum + row.elements * u64::from(row.bits), n + row.elements));
    let operations = table.layers.iter().zip(&layers);
    let bops = operations.map(|(l, row)| l.macs * u64::from(row.bits) * u64::from(l.input_bits)).sum::<u64>();
    let average_bits = sum as f64 / elements.max(1) as f64;
    let kept = match search.budget {
        Budget::Size(limit) => bytes <= limit,
        Budget::AvgBits(limit) => average_bits <= limit + 1e-9,
        Budget::Bops(limit) => bops as f64 <= limit,
        Budget::Latency(_) => true,
    };
    Found {
        strategy: search.strategy,
        budget: search.budget.to_string(),
        kept,
        bytes,
        average_bits,
        bops,
        metric: table.metric,
        level: table.level,
        allocator: search.allocator.to_string(),
        samples: table.samples,
        damage: 0.0,
        uniform: None,
        widths: table.widths.clone(),
        layers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{demo, methods::Methods, progress::Silent, quantize::Ranges};
    use fewbits_quant::{RangeRule, calibrate::Policy};

    fn searched(budget: Budget, asked: impl Fn(&mut Settings)) -> Result<(Found, Quantized), Error> {
        let model = demo::model().unwrap();
        let preprocess = model.preprocess().unwrap().unwrap();
        let dataset = demo::calibration_set();
        let source = Source { dataset: &dataset, preprocess: &preprocess, indices: dataset.spread(16) };
        let mut settings = quantize::Settings {
            ranges: Ranges::Rule(RangeRule::MinMax),
            methods: Methods::List(vec![]),
            ..quantize::Settings::new("ort".parse().unwrap(), Policy::new(8, 8, 8))
        };
        let mut search = Settings { samples: 8, ..Settings::new(budget) };
        asked(&mut search);
        super::search(&model, &source, &mut settings, &search, 2, &Silent)
    }

    #[test]
    fn every_allocator_keeps_the_bytes_and_does_less_damage_than_uniform_bits() {
        let (alike, _) = searched(Budget::AvgBits(4.0), |asked| asked.widths = vec![4, 8]).unwrap();
        assert!(alike.layers.iter().all(|row| row.bits == if row.edge { 8 } else { 4 }), "nothing else fits");
        for allocator in [Allocator::Knapsack, Allocator::Ilp, Allocator::Greedy, Allocator::GreedyRemeasured] {
            let (found, quantized) =
                searched(Budget::Size(alike.bytes), |asked| (asked.allocator, asked.patience) = (allocator, 2))
                    .unwrap();
            let Quantized { graph, grids, placement, .. } = &quantized;
            assert_eq!(found.bytes, packed(graph, grids, placement));
            assert!(found.kept && found.bytes <= alike.bytes, "{allocator}: {}", found.bytes);
            let unused = if matches!(allocator, Allocator::Knapsack | Allocator::Ilp) { 200 } else { 2000 };
            assert!(alike.bytes - found.bytes < unused, "{allocator}: {} of {}", found.bytes, alike.bytes);
            let bits = |row: &Row| grids.params(&row.weight).map(|params| params.grid.bits);
            assert!(found.layers.iter().all(|row| bits(row) == Some(row.bits) && (!row.edge || row.bits == 8)));
            let (uniform, damage) = found.uniform.unwrap();
            assert_eq!(uniform, 4);
            assert!(found.damage < 0.8 * damage, "{allocator}: {} against {damage}", found.damage);
        }
    }

    #[test]
    fn other_budgets_are_kept_and_impossible_ones_told() {
        let (found, _) = searched(Budget::AvgBits(3.0), |_| ()).unwrap();
        assert!(found.kept && found.average_bits <= 3.0 && found.average_bits > 2.9);
        let (less, _) = searched(Budget::Bops(0.8 * found.bops as f64), |asked| asked.level = Level::Local).unwrap();
        assert!(less.kept && less.bops < found.bops);
        let error = searched(Budget::Size(1000), |_| ()).unwrap_err();
        assert!(error.to_string().contains("size=1000B") && error.hint().is_some());
    }
}
