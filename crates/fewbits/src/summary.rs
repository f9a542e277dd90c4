//! What a quantization came to, as numbers and rows.

use crate::{
    Model,
    quantize::{Quantized, Settings},
    refine::Step,
};
use fewbits_search::cost::weight_axis;
pub use fewbits_search::cost::{packed, parameters};
use serde::Serialize;
use std::time::Duration;

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Node name.
    pub name: String,
    /// Operator type.
    pub op: String,
    /// Bits of the weight, if there is one with a grid.
    pub weight_bits: Option<u8>,
    /// Bits of the output's grid, if it has one.
    pub activation_bits: Option<u8>,
    /// `integer` or `float`.
    pub runtime: &'static str,
    /// Why.
    pub reason: String,
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// The written file; 0 if there is none.
    pub file: u64,
    /// What must be deployed: weights bit-packed at their true widths, each output channel from a whole byte on, 32-bit biases,
    /// scales (4 bytes), zero points of activations (1 byte); normalization folded.
    pub packed: u64,
    /// All parameters of the model as it was read, at 32 bits.
    pub float: u64,
    /// All parameters `· b / 8` (ZeroQ, HAWQ): weights at their own bits, float weights at 32, biases and normalization at the bits
    /// that were asked for.
    pub all_parameters: u64,
    /// Weights at their own bits, biases and normalization at 32 (HAQ).
    pub weights_only: u64,
}

/// What `fewbits quantize --format json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Wall time.
    pub seconds: f64,
    /// Calibration samples.
    pub samples: usize,
    /// Rule that was applied to activations.
    pub range_rule: String,
    /// What was done after the ranges were chosen, and what it brought.
    pub steps: Vec<Step>,
    /// Every node.
    pub layers: Vec<Layer>,
    /// Sizes by convention.
    pub size_bytes: Sizes,
    /// Most memory that the process held, where the system says it.
    pub peak_rss_bytes: Option<u64>,
}

/// Summarizes `quantized`, whose file has `file` bytes, 0 if there is none.
pub fn summarize(
    model: &Model,
    quantized: &Quantized,
    settings: &Settings,
    samples: usize,
    file: u64,
    elapsed: Duration,
) -> Summary {
    Summary {
        seconds: elapsed.as_secs_f64(),
        samples,
        range_rule: quantized.rule.to_string(),
        steps: quantized.steps.clone(),
        layers: layers(quantized),
        size_bytes: sizes(model, quantized, settings, file),
        peak_rss_bytes: peak_rss(),
    }
}

fn layers(quantized: &Quantized) -> Vec<Layer> {
    let bits = |name: &str| quantized.grids.params(name).map(|p| p.grid.bits);
    let row = |(node, runtime): (&fewbits_graph::Node, &fewbits_quant::placement::Runtime)| Layer {
        name: node.name.clone(),
        op: node.op.name().into(),
        weight_bits: node.input(1).filter(|w| quantized.graph.constant(w).is_some()).and_then(bits),
        activation_bits: bits(node.output()),
        runtime: if runtime.integer { "integer" } else { "float" },
        reason: runtime.reason.clone(),
    };
    quantized.graph.nodes.iter().zip(&quantized.placement.nodes).map(row).collect()
}

fn sizes(model: &Model, quantized: &Quantized, settings: &Settings, file: u64) -> Sizes {
    let Quantized { graph, grids, placement, .. } = quantized;
    let original = parameters(&model.graph);
    let (mut weights, mut weight_bits) = (0, 0);
    for (name, tensor) in &graph.constants {
        let Some(values) = tensor.as_f32().filter(|_| weight_axis(graph, placement, name).is_some()) else { continue };
        weights += values.len() as u64;
        weight_bits += values.len() as u64 * grids.params(name).map_or(32, |p| u64::from(p.grid.bits));
    }
    let rest = original.saturating_sub(weights);
    Sizes {
        file,
        packed: packed(graph, grids, placement),
        float: 4 * original,
        all_parameters: (weight_bits + rest * u64::from(settings.policy.weight_bits)).div_ceil(8),
        weights_only: weight_bits.div_ceil(8) + 4 * rest,
    }
}

/// Peak resident memory of this process (Linux: `VmHWM`).
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        demo,
        methods::Methods,
        progress::Silent,
        quantize::{Ranges, quantize},
        stream::Source,
    };
    use fewbits_quant::{RangeRule, WeightRule, calibrate::Policy, placement::Site};
    use std::collections::BTreeSet;

    #[test]
    fn sizes_of_the_demo_network_by_each_convention() {
        let model = demo::model().unwrap();
        let preprocess = model.preprocess().unwrap().unwrap();
        let dataset = demo::calibration_set();
        let source = Source { dataset: &dataset, preprocess: &preprocess, indices: dataset.first(Some(4)) };
        let policy = Policy { weight_rule: WeightRule::MinMax, ..Policy::new(4, 8, 4) };
        let settings = Settings {
            ranges: Ranges::Rule(RangeRule::MinMax),
            methods: Methods::List(vec![]),
            keep_float: BTreeSet::from(["logits".to_string()]),
            ..Settings::new("ort".parse().unwrap(), policy)
        };
        let quantized = quantize(&model, &source, &settings, 1, &Silent).unwrap();
        let found = sizes(&model, &quantized, &settings, 7);
        // 58,770 parameters: 960 weights and 10 biases of the classifier, which stays float; and of 21 convolutions, with 1,360
        // channels in all, 55,080 weights, a gamma and a beta per channel.
        let (all, float, channels) = (58_770, 960, 1_360);
        let weights = all - float - 10 - 2 * channels;
        assert_eq!((found.file, found.float), (7, 4 * all));
        assert_eq!(found.all_parameters, (all - float) / 2 + 4 * float);
        assert_eq!(found.weights_only, weights / 2 + 4 * (all - weights));
        // Rows of 9 weights take 5 bytes. Folding leaves a bias per channel; each has a scale. An activation has 5 bytes of scale and
        // zero point.
        let odd_rows: u64 = quantized
            .placement
            .sites
            .iter()
            .filter(|(_, site)| matches!(site, Site::Weight { .. }))
            .map(|(name, _)| &quantized.graph.constants[name].dims)
            .filter(|dims| dims[1..].iter().product::<usize>() % 2 == 1)
            .map(|dims| dims[0] as u64)
            .sum();
        let activations =
            quantized.placement.sites.values().filter(|s| matches!(s, Site::Activation { .. })).count() as u64;
        let packed = (weights + odd_rows) / 2 + 8 * channels + 5 * activations + 4 * (float + 10);
        assert_eq!(found.packed, packed);
    }
}
