//! What is known of activations: joined tensors of unlike ranges, decoding behind the last layer, and, from statistics, ranges
//! that a few values stretch.

use super::{Severity, Warning, weights::clamp};
use fewbits_graph::{Graph, Grid, Node, Op};
use fewbits_quant::{
    Mapping, RangeRule, Stats, TensorStats,
    placement::{Placement, Runtime, Site},
};
use std::collections::BTreeMap;

/// Ranges joined in one grid may differ by this factor: two bits.
const UNLIKE: f64 = 4.0;
/// A range may be this many times the one that 99.99 % of the values need: two bits.
const STRETCHED: f64 = 4.0;

/// Warnings about activations, in graph order.
pub(super) fn warnings(graph: &Graph, placement: &Placement, stats: &Stats) -> Vec<Warning> {
    let joined = graph.nodes.iter().zip(&placement.nodes).filter(|(_, runtime)| runtime.integer);
    let mut found: Vec<Warning> = joined.filter_map(|(node, _)| unlike_inputs(graph, node, stats)).collect();
    found.extend(tail(&placement.nodes));
    let placed = |name: &str| matches!(placement.sites.get(name), Some(Site::Activation { .. }));
    let seen = graph.nodes.iter().filter(|n| placed(n.output()));
    found.extend(seen.filter_map(|node| stretched(node, stats.0.get(node.output())?)));
    found
}

/// Bounds of tensor `name` that follow from the operator that writes it.
pub(super) fn bounds(graph: &Graph, name: &str) -> Option<(f32, f32)> {
    let node = graph.nodes.iter().find(|n| n.outputs.iter().any(|o| o == name))?;
    match &node.op {
        Op::Sigmoid(_) | Op::HardSigmoid(_) => Some((0.0, 1.0)),
        Op::Tanh(_) => Some((-1.0, 1.0)),
        Op::MaxPool(_) | Op::Reshape(_) | Op::Flatten(_) | Op::Transpose(_) => bounds(graph, &node.inputs[0]),
        _ if node.op.name() == "Softmax" => Some((0.0, 1.0)),
        _ => clamp(graph, node),
    }
}

/// Inputs of a Concat in one grid: measured ranges that differ, or a bounded tensor beside the raw output of a layer.
fn unlike_inputs(graph: &Graph, node: &Node, stats: &Stats) -> Option<Warning> {
    let Op::Concat(_) = node.op else { return None };
    let measured: Option<Vec<(&str, f64)>> =
        node.inputs.iter().map(|name| Some((name.as_str(), width(RangeRule::MinMax, stats.0.get(name)?)))).collect();
    let message = match measured {
        Some(ranges) => {
            let narrow = ranges.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
            let wide = ranges.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
            let ratio = wide.1 / narrow.1;
            (ratio >= UNLIKE && narrow.1 > 0.0).then(|| {
                let (narrow, wide) =
                    (format!("`{}` spans {:.2}", narrow.0, narrow.1), format!("`{}` spans {:.2}", wide.0, wide.1));
                format!("joins unlike ranges: {wide}, {narrow}; the narrow one loses {:.1} bits", ratio.log2())
            })?
        }
        None => {
            let bounded = node.inputs.iter().find_map(|name| Some((name, bounds(graph, name)?)));
            let (bounded, (lo, hi)) = bounded.filter(|(_, (lo, hi))| hi - lo <= 1.0)?;
            let raw = node.inputs.iter().find(|name| is_raw(graph, name))?;
            format!("joins `{bounded}`, which lies in {lo}..{hi}, with `{raw}`, the raw output of a layer")
        }
    };
    let hint = format!("--keep-float {} gives each part its own range; --calib DATA here measures them", node.name);
    Some(Warning { node: node.name.clone(), kind: "concat_ranges", severity: Severity::Warning, message, hint })
}

/// Whether `name` is written by a layer, with no activation behind it.
fn is_raw(graph: &Graph, name: &str) -> bool {
    let producer = graph.nodes.iter().find(|n| n.output() == name);
    producer.is_some_and(|n| matches!(n.op, Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_)))
}

/// Operators that decode boxes or scores.
const DECODING: &[&str] =
    &["Sigmoid", "Exp", "Mul", "Add", "Sub", "Div", "Concat", "Softmax", "TopK", "NonMaxSuppression"];

/// Nodes behind the last layers that compute rather than move.
fn tail(nodes: &[Runtime]) -> Option<Warning> {
    let behind = || nodes.iter().filter(|n| !n.integer && n.reason.starts_with("behind the last layer"));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    behind().for_each(|n| *counts.entry(n.op.as_str()).or_default() += 1);
    if !counts.keys().any(|op| DECODING.contains(op)) {
        return None;
    }
    let list = counts.iter().map(|(op, n)| format!("{op} ×{n}")).collect::<Vec<_>>().join(", ");
    Some(Warning {
        node: behind().next()?.node.clone(),
        kind: "float_tail",
        severity: Severity::Note,
        message: format!("{} nodes behind the last layers decode outputs ({list})", behind().count()),
        hint: "nothing to do: Fewbits keeps them float, so that boxes and scores keep their full range".into(),
    })
}

fn stretched(node: &Node, stats: &TensorStats) -> Option<Warning> {
    let (all, most) = (width(RangeRule::MinMax, stats), width(RangeRule::Percentile(99.99), stats));
    let ratio = all / most;
    (ratio >= STRETCHED && most > 0.0).then(|| Warning {
        node: node.name.clone(),
        kind: "stretched_range",
        severity: Severity::Warning,
        message: format!(
            "`{}` spans {all:.2}, but 99.98 % of its values only {most:.2}: the rest costs {:.1} bits",
            node.output(),
            ratio.log2()
        ),
        hint: "--ranges auto, the default, tries cutting them off; --ranges percentile:99.99 or mse does it".into(),
    })
}

/// Width of the range that `rule` proposes.
fn width(rule: RangeRule, stats: &TensorStats) -> f64 {
    let range = rule.range(stats, Grid::activations(8), Mapping::Affine);
    range.hi - range.lo
}
