//! The contents of a report.

use crate::{Search, Sensitivity};
use fewbits_graph::QuantParams;
use fewbits_quant::{Range, RangeRule, TensorStats};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that a report says. Empty parts are left out of the page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// First line.
    pub title: String,
    /// The command line that made it.
    pub command: String,
    /// Every setting as it was resolved, by name.
    pub settings: BTreeMap<String, String>,
    /// The float model.
    pub model: Model,
    /// What preparation did to it, in words.
    pub preparation: Vec<String>,
    /// The range rules that were tried.
    pub trials: Vec<Trial>,
    /// The steps that methods took.
    pub steps: Vec<Step>,
    /// How much rounding harms each layer.
    pub sensitivity: Option<Sensitivity>,
    /// How bits were searched for.
    pub search: Option<Search>,
    /// How the training went.
    pub training: Option<Training>,
    /// Accuracies measured.
    pub accuracy: Vec<Accuracy>,
    /// The size of the model, by each way of counting.
    pub sizes: Vec<Size>,
    /// Nodes in the order of the graph.
    pub layers: Vec<Layer>,
    /// Quantized activations in the order of the graph.
    pub tensors: Vec<TensorRange>,
    /// What inspection found wrong, a sentence each.
    pub warnings: Vec<String>,
    /// How long it took.
    pub seconds: Option<f64>,
    /// Calibration images.
    pub images: Option<u64>,
}

/// Facts about the float model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// File name or other name.
    pub name: String,
    /// Identity of the prepared graph.
    pub sha256: String,
    /// Number of nodes after preparation.
    pub nodes: u64,
    /// Number of weights and biases.
    pub parameters: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Inputs, each with type and shape, such as `images: float32 [1, 3, 224, 224]`.
    pub inputs: Vec<String>,
    /// Outputs likewise.
    pub outputs: Vec<String>,
}

/// A range rule that was tried on calibration samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Name of the rule.
    pub rule: String,
    /// Signal-to-noise ratio of the outputs against the float model's, in dB.
    pub sqnr_db: f64,
    /// Whether it was taken.
    pub chosen: bool,
}

/// A step that methods took, judged on samples that they had not seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The methods, in order.
    pub methods: String,
    /// Signal-to-noise ratio of the outputs against the float model's before it, in dB.
    pub before_db: f64,
    /// The same behind it.
    pub after_db: f64,
    /// Whether its result was kept.
    pub kept: bool,
    /// How long it took.
    pub seconds: f64,
    /// What its methods decided, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

/// What became of the result of a step, which brought outputs from `before_db` to `after_db`.
pub fn verdict(kept: bool, before_db: f64, after_db: f64) -> &'static str {
    match (kept, after_db < before_db) {
        (true, false) => "kept",
        // As it was asked for, or as its gain shows only with what comes behind it.
        (true, true) => "kept, though it harms here",
        (false, _) => "dropped",
    }
}

/// What a training saw, epoch by epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Mean loss of training images.
    pub loss: Vec<Curve>,
    /// Share of images classified right, between 0 and 1.
    pub accuracy: Vec<Curve>,
    /// Scale of each quantizer.
    pub scales: Vec<Curve>,
}

/// A number that changes with the epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// What it is.
    pub name: String,
    /// Epochs, from 1, and values.
    pub points: Vec<(u64, f64)>,
}

/// How a model was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The float model.
    Float,
    /// Rounded to its grids, computed in floats.
    Fake,
    /// Computed in integers.
    Integer,
}

/// One accuracy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// How the model was run.
    pub mode: Mode,
    /// What was measured: `top-1`, `top-5`, `AP`, `AP50`.
    pub metric: String,
    /// Its value, between 0 and 1.
    pub value: f64,
    /// Number of images.
    pub samples: u64,
}

/// The size of the model by one convention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// What is counted, in words.
    pub convention: String,
    /// Bytes of the float model.
    pub float_bytes: u64,
    /// Bytes of the quantized one.
    pub bytes: u64,
}

/// How the target computes a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// In integers.
    Integer,
    /// In floats.
    Float,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Node name.
    pub name: String,
    /// Operator type.
    pub op: String,
    /// Width of its weights, if they are quantized.
    pub weight_bits: Option<u8>,
    /// Width of its output, if it is quantized.
    pub activation_bits: Option<u8>,
    /// How the target computes it.
    pub runtime: Runtime,
    /// Why.
    pub reason: String,
    /// Signal-to-noise ratio of its output against the float model's, in dB.
    pub sqnr_db: Option<f64>,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Number of weights and biases.
    pub parameters: u64,
}

/// One quantized activation: what was seen of it and which range was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorRange {
    /// Tensor name.
    pub name: String,
    /// Width.
    pub bits: u8,
    /// The rule that chose the range.
    pub rule: String,
    /// Lower end of what the grid can hold.
    pub lo: f32,
    /// Upper end.
    pub hi: f32,
    /// Step of the grid.
    pub scale: f32,
    /// Code of zero.
    pub zero_point: i32,
    /// Smallest element seen.
    pub min: f32,
    /// Largest element seen.
    pub max: f32,
    /// How the elements are distributed.
    pub bins: Bins,
    /// What other rules would have chosen.
    pub others: Vec<RuleRange>,
}

/// The range that a rule proposes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleRange {
    /// Name of the rule.
    pub rule: String,
    /// Lower end.
    pub lo: f32,
    /// Upper end.
    pub hi: f32,
}

/// A histogram coarse enough to draw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bins {
    /// Lower edge of the first bin.
    pub start: f64,
    /// Width of each bin.
    pub width: f64,
    /// Elements by bin, without the zeros.
    pub counts: Vec<u64>,
    /// Elements equal to zero.
    pub zeros: u64,
}

/// Most bins of a drawn histogram.
const DRAWN_BINS: usize = 96;

impl TensorRange {
    /// What the page shows of a tensor with these statistics on this per-tensor grid.
    pub fn new(name: &str, rule: &str, stats: &TensorStats, params: &QuantParams) -> Self {
        let (lo, hi) = params.range(0);
        TensorRange {
            name: name.into(),
            bits: params.grid.bits,
            rule: rule.into(),
            lo,
            hi,
            scale: params.scale[0],
            zero_point: params.zero_point[0],
            min: stats.min,
            max: stats.max,
            bins: Bins::of(stats),
            others: vec![],
        }
    }

    /// Adds what each of `rules` would have chosen, as `range` says.
    pub fn with_others(mut self, rules: &[RangeRule], range: impl Fn(RangeRule) -> Range) -> Self {
        let chosen = |rule: &RangeRule| {
            let range = range(*rule);
            RuleRange { rule: rule.to_string(), lo: range.lo as f32, hi: range.hi as f32 }
        };
        self.others = rules.iter().map(chosen).collect();
        self
    }
}

impl Bins {
    /// The histogram of `stats`, neighbouring bins merged.
    pub fn of(stats: &TensorStats) -> Self {
        let histogram = &stats.histogram;
        let merged = histogram.counts.len().div_ceil(DRAWN_BINS).max(1);
        Bins {
            start: histogram.edge(0),
            width: histogram.width() * merged as f64,
            counts: histogram.counts.chunks(merged).map(|bins| bins.iter().sum()).collect(),
            zeros: histogram.zeros,
        }
    }
}
