//! Operators that are a few others: written as those when a file is read, so that there is one form of each to compute, to
//! place and to differentiate.

use crate::{
    proto::data_type as ty,
    raise::{Raiser, RawNode},
    tensor,
};
use fewbits_graph::{Attr, OpError, Tensor};
use std::{f32::consts, sync::Arc};

impl Raiser {
    /// Sum, Mean, Max and Min of any number of operands: a chain of operators of two. A mean is the sum times one over their number.
    pub(crate) fn of_pairs(&mut self, node: RawNode) -> Result<Vec<RawNode>, OpError> {
        let op_type = if matches!(&*node.op_type, "Sum" | "Mean") { "Add" } else { node.op_type.as_str() };
        let mut parts = Parts::of(self, &node)?;
        let mut result = parts.x.clone();
        for operand in &node.inputs[1..] {
            result = parts.node(op_type, &[&result, operand]);
        }
        if node.op_type == "Mean" {
            let share = parts.constant(1.0 / node.inputs.len() as f32);
            parts.node("Mul", &[&result, &share]);
        } else if node.inputs.len() == 1 {
            parts.node("Identity", &[&result]);
        }
        Ok(parts.finish(&node))
    }

    /// `x / 2 · (1 + erf(x / √2))`, or with a hyperbolic tangent near it: `x / 2 · (1 + tanh(√(2 / π) · (x + 0.044715 · x³)))`.
    pub(crate) fn gelu(&mut self, node: RawNode) -> Result<Vec<RawNode>, OpError> {
        let approximation = node.attrs.str("approximate")?.unwrap_or_else(|| "none".into());
        if !["none", "tanh"].contains(&&*approximation) {
            return Ok(vec![node]);
        }
        let mut parts = Parts::of(self, &node)?;
        let x = parts.x.clone();
        let bent = if approximation == "none" {
            let root = parts.constant(consts::SQRT_2);
            let scaled = parts.node("Div", &[&x, &root]);
            parts.node("Erf", &[&scaled])
        } else {
            let [factor, root] = [0.044_715, (2.0 / consts::PI).sqrt()].map(|v| parts.constant(v));
            let square = parts.node("Mul", &[&x, &x]);
            let cube = parts.node("Mul", &[&square, &x]);
            let small = parts.node("Mul", &[&cube, &factor]);
            let sum = parts.node("Add", &[&x, &small]);
            let scaled = parts.node("Mul", &[&sum, &root]);
            parts.node("Tanh", &[&scaled])
        };
        let [one, half] = [1.0, 0.5].map(|v| parts.constant(v));
        let gate = parts.node("Add", &[&bent, &one]);
        let product = parts.node("Mul", &[&x, &gate]);
        parts.node("Mul", &[&product, &half]);
        Ok(parts.finish(&node))
    }

    /// Whether `node` casts a constant of a float type that is not computed with to `float32`. The result is then a constant, too.
    pub(crate) fn cast_of_constant(&mut self, node: &RawNode) -> bool {
        let to_float = node.attrs.0.get("to") == Some(&Attr::Int(ty::FLOAT.into()));
        let value = node.input(0).and_then(|name| self.constants.get(name)).and_then(|t| tensor::narrowed(t));
        let (Some(value), true) = (value, to_float) else { return false };
        let name = node.outputs[0].clone();
        self.ranks.insert(name.clone(), value.dims.len());
        // A second constant of this name is found when the graph is sorted.
        !self.constants.contains_key(&name) && self.constants.insert(name, Arc::new(value)).is_none()
    }
}

/// The nodes that an operator becomes.
struct Parts<'a> {
    raiser: &'a mut Raiser,
    stem: String,
    /// Its first input.
    x: String,
    nodes: Vec<RawNode>,
}

impl<'a> Parts<'a> {
    fn of(raiser: &'a mut Raiser, node: &RawNode) -> Result<Self, OpError> {
        let x = node.input(0).ok_or(OpError::MissingInput { index: 0 })?.to_string();
        Ok(Parts { raiser, stem: node.name.clone(), x, nodes: Vec::new() })
    }

    fn constant(&mut self, value: f32) -> String {
        self.raiser.constant(&format!("{}_constant", self.stem), Tensor::f32(&[], vec![value]))
    }

    /// Adds a node and returns what it writes.
    fn node(&mut self, op_type: &str, inputs: &[&str]) -> String {
        let name = self.raiser.fresh(&format!("{}_{op_type}", self.stem));
        let output = self.raiser.fresh(&format!("{name}_output"));
        self.nodes.push(RawNode::new(name, op_type, inputs, &output));
        output
    }

    /// The last of the nodes writes what the operator wrote, under its name.
    fn finish(mut self, node: &RawNode) -> Vec<RawNode> {
        if let Some(last) = self.nodes.last_mut() {
            last.name.clone_from(&node.name);
            last.outputs.clone_from(&node.outputs);
        }
        self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbits_graph::Data;
    use std::collections::{BTreeMap, HashMap, HashSet};

    #[test]
    fn constants_of_other_float_types_are_cast_when_they_are_read() {
        let halves = [0x3800u16, 0xc000, 0x0001, 0x7c00].iter().flat_map(|b| b.to_le_bytes()).collect();
        let doubles = [0.5f64, -2.0, 1e-3, 1e300].iter().flat_map(|v| v.to_le_bytes()).collect();
        let brains = [0x3f00u16, 0xc000, 0x3a83, 0x7f80].iter().flat_map(|b| b.to_le_bytes()).collect();
        let cases: [(i32, Vec<u8>, [f32; 4]); 3] = [
            (ty::FLOAT16, halves, [0.5, -2.0, 2f32.powi(-24), f32::INFINITY]),
            (ty::DOUBLE, doubles, [0.5, -2.0, 1e-3, f32::INFINITY]),
            (ty::BFLOAT16, brains, [0.5, -2.0, 0.999_450_7e-3, f32::INFINITY]),
        ];
        for (data_type, bytes, expected) in cases {
            let constant = Tensor { dims: vec![4], data: Data::Raw { data_type, bytes } };
            let mut raiser = Raiser {
                opset: 13,
                constants: BTreeMap::from([("k".to_string(), Arc::new(constant))]),
                names: HashSet::new(),
                ranks: HashMap::new(),
                dequantized: HashMap::new(),
            };
            let cast = |to: i32| RawNode::new("n".into(), "Cast", &["k"], "y").with("to", Attr::Int(to.into()));
            assert_eq!(raiser.raise(cast(ty::INT64)).unwrap().len(), 1);
            assert!(raiser.raise(cast(ty::FLOAT)).unwrap().is_empty());
            let near = |(a, b): (&f32, &f32)| a == b || (a - b).abs() < 1e-6 * b.abs();
            assert!(raiser.constants["y"].as_f32().unwrap().iter().zip(&expected).all(near), "{data_type}");
        }
    }
}
