//! Nodes of older operator sets → the forms of [`CANONICAL_OPSET`](fewbits_graph::op::CANONICAL_OPSET).
//!
//! Most changes between versions moved an attribute to an input; those are a table. The others are one function each. Operators that are
//! a few others are written as those (`compound.rs`).

use crate::import::first_free;
use fewbits_graph::{Attr, Attrs, OpError, Tensor};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// A node as the file has it: attributes by name, trailing absent inputs and outputs cut off.
#[derive(Clone, Debug)]
pub(crate) struct RawNode {
    pub name: String,
    pub domain: String,
    pub op_type: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attrs: Attrs,
}

impl RawNode {
    pub(crate) fn new(name: String, op_type: &str, inputs: &[&str], output: &str) -> Self {
        RawNode {
            name,
            domain: String::new(),
            op_type: op_type.into(),
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            outputs: vec![output.into()],
            attrs: Attrs::default(),
        }
    }

    pub(crate) fn with(mut self, name: &str, value: Attr) -> Self {
        self.attrs.0.insert(name.into(), value);
        self
    }

    pub(crate) fn input(&self, i: usize) -> Option<&str> {
        self.inputs.get(i).map(String::as_str).filter(|s| !s.is_empty())
    }

    fn set_input(&mut self, i: usize, name: String) {
        if self.inputs.len() <= i {
            self.inputs.resize(i + 1, String::new());
        }
        self.inputs[i] = name;
    }
}

/// Attributes that became inputs: operators, attribute, the first operator set with the input, position of the input.
const MOVED: &[(&[&str], &str, i64, usize)] = &[
    (&["Clip"], "min", 11, 1),
    (&["Clip"], "max", 11, 2),
    (&["Pad"], "pads", 11, 1),
    (&["Pad"], "value", 11, 2),
    (&["Slice"], "starts", 10, 1),
    (&["Slice"], "ends", 10, 2),
    (&["Slice"], "axes", 10, 3),
    (&["Squeeze", "Unsqueeze", "ReduceSum"], "axes", 13, 1),
    (&["Split"], "split", 13, 1),
    (&["Dropout"], "ratio", 12, 1),
    (&["TopK"], "k", 10, 1),
    (&["Upsample"], "scales", 9, 1),
    (REDUCTIONS, "axes", 18, 1),
];

/// Reductions whose axes became an input in version 18 (ReduceSum: 13).
pub(crate) const REDUCTIONS: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

/// What is known while the nodes of a file are read one after the other.
pub(crate) struct Raiser {
    /// Operator set of the file.
    pub opset: i64,
    pub constants: BTreeMap<String, Arc<Tensor>>,
    /// Every tensor and node name in use.
    pub names: HashSet<String>,
    /// Ranks that the file declares or that follow from a node alone.
    pub ranks: HashMap<String, usize>,
    /// Results of DequantizeLinear nodes made for operator-format quantization.
    pub dequantized: HashMap<Vec<String>, String>,
}

impl Raiser {
    pub(crate) fn fresh(&mut self, stem: &str) -> String {
        let name = first_free(stem, &self.names);
        self.names.insert(name.clone());
        name
    }

    pub(crate) fn constant(&mut self, stem: &str, value: Tensor) -> String {
        let name = self.fresh(stem);
        self.constants.insert(name.clone(), Arc::new(value));
        name
    }

    /// The canonical form of one node, which may be several nodes, or none for a Constant.
    pub(crate) fn raise(&mut self, mut node: RawNode) -> Result<Vec<RawNode>, OpError> {
        if !node.domain.is_empty() {
            return Ok(vec![node]);
        }
        for &(op_types, attr, since, input) in MOVED {
            if self.opset < since && op_types.contains(&node.op_type.as_str()) {
                self.move_to_input(&mut node, attr, input)?;
            }
        }
        if let Some(rank) = self.rank_of(&node) {
            self.ranks.insert(node.outputs[0].clone(), rank);
        }
        match node.op_type.as_str() {
            "Constant" => return self.constant_node(node),
            "Softmax" | "LogSoftmax" | "Hardmax" if self.opset < 13 => return self.flattened_softmax(node),
            "Scatter" => node.op_type = "ScatterElements".into(),
            "Upsample" | "Resize" if self.opset < 11 => self.resize(&mut node)?,
            "Split" if node.input(1).is_none() && !node.attrs.0.contains_key("num_outputs") => {
                node = {
                    let n = node.outputs.len() as i64;
                    node.with("num_outputs", Attr::Int(n))
                };
            }
            "Sum" | "Mean" => return self.of_pairs(node),
            "Max" | "Min" if node.inputs.len() > 2 => return self.of_pairs(node),
            "Gelu" => return self.gelu(node),
            "Cast" if self.cast_of_constant(&node) => return Ok(Vec::new()),
            "BatchNormalization" if self.opset < 14 => batch_normalization(&mut node)?,
            _ => {}
        }
        Ok(vec![node])
    }

    fn move_to_input(&mut self, node: &mut RawNode, attr: &'static str, input: usize) -> Result<(), OpError> {
        let value = match node.attrs.0.remove(attr) {
            None => return Ok(()),
            Some(Attr::Int(v)) => Tensor::i64(&[1], vec![v]),
            Some(Attr::Float(v)) => Tensor::f32(&[], vec![v]),
            Some(Attr::Ints(v)) => Tensor::i64(&[v.len()], v),
            Some(Attr::Floats(v)) => Tensor::f32(&[v.len()], v),
            Some(_) => return Err(OpError::Attribute { name: attr, reason: "expected numbers".into() }),
        };
        let name = self.constant(&format!("{}_{attr}", node.name), value);
        node.set_input(input, name);
        Ok(())
    }

    /// The rank of the output where it follows from the operator.
    fn rank_of(&self, node: &RawNode) -> Option<usize> {
        let input = || self.ranks.get(node.input(0)?).copied();
        match node.op_type.as_str() {
            "Flatten" | "Gemm" => Some(2),
            "Reshape" => self.constants.get(node.input(1)?).map(|shape| shape.len()),
            "Conv" | "BatchNormalization" | "Relu" | "LeakyRelu" | "Clip" | "Sigmoid" | "MaxPool" | "AveragePool"
            | "GlobalAveragePool" | "GlobalMaxPool" | "Concat" | "Dropout" | "Identity" | "Transpose" => input(),
            _ => None,
        }
    }

    /// A Constant node becomes a constant, unless Fewbits cannot hold its value.
    fn constant_node(&mut self, node: RawNode) -> Result<Vec<RawNode>, OpError> {
        let value = match node.attrs.0.iter().next() {
            Some((_, Attr::Tensor(value))) => value.clone(),
            Some((_, Attr::Float(v))) => Tensor::f32(&[], vec![*v]),
            Some((_, Attr::Int(v))) => Tensor::i64(&[], vec![*v]),
            Some((_, Attr::Floats(v))) => Tensor::f32(&[v.len()], v.clone()),
            Some((_, Attr::Ints(v))) => Tensor::i64(&[v.len()], v.clone()),
            Some(_) => return Ok(vec![node]),
            None => return Err(OpError::Attribute { name: "value", reason: "is missing".into() }),
        };
        let name = node.outputs[0].clone();
        self.ranks.insert(name.clone(), value.dims.len());
        if self.constants.insert(name.clone(), Arc::new(value)).is_some() {
            return Err(OpError::Unsupported(format!("two constants called `{name}`")));
        }
        Ok(Vec::new())
    }

    /// Before version 13, Softmax normalised over all axes from `axis` (default 1) on together.
    fn flattened_softmax(&mut self, mut node: RawNode) -> Result<Vec<RawNode>, OpError> {
        let axis = node.attrs.int("axis")?.unwrap_or(1);
        node = node.with("axis", Attr::Int(-1));
        let (Some(x), y) = (node.input(0).map(String::from), node.outputs[0].clone()) else {
            return Err(OpError::MissingInput { index: 0 });
        };
        if axis == -1 || self.ranks.get(&x).is_some_and(|&rank| axis + 1 == rank as i64) {
            return Ok(vec![node]);
        }
        let part = |raiser: &mut Self, suffix: &str| {
            let stem = format!("{}_{suffix}", node.name);
            (raiser.fresh(&stem), raiser.fresh(&format!("{stem}_output")))
        };
        let (flatten, flat) = part(self, "flatten");
        let (shape, dims) = part(self, "shape");
        let (reshape, normalised) = part(self, "reshape");
        let before = RawNode::new(flatten, "Flatten", &[&x], &flat).with("axis", Attr::Int(axis));
        let size = RawNode::new(shape, "Shape", &[&x], &dims);
        let after = RawNode::new(reshape, "Reshape", &[&normalised, &dims], &y);
        node.inputs = vec![flat];
        node.outputs = vec![normalised];
        Ok(vec![before, node, size, after])
    }

    /// Upsample, and Resize of version 10: scales become input 2, coordinates are `x_out / scale`. Nearest neighbours round
    /// down when enlarging and up when shrinking, as ONNX Runtime does for these versions.
    fn resize(&mut self, node: &mut RawNode) -> Result<(), OpError> {
        let scales = node.input(1).ok_or(OpError::MissingInput { index: 1 })?.to_string();
        let factors = self.constants.get(&scales).and_then(|t| t.as_f32()).unwrap_or_default();
        let rounding = match (factors.iter().any(|&s| s > 1.0), factors.iter().any(|&s| s < 1.0)) {
            (true, true) if node.attrs.str("mode")?.is_none_or(|mode| mode == "nearest") => {
                return Err(OpError::Unsupported("enlarging one axis while shrinking another".into()));
            }
            (false, true) => "ceil",
            _ => "floor",
        };
        node.op_type = "Resize".into();
        node.inputs = vec![node.inputs[0].clone(), String::new(), scales];
        let mut set = |name: &str, value: &str| node.attrs.0.insert(name.into(), Attr::Str(value.into()));
        set("coordinate_transformation_mode", "asymmetric");
        set("nearest_mode", rounding);
        Ok(())
    }
}

/// Before version 14 the training form is told by the number of outputs, before version 9 `spatial` may be off.
fn batch_normalization(node: &mut RawNode) -> Result<(), OpError> {
    if node.attrs.int("spatial")? == Some(0) {
        return Err(OpError::Unsupported("spatial = 0 (statistics for each position)".into()));
    }
    if node.outputs.len() > 1 {
        return Err(OpError::Unsupported("the training form; export the model in evaluation mode".into()));
    }
    node.attrs.0.remove("spatial");
    Ok(())
}
