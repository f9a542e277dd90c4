//! What changed between operator sets: which version a graph needs, and which attributes say nothing.

use crate::{error::OnnxError, proto::data_type as ty, raise::REDUCTIONS};
use fewbits_graph::{Attr, DType, Graph, Node, Op, OpError};

/// Oldest operator set that is written: the first with scales per channel, and with axes as inputs.
pub const MIN_EXPORT_OPSET: i64 = 13;

/// What an attribute means when it is absent.
enum Absent {
    Int(i64),
    Str(&'static str),
    /// A list of ones.
    Ones,
    /// Something that no value can say.
    Other,
    /// The same as any value: it does not change what inference computes.
    Same,
}

impl Absent {
    fn is(&self, value: &Attr) -> bool {
        match (self, value) {
            (Absent::Same, _) => true,
            (Absent::Int(d), Attr::Int(v)) => d == v,
            (Absent::Str(d), Attr::Str(v)) => d == v,
            (Absent::Ones, Attr::Ints(v)) => v.iter().all(|&n| n == 1),
            _ => false,
        }
    }
}

/// Attributes: operator, name, the operator set that introduced it (0 before 13), meaning of its absence.
const ATTRIBUTES: &[(&str, &str, i64, Absent)] = &[
    ("AveragePool", "auto_pad", 0, Absent::Str("NOTSET")),
    ("AveragePool", "ceil_mode", 0, Absent::Int(0)),
    ("AveragePool", "count_include_pad", 0, Absent::Int(0)),
    ("AveragePool", "dilations", 19, Absent::Ones),
    ("BatchNormalization", "momentum", 0, Absent::Same),
    ("BatchNormalization", "training_mode", 14, Absent::Int(0)),
    ("Cast", "round_mode", 24, Absent::Str("up")),
    ("Cast", "saturate", 19, Absent::Int(1)),
    ("Conv", "auto_pad", 0, Absent::Str("NOTSET")),
    ("Conv", "kernel_shape", 0, Absent::Same),
    ("ConvTranspose", "auto_pad", 0, Absent::Str("NOTSET")),
    ("ConvTranspose", "kernel_shape", 0, Absent::Same),
    ("DequantizeLinear", "block_size", 21, Absent::Int(0)),
    ("DequantizeLinear", "output_dtype", 23, Absent::Int(0)),
    ("Dropout", "seed", 0, Absent::Same),
    ("LayerNormalization", "stash_type", 0, Absent::Int(1)),
    ("MaxPool", "auto_pad", 0, Absent::Str("NOTSET")),
    ("MaxPool", "ceil_mode", 0, Absent::Int(0)),
    ("MaxPool", "storage_order", 0, Absent::Int(0)),
    ("QuantizeLinear", "block_size", 21, Absent::Int(0)),
    ("QuantizeLinear", "output_dtype", 21, Absent::Int(0)),
    ("QuantizeLinear", "precision", 23, Absent::Int(0)),
    ("QuantizeLinear", "saturate", 19, Absent::Int(1)),
    ("Reshape", "allowzero", 14, Absent::Int(0)),
    ("Resize", "antialias", 18, Absent::Int(0)),
    ("Resize", "extrapolation_value", 0, Absent::Same),
    ("Resize", "axes", 18, Absent::Other),
    ("Resize", "keep_aspect_ratio_policy", 18, Absent::Str("stretch")),
    ("Shape", "end", 15, Absent::Other),
    ("Shape", "start", 15, Absent::Int(0)),
];

/// Operators newer than [`MIN_EXPORT_OPSET`] that Fewbits itself may write.
const OPERATORS: &[(&str, i64)] = &[("HardSwish", 14), ("LayerNormalization", 17), ("Mish", 18), ("Gelu", 20)];

/// Operators that older files mean differently: a file cannot be raised over that version.
const REDEFINED: &[(&str, i64)] = &[("RoiAlign", 16), ("DFT", 20), ("GridSample", 20), ("GroupNormalization", 21)];

/// Whether leaving the attribute out changes nothing.
pub(crate) fn has_no_effect(op_type: &str, attr: &str, value: &Attr) -> bool {
    ATTRIBUTES.iter().any(|(op, name, _, absent)| (*op, *name) == (op_type, attr) && absent.is(value))
}

/// The attributes of `op` that operator set `opset` knows; the others say nothing there ([`required_opset`] sees to it).
pub(crate) fn known_attrs(op: &Op, opset: i64) -> fewbits_graph::Attrs {
    let mut attrs = op.def().attrs();
    let newer = |name: &str| ATTRIBUTES.iter().any(|(o, n, since, _)| (*o, *n) == (op.name(), name) && *since > opset);
    attrs.0.retain(|name, _| !newer(name));
    if opset < 18 {
        // Before version 18 equal parts follow from the number of outputs, and all axes were meant where none were given.
        if op.name() == "Split" {
            attrs.0.remove("num_outputs");
        }
        if REDUCTIONS.contains(&op.name()) {
            attrs.0.remove("noop_with_empty_axes");
        }
    }
    attrs
}

/// The oldest operator set, from [`MIN_EXPORT_OPSET`] and the graph's own on, that can express the graph.
pub fn required_opset(graph: &Graph) -> i64 {
    let needs = graph.nodes.iter().map(|node| node_opset(graph, node));
    needs.fold(graph.opset.max(MIN_EXPORT_OPSET), i64::max)
}

fn node_opset(graph: &Graph, node: &Node) -> i64 {
    if matches!(&node.op, Op::Opaque(op) if !op.domain.is_empty()) {
        return 0;
    }
    let op_type = node.op.name();
    let attrs = node.op.def().attrs();
    let newer = |(op, name, since, absent): &(&str, &str, i64, Absent)| {
        (*op == op_type && attrs.0.get(*name).is_some_and(|value| !absent.is(value))).then_some(*since)
    };
    let mut opset = ATTRIBUTES.iter().filter_map(newer).max().unwrap_or(0);
    opset = opset.max(OPERATORS.iter().find(|(op, _)| *op == op_type).map_or(0, |&(_, since)| since));
    let has_input = |i| node.input(i).is_some();
    let variable = |i| node.input(i).is_some_and(|name| graph.constant(name).is_none());
    let by_inputs = match op_type {
        "Pad" if has_input(3) => 18,
        op if REDUCTIONS.contains(&op) && variable(1) => 18,
        "QuantizeLinear" | "DequantizeLinear" => {
            let types = node.present_inputs().filter_map(|name| graph.constant(name)).map(|t| code_opset(t.dtype()));
            types.max().unwrap_or(0)
        }
        _ => 0,
    };
    opset.max(by_inputs)
}

/// The operator set in which QuantizeLinear and DequantizeLinear learned a type.
fn code_opset(dtype: DType) -> i64 {
    match dtype {
        DType::Raw(ty::UINT2 | ty::INT2) => 25,
        DType::Raw(ty::FLOAT8E8M0) => 24,
        DType::Raw(ty::FLOAT4E2M1) => 23,
        DType::Raw(ty::UINT4 | ty::INT4 | ty::UINT16 | ty::INT16) => 21,
        DType::Raw(_) => 19,
        _ => 10,
    }
}

/// Refuses to write a graph in operator set `opset` if that changed an operator carried through from an older file.
pub(crate) fn check_redefined(graph: &Graph, opset: i64) -> Result<(), OnnxError> {
    for node in &graph.nodes {
        let Op::Opaque(op) = &node.op else { continue };
        let changed = |&&(name, since): &&(&str, i64)| name == op.op_type && graph.opset < since && since <= opset;
        if let Some((_, since)) = REDEFINED.iter().find(changed).filter(|_| op.domain.is_empty()) {
            let what = format!("raising it from operator set {} over {since}", graph.opset);
            let (node, op_type) = (node.name.clone(), op.op_type.clone());
            return Err(OnnxError::Node { node, op_type, source: OpError::Unsupported(what) });
        }
    }
    Ok(())
}

/// The IR version that came with an operator set.
pub(crate) fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19 | 20 => 9,
        21 | 22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

/// How many inputs an operator needs at least, and how many it knows.
pub(crate) fn inputs(op_type: &str) -> (usize, usize) {
    match op_type {
        "Range" | "Where" => (3, 3),
        "BatchNormalization" => (5, 5),
        "QuantizeLinear" | "DequantizeLinear" => (2, 3),
        "Conv" | "ConvTranspose" | "Gemm" => (2, 3),
        "Pad" => (2, 4),
        "Slice" => (3, 5),
        "Resize" => (1, 4),
        "Clip" | "Dropout" => (1, 3),
        "InstanceNormalization" => (3, 3),
        "LayerNormalization" => (2, 3),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "MatMul" | "PRelu" | "Gather" | "Expand" | "Tile" | "Reshape"
        | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And" | "Or" | "Unsqueeze" => (2, 2),
        "Squeeze" | "Split" | "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL2" => (1, 2),
        "Concat" | "Min" | "Max" => (1, usize::MAX),
        "Constant" => (0, 0),
        _ => (1, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_spelled_out_say_nothing() {
        let text = |value: &str| Attr::Str(value.into());
        for op in ["Conv", "ConvTranspose", "MaxPool", "AveragePool"] {
            assert!(has_no_effect(op, "auto_pad", &text("NOTSET")), "{op}");
            assert!(!has_no_effect(op, "auto_pad", &text("SAME_UPPER")), "{op}");
        }
        assert!(!has_no_effect("Conv", "blocks", &Attr::Int(0)));
    }
}
