//! What training changes: parameters (by gradients) and running statistics (by batches), each in one flat vector.
//!
//! Flat, so that optimizers, checkpoints and averages are loops over slices. It knows no optimizer.

use super::Laid;
use crate::{
    graph::{Graph, Node},
    op::{Op, Role},
    tensor::Tensor,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

/// What a leaf is to its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Multiplied with data: convolutions, matrix products.
    Weight,
    /// Added to data by a layer.
    Bias,
    /// Scale or bias of a normalization, slope of a PRelu.
    Affine,
    /// Learned numbers of a quantizer.
    Quantizer,
    /// Mean or variance that a BatchNormalization keeps.
    Running,
}

/// A named part of a flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    /// Constant of the graph, or `TENSOR.quantizer`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Dimensions; `[groups, learned]` for a quantizer.
    pub dims: Vec<usize>,
    /// Where it is in the vector.
    pub range: Range<usize>,
}

/// Everything that training changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Leaves {
    /// Changed by gradients.
    pub parameters: Vec<Leaf>,
    /// Their numbers.
    pub values: Vec<f32>,
    /// Changed by batches.
    pub running: Vec<Leaf>,
    /// Their numbers.
    pub statistics: Vec<f32>,
}

/// Name of the leaf that holds the numbers of the quantizer on `tensor`.
pub fn quantizer_leaf(tensor: &str) -> String {
    format!("{tensor}.quantizer")
}

impl Leaves {
    /// The leaves of `graph`, with the graph's values: weights, biases, scales and slopes that are float constants. Quantizers
    /// laid over tensors get zeros.
    pub fn new(graph: &Graph, quantizers: &BTreeMap<String, Laid>) -> Self {
        let mut leaves = Leaves::default();
        let mut seen = BTreeSet::new();
        for node in &graph.nodes {
            for (i, name) in node.inputs.iter().enumerate() {
                let Some(kind) = kind(node, i) else { continue };
                let Some(tensor) = graph.constant(name) else { continue };
                let Some(values) = tensor.as_f32() else { continue };
                if seen.insert(name.clone()) {
                    leaves.push(name.clone(), kind, tensor.dims.clone(), values);
                }
            }
        }
        for (tensor, laid) in quantizers {
            let dims = vec![laid.groups, laid.quantizer.learned()];
            let zeros = vec![0.0; dims.iter().product()];
            leaves.push(quantizer_leaf(tensor), Kind::Quantizer, dims, &zeros);
        }
        leaves
    }

    fn push(&mut self, name: String, kind: Kind, dims: Vec<usize>, new: &[f32]) {
        let (list, values) = match kind {
            Kind::Running => (&mut self.running, &mut self.statistics),
            _ => (&mut self.parameters, &mut self.values),
        };
        list.push(Leaf { name, kind, dims, range: values.len()..values.len() + new.len() });
        values.extend_from_slice(new);
    }

    /// The parameter `name`.
    pub fn parameter(&self, name: &str) -> Option<&Leaf> {
        self.parameters.iter().find(|leaf| leaf.name == name)
    }

    /// The numbers of the parameter `name`.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.parameter(name).map(|leaf| &self.values[leaf.range.clone()])
    }

    /// The numbers of the parameter `name`.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        let range = self.parameter(name)?.range.clone();
        Some(&mut self.values[range])
    }

    /// `graph` with the leaves' numbers as its constants.
    pub fn apply(&self, graph: &Graph) -> Graph {
        let mut graph = graph.clone();
        let both = self.parameters.iter().map(|leaf| (leaf, &self.values));
        for (leaf, values) in both.chain(self.running.iter().map(|leaf| (leaf, &self.statistics))) {
            if let Some(constant) = graph.constants.get_mut(&leaf.name) {
                *constant = Arc::new(Tensor::f32(&leaf.dims, values[leaf.range.clone()].to_vec()));
            }
        }
        graph
    }
}

/// What input `i` of `node` is if it is a leaf.
fn kind(node: &Node, i: usize) -> Option<Kind> {
    match (&node.op, i, node.op.def().quant_rule().role(i)) {
        (Op::BatchNormalization(_), 1 | 2, _) => Some(Kind::Affine),
        (Op::BatchNormalization(_), 3 | 4, _) => Some(Kind::Running),
        (Op::PRelu(_), 1, _) => Some(Kind::Affine),
        (Op::InstanceNormalization(_) | Op::LayerNormalization(_), 1 | 2, _) => Some(Kind::Affine),
        (_, _, Role::Weight { .. }) => Some(Kind::Weight),
        (_, _, Role::Bias) => Some(Kind::Bias),
        _ => None,
    }
}
