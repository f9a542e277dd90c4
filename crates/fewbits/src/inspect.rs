//! What is in a model, what of it a target computes in integers, and what will quantize badly, in words.
//!
//! What enters: a model, a target, and statistics of its activations if there are any. What leaves: an [`Inspection`], plain data.
//! Nothing here runs the network.

mod activations;
mod shapes;
mod weights;

use crate::{Model, summary::parameters};
use fewbits_graph::{
    Graph, Grids, Node, Op, QuantParams, ValueInfo,
    op::{Fact, Role},
    passes,
};
use fewbits_quant::{
    Stats,
    placement::{Placement, Site, place},
    target::Target,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A graph input or output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Port {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Declared dimensions, symbols by name; `None` if the file does not say.
    pub dims: Option<Vec<String>>,
}

/// One node of the prepared network (of a quantized file: of the float network under its grids).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Node name.
    pub name: String,
    /// Operator type.
    pub op: String,
    /// Shape of the first output for one batch, where it is known.
    pub shape: Option<Vec<usize>>,
    /// Elements of its weights, bias and normalization.
    pub parameters: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// `integer` or `float`: what the target does with it once quantized, or what the quantized file makes it do.
    pub runtime: &'static str,
    /// Why.
    pub reason: String,
    /// Bits of the weight of a quantized file.
    pub weight_bits: Option<u8>,
    /// Grid of that weight, in words.
    pub weight_grid: Option<String>,
    /// Bits of the output of a quantized file.
    pub activation_bits: Option<u8>,
    /// Grid of that output, in words.
    pub activation_grid: Option<String>,
}

/// Sums over the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Learned parameters: float constants but statistics of BatchNormalization and bounds.
    pub parameters: u64,
    /// Multiply-accumulates for one image, of the nodes whose shapes are known.
    pub macs: u64,
    /// The ONNX file.
    pub file_bytes: u64,
    /// Most bytes of float activations alive at once for one image, each kept until its last reader has run.
    pub activation_bytes: u64,
}

/// How much a warning matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The model cannot be quantized as it is.
    Error,
    /// Accuracy is at stake.
    Warning,
    /// Good to know.
    Note,
}

/// Something to know about a node before it is quantized.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Warning {
    /// The node.
    pub node: String,
    /// A stable name of what was found, such as `dead_channels`.
    pub kind: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// An operator that Fewbits does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnknownOperator {
    /// Operator type, with its domain in front if it has one.
    pub op: String,
    /// Nodes of that type.
    pub nodes: Vec<String>,
}

/// What `fewbits inspect --format json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The file.
    pub model: String,
    /// Name of the graph.
    pub graph: String,
    /// Version of the default operator set.
    pub opset: i64,
    /// Whether the file carries quantization.
    pub quantized: bool,
    /// Nodes in the file; those of QuantizeLinear / DequantizeLinear pairs not counted.
    pub nodes: usize,
    /// What preparation did, in words.
    pub preparation: Vec<String>,
    /// The target that `runtime` is about.
    pub target: String,
    /// What the caller gives.
    pub inputs: Vec<Port>,
    /// What the caller gets.
    pub outputs: Vec<Port>,
    /// Free-form strings of the file.
    pub metadata: BTreeMap<String, String>,
    /// Sums.
    pub totals: Totals,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// Operators that Fewbits does not know.
    pub unknown_operators: Vec<UnknownOperator>,
    /// Why some shapes are not known.
    pub shapes_unknown: Option<String>,
    /// Every node.
    pub layers: Vec<Layer>,
    /// What to know before quantizing, worst first, then in graph order.
    pub warnings: Vec<Warning>,
}

/// The graph that [`inspect`] looks at: prepared if the model is float, as it is if it is quantized or cannot be prepared.
pub fn subject(model: &Model) -> (Graph, Vec<String>) {
    match passes::fold(&model.graph) {
        Ok((graph, changes)) if model.grids.is_none() => (graph, changes.iter().map(ToString::to_string).collect()),
        Ok(_) => (model.graph.clone(), vec![]),
        Err(error) => (model.graph.clone(), vec![format!("preparation failed: {error}")]),
    }
}

/// The tensors whose statistics sharpen an inspection of the graph that [`subject`] gave.
pub fn observed_tensors(graph: &Graph, target: &Target) -> Vec<String> {
    let placement = place(graph, target, &BTreeSet::new());
    let joined = graph.nodes.iter().filter(|n| matches!(n.op, Op::Concat(_))).flat_map(|n| n.inputs.clone());
    let placed = placement.sites.iter().filter(|(_, site)| matches!(site, Site::Activation { .. }));
    let names: BTreeSet<String> = placed.map(|(name, _)| name.clone()).chain(joined).collect();
    names.into_iter().filter(|name| graph.constant(name).is_none()).collect()
}

/// Inspects `model` for `target`; `stats` hold what calibration saw of [`observed_tensors`], or nothing. What cannot be found
/// out is left out, and the result says so.
pub fn inspect(model: &Model, target: &Target, stats: &Stats) -> Inspection {
    let (graph, preparation) = subject(model);
    let shapes = model.example_shapes();
    let known = shapes::known(&graph, &shapes);
    let placement = place(&graph, target, &BTreeSet::new());
    let batch = shapes.first().and_then(|s| s.first()).copied().unwrap_or(1).max(1) as u64;
    let layers = layers(&graph, model.grids.as_ref(), &placement, target, &known.facts, batch);
    let mut warnings = unknown_warnings(&graph);
    warnings.extend(numeric_warnings(&graph, &placement, stats));
    if let Some(grids) = &model.grids {
        warnings.retain(|w| !settled(w, &graph, grids));
    }
    warnings.sort_by_key(|w| w.severity);
    let mut operators: BTreeMap<String, usize> = BTreeMap::new();
    for node in &model.graph.nodes {
        *operators.entry(node.op.name().into()).or_default() += 1;
    }
    Inspection {
        model: model.path.display().to_string(),
        graph: graph.name.clone(),
        opset: graph.opset,
        quantized: model.grids.is_some(),
        nodes: model.graph.nodes.len(),
        preparation,
        target: target.runtime.clone(),
        inputs: graph.inputs.iter().map(port).collect(),
        outputs: graph.outputs.iter().map(port).collect(),
        metadata: graph.metadata.clone(),
        totals: Totals {
            parameters: parameters(&model.graph),
            macs: layers.iter().map(|l| l.macs).sum(),
            file_bytes: std::fs::metadata(&model.path).map_or(0, |m| m.len()),
            activation_bytes: shapes::peak_bytes(&graph, &known.facts) / batch,
        },
        operators,
        unknown_operators: unknown_operators(&graph),
        shapes_unknown: known.missing,
        layers,
        warnings,
    }
}

/// What weights, and activations as far as `stats` hold them, say about their rounding.
pub(crate) fn numeric_warnings(graph: &Graph, placement: &Placement, stats: &Stats) -> Vec<Warning> {
    [weights::warnings(graph, placement, stats), activations::warnings(graph, placement, stats)].concat()
}

/// Whether a warning is about channels in one scale, and the quantized file gives each its own.
fn settled(warning: &Warning, graph: &Graph, grids: &Grids) -> bool {
    let weight = || graph.nodes.iter().find(|n| n.name == warning.node).and_then(|n| grids.params(n.input(1)?));
    matches!(warning.kind, "outlier_channel" | "channel_spread") && weight().is_some_and(|p| p.scale.len() > 1)
}

fn port(info: &ValueInfo) -> Port {
    let dims = info.dims.as_ref().map(|dims| dims.iter().map(ToString::to_string).collect());
    Port { name: info.name.clone(), dtype: info.dtype.to_string(), dims }
}

fn unknown_operators(graph: &Graph) -> Vec<UnknownOperator> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in &graph.nodes {
        if let Op::Opaque(op) = &node.op {
            let domain = Some(&op.domain).filter(|d| !d.is_empty());
            let name = domain.map_or(op.op_type.clone(), |d| format!("{d}.{}", op.op_type));
            found.entry(name).or_default().push(node.name.clone());
        }
    }
    found.into_iter().map(|(op, nodes)| UnknownOperator { op, nodes }).collect()
}

fn unknown_warnings(graph: &Graph) -> Vec<Warning> {
    let warning = |unknown: UnknownOperator| Warning {
        node: unknown.nodes[0].clone(),
        kind: "unknown_operator",
        severity: Severity::Error,
        message: format!("operator {} is unknown to Fewbits ({} nodes)", unknown.op, unknown.nodes.len()),
        hint: format!("Fewbits cannot run the network; cut the model before `{}`", unknown.nodes[0]),
    };
    unknown_operators(graph).into_iter().map(warning).collect()
}

fn layers(
    graph: &Graph,
    grids: Option<&Grids>,
    placement: &Placement,
    target: &Target,
    facts: &BTreeMap<String, Fact>,
    batch: u64,
) -> Vec<Layer> {
    let consumers = graph.consumers();
    let row = |(node, planned): (&Node, &fewbits_quant::placement::Runtime)| {
        let ins: Vec<Option<&Fact>> = node.inputs.iter().map(|name| facts.get(name)).collect();
        let outs: Option<Vec<Fact>> = node.outputs.iter().map(|name| facts.get(name).cloned()).collect();
        // Bounds of a Clip and the like are no parameters.
        let learned = |i: &usize| {
            matches!(node.op, Op::BatchNormalization(_)) || node.op.def().quant_rule().role(*i) != Role::Other
        };
        let constants = (0..node.inputs.len()).filter(learned).filter_map(|i| graph.constant(node.input(i)?));
        let grid = |name: &str| grids.and_then(|g| g.params(name));
        let weight = node.input(1).filter(|w| graph.constant(w).is_some()).and_then(grid);
        let (integer, reason) = match grids {
            None => (planned.integer, planned.reason.clone()),
            Some(grids) => stated(graph, grids, target, node, consumers.get(node.output()).map_or(&[], Vec::as_slice)),
        };
        Layer {
            name: node.name.clone(),
            op: node.op.name().into(),
            shape: facts.get(node.output()).map(|f| f.dims.clone()),
            parameters: constants.filter(|t| t.as_f32().is_some()).map(|t| t.len() as u64).sum(),
            macs: outs.map_or(0, |outs| node.op.def().macs(&ins, &outs)) / batch,
            runtime: if integer { "integer" } else { "float" },
            reason,
            weight_bits: weight.map(|p| p.grid.bits),
            weight_grid: weight.map(in_words),
            activation_bits: grid(node.output()).map(|p| p.grid.bits),
            activation_grid: grid(node.output()).map(in_words),
        }
    };
    graph.nodes.iter().zip(&placement.nodes).map(row).collect()
}

/// Whether the grids of a quantized file let the target compute `node` in integers, and why (not).
fn stated(graph: &Graph, grids: &Grids, target: &Target, node: &Node, readers: &[usize]) -> (bool, String) {
    let (op, rule) = (node.op.name(), node.op.def().quant_rule());
    let lists = |list: &[String]| list.iter().any(|name| name == op);
    let has_grid = |name: &str| grids.params(name).is_some();
    let ungridded = (0..node.inputs.len()).filter(|&i| matches!(rule.role(i), Role::Data | Role::Weight { .. }));
    let ungridded = ungridded.filter_map(|i| node.input(i)).find(|name| !has_grid(name));
    let absorbed = match readers {
        [reader] => {
            let reader = &graph.nodes[*reader];
            target.absorbs(op, reader.op.name()) && has_grid(reader.output())
        }
        _ => false,
    };
    if !(lists(&target.layers) || lists(&target.integer) || lists(&target.same_grid)) {
        let absorbs = || {
            let producer = graph.nodes.iter().find(|n| Some(n.output()) == node.input(0))?;
            (target.absorbs(producer.op.name(), op) && !has_grid(producer.output()) && has_grid(node.output()))
                .then_some(producer)
        };
        return match absorbs() {
            Some(producer) => (true, format!("computed by the output grid of `{}`", producer.name)),
            None => (
                false,
                target
                    .float_reasons
                    .get(op)
                    .cloned()
                    .unwrap_or(format!("{} has no integer kernel for {op}", target.runtime)),
            ),
        };
    }
    match ungridded {
        Some(name) => (false, format!("`{name}` has no grid")),
        None if has_grid(node.output()) || absorbed => (true, "integer kernel".into()),
        None if lists(&target.float_output) => (true, "integer sums, float output".into()),
        None => (false, format!("its output `{}` has no grid", node.output())),
    }
}

fn in_words(params: &QuantParams) -> String {
    let grid = params.grid;
    let kind = format!("{}int{}", if grid.signed { "" } else { "u" }, grid.bits);
    match (&params.scale[..], &params.zero_point[..]) {
        ([scale], [zero]) => format!("{kind}, scale {scale:.3e}, zero point {zero}"),
        (scales, _) => {
            let (lo, hi) = scales.iter().fold((f32::MAX, 0f32), |(lo, hi), s| (lo.min(*s), hi.max(*s)));
            format!("{kind}, {} scales {lo:.1e}..{hi:.1e}", scales.len())
        }
    }
}

#[cfg(test)]
mod tests;
