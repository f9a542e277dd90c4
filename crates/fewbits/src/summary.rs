//! What a quantization came to, as numbers and rows.

use crate::{
    Error, Model,
    quantize::{Quantized, Settings},
};
use fewbits_graph::{Graph, Op, QuantParams, exec};
use fewbits_quant::placement::Site;
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
    /// The written file.
    pub file: u64,
    /// Weights bit-packed at their true widths, 32-bit biases, scales and zero points: what must be deployed.
    pub packed: u64,
    /// All parameters of the original at 32 bits.
    pub float: u64,
    /// All parameters at their layer's bits (ZeroQ, HAWQ convention).
    pub all_parameters: u64,
    /// Weights at their bits, everything else at 32 (HAQ convention).
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
    /// Every node.
    pub layers: Vec<Layer>,
    /// Sizes by convention.
    pub size_bytes: Sizes,
    /// Most memory that the process held, where the system says it.
    pub peak_rss_bytes: Option<u64>,
}

/// Summarizes `quantized`, whose file has `file` bytes.
///
/// # Errors
/// [`Error::Graph`] if shapes cannot be inferred.
pub fn summarize(
    model: &Model,
    quantized: &Quantized,
    settings: &Settings,
    samples: usize,
    file: u64,
    elapsed: Duration,
) -> Result<Summary, Error> {
    exec::infer(&quantized.graph, &model.example_shapes()).map_err(Error::graph(&model.path))?;
    Ok(Summary {
        seconds: elapsed.as_secs_f64(),
        samples,
        range_rule: quantized.rule.to_string(),
        layers: layers(quantized),
        size_bytes: sizes(model, quantized, settings, file),
        peak_rss_bytes: peak_rss(),
    })
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
    let mut sizes = Sizes { file, float: 4 * parameters(&model.graph), ..Sizes::default() };
    let mut weight_bits = 0;
    for (name, tensor) in &quantized.graph.constants {
        let Some(values) = tensor.as_f32() else { continue };
        let count = values.len() as u64;
        match (quantized.placement.sites.get(name), quantized.grids.params(name)) {
            (Some(Site::Weight { axis, .. }), Some(params)) => {
                let bits = u64::from(params.grid.bits);
                let rows = tensor.dims.get(*axis).copied().unwrap_or(1).max(1) as u64;
                // Rows start at whole bytes.
                sizes.packed += rows * (count / rows * bits).div_ceil(8) + 4 * params.scale.len() as u64;
                weight_bits += count * bits;
            }
            _ => sizes.packed += 4 * count,
        }
    }
    let activations = quantized.placement.sites.iter().filter(|(_, s)| matches!(s, Site::Activation { .. }));
    sizes.packed += activations.filter_map(|(name, _)| quantized.grids.params(name)).map(grid_bytes).sum::<u64>();
    let original = parameters(&model.graph);
    let weights: u64 = quantized.graph.constants.iter().filter(|(name, _)| is_weight(quantized, name)).map(|(_, t)| t.len() as u64).sum();
    let rest = original.saturating_sub(weights);
    sizes.weights_only = weight_bits / 8 + 4 * rest;
    sizes.all_parameters = weight_bits / 8 + rest * u64::from(settings.policy.weight_bits) / 8;
    sizes
}

fn is_weight(quantized: &Quantized, name: &str) -> bool {
    matches!(quantized.placement.sites.get(name), Some(Site::Weight { .. }))
}

fn grid_bytes(params: &QuantParams) -> u64 {
    5 * params.scale.len() as u64
}

/// Parameters that training learns: every float constant but the statistics of BatchNormalization and bounds.
pub fn parameters(graph: &Graph) -> u64 {
    let statistics = |name: &str| {
        graph.nodes.iter().any(|n| match n.op {
            Op::BatchNormalization(_) => n.inputs.iter().skip(3).any(|i| i == name),
            Op::Clip(_) => n.inputs.iter().skip(1).any(|i| i == name),
            _ => false,
        })
    };
    let floats = graph.constants.iter().filter(|(name, t)| t.as_f32().is_some() && !statistics(name));
    floats.map(|(_, t)| t.len() as u64).sum()
}

/// Peak resident memory of this process (Linux: `VmHWM`).
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
