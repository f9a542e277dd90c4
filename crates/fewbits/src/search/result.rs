//! What a search found, as numbers and rows.

use super::{Settings, Strategy};
use crate::{Error, Model, export, quantize::Quantized, summary::packed};
use fewbits_graph::{Graph, Grids};
use fewbits_quant::{Step, target::Target};
use fewbits_search::{Bits, Budget, LayerDamage, Level, Metric, Problem, Sensitivity, strategy::Trial};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;

/// Bits of one layer and how they came about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the node.
    pub layer: String,
    /// Name of the weight.
    pub weight: String,
    /// Bits of the weight.
    pub bits: u8,
    /// Bits of what it multiplies.
    pub input_bits: u8,
    /// Of the first or last layers.
    pub edge: bool,
    /// Elements of the weight.
    pub elements: u64,
    /// Bytes of the weight.
    pub bytes: u64,
    /// Damage at each of [`Found::widths`], this layer alone.
    pub damage: Vec<f64>,
}

/// One budget and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// As it was asked for.
    pub budget: String,
    /// What the quantized network comes to; of a drop, the percent of samples whose class it changes.
    pub actual: f64,
    /// Whether that keeps it.
    pub kept: bool,
    /// `actual` in words.
    #[serde(skip)]
    pub stated: String,
}

/// What an assignment is to the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// One of those that were tried.
    Tried,
    /// The same bits for all weights that are searched.
    Uniform(u8),
    /// Best at its size, of those known.
    Front,
}

/// One assignment and its damage on the whole network.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// What it is.
    pub sort: Sort,
    /// Bytes to deploy.
    pub bytes: u64,
    /// Damage at the outputs, weights rounded to the nearest codes or by the method asked for; of one that was given up early, an estimate.
    pub damage: f64,
    /// Share of the samples whose class stays, weights rounded as for `damage`; of classifiers, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// Bits of weights, by name.
    pub weights: BTreeMap<String, u8>,
    /// Bits of inputs of layers, by name.
    pub inputs: BTreeMap<String, u8>,
}

impl Point {
    /// The bits, by name.
    pub fn bits(&self) -> Bits {
        Bits { weights: self.weights.clone(), inputs: self.inputs.clone() }
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The strategy.
    pub strategy: Strategy,
    /// The budgets.
    pub budget: String,
    /// Whether the quantized network keeps all of them.
    pub kept: bool,
    /// Each of them.
    pub budgets: Vec<Figure>,
    /// Bytes to deploy the quantized network ([`crate::summary::Sizes::packed`]), counted in the file that is exported.
    pub bytes: u64,
    /// Mean bits of the weights whose bits were chosen.
    pub average_bits: f64,
    /// Bit operations for one image.
    pub bops: u64,
    /// What damage is.
    pub metric: Metric,
    /// What that of single layers is; `None` if it is the mean trace of the Hessian times the squared change of the weight.
    pub layer_metric: Option<Metric>,
    /// Where that was looked at.
    pub level: Level,
    /// Samples that it was measured on.
    pub layer_samples: usize,
    /// Samples that damage of whole assignments was measured on.
    pub samples: usize,
    /// Damage at the outputs, of all widths together, weights rounded to the nearest codes or by the method asked for.
    pub damage: f64,
    /// Share of the samples that the quantized network, in integers, puts into the class of the float network; of classifiers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// The most bits that all weights could have alike within the budgets, and their damage at the outputs.
    pub uniform: Option<(u8, f64)>,
    /// Widths of weights that there were to choose from.
    pub widths: Vec<u8>,
    /// Every weight.
    pub layers: Vec<Row>,
    /// Damage of each assignment in the order in which they were tried.
    pub history: Vec<f64>,
    /// Assignments by size and damage.
    #[serde(skip)]
    pub points: Vec<Point>,
}

impl Found {
    /// The search as a step of the plan's history.
    pub fn step(&self, search: &Settings, seed: u64) -> Step {
        let config = json!({
            "strategy": self.strategy,
            "budget": self.budget,
            "widths": self.widths,
            "input_widths": search.input_widths,
            "metric": self.metric,
            "level": self.level,
            "inside": search.inside.map(|method| method.to_string()),
            "evaluations": search.evaluations,
            "cold_start": search.cold_start,
            "samples": self.samples,
        });
        let metrics = json!({ "damage": self.damage, "tried": self.history.len(), "budgets": self.budgets });
        Step { config, method: "search".into(), metrics, seed }
    }

    /// Measures what was given up early and lies on the front, until everything there is measured to the end.
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn settle(&mut self, mut measure: impl FnMut(&Point) -> Result<f64, Error>) -> Result<(), Error> {
        let mut settled: Vec<Point> = vec![];
        loop {
            let alike = |a: &Point, b: &Point| a.weights == b.weights && a.inputs == b.inputs;
            let open = |point: &&Point| point.sort == Sort::Tried && !settled.iter().any(|other| alike(point, other));
            let Some(point) = self.front().into_iter().find(open).cloned() else { return Ok(()) };
            let damage = measure(&point)?;
            self.points.iter_mut().filter(|other| alike(other, &point)).for_each(|point| point.damage = damage);
            settled.push(point);
        }
    }

    /// Measures the share of samples that keep their class under the bits of every point that a picture names or joins: the same bits
    /// everywhere, and the front.
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn agree(&mut self, mut measure: impl FnMut(&Bits) -> Result<f64, Error>) -> Result<(), Error> {
        let front: Vec<Bits> = self.front().into_iter().map(Point::bits).collect();
        for point in &mut self.points {
            if matches!(point.sort, Sort::Uniform(_)) || front.contains(&point.bits()) {
                point.agreement = Some(measure(&point.bits())?);
            }
        }
        Ok(())
    }

    /// The assignments that nothing smaller beats, by size, as `OUT.pareto.json` holds them.
    pub fn front(&self) -> Vec<&Point> {
        let mut points: Vec<&Point> = self.points.iter().collect();
        points.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.damage.total_cmp(&b.damage)));
        let mut least = f64::INFINITY;
        points.retain(|point| {
            let better = point.damage < least;
            least = least.min(point.damage);
            better
        });
        points
    }
}

/// What [`describe`] is told of.
pub struct Told<'a> {
    pub quantized: &'a Quantized,
    pub target: &'a Target,
    pub table: &'a Sensitivity,
    pub problem: &'a Problem,
    pub search: &'a Settings,
    /// Share of the samples that keep their class.
    pub agreement: Option<f64>,
    /// Bits that first and last layers keep.
    pub edge_bits: Option<u8>,
    pub trials: &'a [Trial],
    pub best: &'a Trial,
    pub metric: Metric,
    /// Samples that single layers were measured on.
    pub layer_samples: usize,
    /// Samples that whole assignments were measured on.
    pub samples: usize,
}

/// What `quantized`, made with the best of the trials, comes to.
///
/// # Errors
/// [`Error::Onnx`] if it cannot be exported.
pub fn describe(told: &Told<'_>) -> Result<Found, Error> {
    let Told { quantized, table, search, problem, .. } = *told;
    // All figures are those of the file that is exported, read back.
    let Model { graph, grids, .. } = exported(quantized, told.target)?;
    let grids = grids.unwrap_or_default();
    let bits = |name: &str| grids.params(name).map_or(8, |params| params.grid.bits);
    let row = |layer: &LayerDamage| {
        let (weight_bits, input_bits) = (bits(&layer.weight), input_bits(&graph, &grids, layer));
        Row {
            layer: layer.layer.clone(),
            weight: layer.weight.clone(),
            bits: weight_bits,
            input_bits,
            edge: layer.edge,
            elements: layer.elements,
            bytes: layer.bytes_at(weight_bits),
            damage: layer.damage.clone(),
        }
    };
    let layers: Vec<Row> = table.layers.iter().map(row).collect();
    let bytes = packed(&graph, &grids, &quantized.placement);
    let chosen = || layers.iter().filter(|row| told.edge_bits.is_none() || !row.edge);
    let elements: u64 = chosen().map(|row| row.elements).sum();
    let average_bits =
        chosen().map(|row| row.elements * u64::from(row.bits)).sum::<u64>() as f64 / elements.max(1) as f64;
    let rows = || table.layers.iter().zip(&layers);
    let bops = rows().map(|(l, row)| l.macs * u64::from(row.bits) * u64::from(row.input_bits)).sum::<u64>();
    let figure = |budget: &Budget| {
        let actual = match budget {
            Budget::Size(_) => bytes as f64,
            Budget::AvgBits(_) => average_bits,
            Budget::Bops(_) => bops as f64,
            Budget::Latency(_) => search.latency.as_ref().map_or(0.0, |times| {
                let of = |row: &Row| times.nanoseconds(&row.layer, row.bits, row.input_bits).unwrap_or(0);
                (times.rest + layers.iter().map(of).sum::<u64>()) as f64 * 1e-9
            }),
        };
        let (kept, stated) = (actual <= budget.amount() * (1.0 + 1e-9), budget.with_amount(actual).to_string());
        Figure { budget: budget.to_string(), actual, kept, stated }
    };
    let drop = search.max_drop.zip(told.agreement).map(|(most, agreement)| {
        let actual = 100.0 * (1.0 - agreement);
        Figure { budget: format!("max-drop={most}"), actual, kept: actual <= most, stated: format!("{actual:.2} %") }
    });
    let budgets: Vec<Figure> = search.budgets.iter().map(figure).chain(drop).collect();
    let of_uniform = |&bits: &u8| {
        let trial =
            told.trials.iter().find(|trial| trial.choices == problem.uniform(bits) && problem.fits(&trial.choices));
        trial.map(|trial| (bits, trial.damage))
    };
    Ok(Found {
        strategy: search.strategy,
        budget: budgets.iter().map(|figure| figure.budget.as_str()).collect::<Vec<_>>().join(","),
        kept: budgets.iter().all(|figure| figure.kept),
        budgets,
        bytes,
        average_bits,
        bops,
        metric: told.metric,
        layer_metric: table.metric,
        level: table.level,
        layer_samples: told.layer_samples,
        samples: told.samples,
        damage: told.best.damage,
        agreement: told.agreement,
        uniform: search.widths.iter().rev().find_map(of_uniform),
        widths: table.widths.clone(),
        layers,
        history: told.trials.iter().map(|trial| trial.damage).collect(),
        points: vec![],
    })
}

/// Bits of what `layer` multiplies.
fn input_bits(graph: &Graph, grids: &Grids, layer: &LayerDamage) -> u8 {
    let node = graph.nodes.iter().find(|node| node.name == layer.layer);
    let params = node.and_then(|node| grids.params(node.inputs.first()?));
    params.map_or(8, |params| params.grid.bits)
}

/// What the file that is exported holds, read back.
fn exported(quantized: &Quantized, target: &Target) -> Result<Model, Error> {
    let qdq = export::qdq(&quantized.graph, &quantized.grids, target, &serde_json::Value::Null, None)?;
    export::read_back(&qdq)
}
