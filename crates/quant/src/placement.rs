//! Placement: which tensors carry a grid, given what a target computes in integers. The only room where fusion and
//! quantization meet.
//!
//! For ONNX Runtime (Q/DQ on inputs and outputs): every layer with constant weights is integer. Another operator with an integer
//! kernel is, if it stands between layers: what follows the last layer (box decoding, softmax, final pooling) stays float, because
//! there nothing is gained and ranges are unlike. So does one among float operators, as in `x / (1 + exp(−x))` or a decomposed
//! normalization: nothing would be gained but roundings of numbers whose range no grid holds. An integer operator needs grids on its
//! data inputs and on its output; the output grid stands behind an activation that the target absorbs. Operators that only move
//! elements pass grids on.

mod inputs_and_outputs;
mod layer_inputs;
mod readers;
mod reasons;

use crate::{
    ranges::Reader,
    target::{Style, Target},
};
use fewbits_graph::{
    Graph, Node, Op,
    op::{Fact, OutRule, Role},
    passes::is_layer_input_slot,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What kind of grid a tensor carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Site {
    /// Its own, inside `bounds` if an absorbed Clip demands it.
    Activation {
        /// Interval that the grid must not exceed.
        bounds: Option<(f32, f32)>,
        /// The function through which integer operators read it, if that is all they do.
        reader: Reader,
        /// Layers multiply it, as it is or moved about. What no layer multiplies (summands, pooled and put out tensors) keeps 8 bits
        /// when layer inputs get fewer.
        feeds_layer: bool,
        /// A first or last layer does.
        edge: bool,
    },
    /// That of another tensor.
    SameAs(String),
    /// The constant weight of a layer.
    Weight {
        /// Output-channel axis.
        axis: usize,
        /// The layer's data input.
        input: String,
        /// The layer's bias, if it has one.
        bias: Option<String>,
        /// Of a first or last layer: keeps 8 bits when others get fewer.
        edge: bool,
    },
    /// The constant bias of a layer.
    Bias {
        /// The layer's data input.
        input: String,
        /// The layer's weight.
        weight: String,
    },
}

impl Site {
    /// A grid of its own that nothing is known about yet.
    fn activation(bounds: Option<(f32, f32)>) -> Self {
        Site::Activation { bounds, reader: Reader::Identity, feeds_layer: false, edge: false }
    }
}

/// Whether the target computes a node in integers, and why (not).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Node name.
    pub node: String,
    /// Operator type.
    pub op: String,
    /// Integer kernel, or part of one, or moved as codes.
    pub integer: bool,
    /// In words.
    pub reason: String,
}

/// Where the grids are, and what follows for each node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    /// Tensors with a grid.
    pub sites: BTreeMap<String, Site>,
    /// Every node, in graph order.
    pub nodes: Vec<Runtime>,
}

impl Placement {
    /// The tensor whose grid `name` has.
    pub fn owner<'a>(&'a self, name: &'a str) -> &'a str {
        owner(&self.sites, name)
    }
}

/// See [`Placement::owner`].
fn owner<'a>(sites: &'a BTreeMap<String, Site>, mut name: &'a str) -> &'a str {
    while let Some(Site::SameAs(other)) = sites.get(name) {
        name = other;
    }
    name
}

/// Places grids on the prepared `graph` for `target`; nodes named in `keep_float` take no part.
pub fn place(graph: &Graph, target: &Target, keep_float: &BTreeSet<String>) -> Placement {
    let mut placer = Placer::new(graph, target, keep_float);
    match target.style {
        Style::InputsAndOutputs => placer.inputs_and_outputs(),
        Style::LayerInputs => placer.layer_inputs(),
    }
    placer.finish()
}

struct Placer<'a> {
    graph: &'a Graph,
    target: &'a Target,
    keep_float: &'a BTreeSet<String>,
    producers: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
    /// Nodes that lead to a layer.
    before_layer: Vec<bool>,
    /// Nodes that come from a layer.
    behind_layer: Vec<bool>,
    sites: BTreeMap<String, Site>,
    /// Reason of every node that is integer.
    integer: BTreeMap<usize, String>,
}

impl<'a> Placer<'a> {
    fn new(graph: &'a Graph, target: &'a Target, keep_float: &'a BTreeSet<String>) -> Self {
        let (producers, consumers) = (graph.producers(), graph.consumers());
        let count = graph.nodes.len();
        let mut placer = Placer {
            graph,
            target,
            keep_float,
            producers,
            consumers,
            before_layer: vec![false; count],
            behind_layer: vec![false; count],
            sites: BTreeMap::new(),
            integer: BTreeMap::new(),
        };
        // Sizes computed from shapes come from no layer and lead to none.
        let computes = |i: &usize| !matches!(graph.nodes[*i].op, Op::Shape(_));
        for i in (0..count).rev().filter(computes) {
            let readers = graph.nodes[i].outputs.iter().flat_map(|o| placer.readers(o));
            placer.before_layer[i] = readers.into_iter().any(|&c| placer.is_layer(c) || placer.before_layer[c]);
        }
        for i in (0..count).filter(computes) {
            let makers = graph.nodes[i].present_inputs().filter_map(|name| placer.producers.get(name));
            placer.behind_layer[i] = makers.into_iter().any(|&p| placer.is_layer(p) || placer.behind_layer[p]);
        }
        placer
    }

    fn readers(&self, tensor: &str) -> &[usize] {
        self.consumers.get(tensor).map_or(&[], Vec::as_slice)
    }

    fn listed(&self, list: &[String], node: usize) -> bool {
        let node = &self.graph.nodes[node];
        !self.keep_float.contains(&node.name) && list.iter().any(|op| op == node.op.name())
    }

    /// Whether the target has an integer kernel for the operator that does what this instance says.
    fn has_integer_kernel(&self, node: usize) -> bool {
        self.listed(&self.target.integer, node) && !writes_floats(&self.graph.nodes[node])
    }

    /// A layer that can be quantized: constant float weight, plain if it is a Gemm, no decoding of boxes.
    fn is_layer(&self, node: usize) -> bool {
        self.listed(&self.target.layers, node)
            && self.weight(node).is_some_and(|(weight, axis)| self.is_plain(node, weight, axis))
            && !self.graph.decodes_boxes(node, &self.producers)
    }

    /// Not a Gemm that scales, transposes its data, or adds something else than a constant for each channel of `weight`.
    fn is_plain(&self, node: usize, weight: &str, axis: usize) -> bool {
        let node = &self.graph.nodes[node];
        let Op::Gemm(gemm) = &node.op else { return true };
        let channels = self.graph.constant(weight).map(|w| w.dims[axis]);
        let is_bias = |name| {
            let dims = self.graph.constant(name).map(|c| &c.dims[..]);
            matches!(dims, Some([n] | [1, n]) if Some(*n) == channels)
        };
        gemm.alpha == 1.0 && gemm.beta == 1.0 && !gemm.trans_a && node.input(2).is_none_or(is_bias)
    }

    /// Name and channel axis of the node's constant weight.
    fn weight(&self, node: usize) -> Option<(&'a str, usize)> {
        let node = &self.graph.nodes[node];
        let Role::Weight { channel_axis } = node.op.def().quant_rule().role(1) else { return None };
        let name = node.input(1)?;
        let tensor = self.graph.constant(name)?;
        // A stack of matrices has no axis of output channels: runtimes compute it in float or refuse its scales.
        let is_stack = matches!(node.op, Op::MatMul(_)) && tensor.dims.len() != 2;
        let fits = tensor.as_f32().is_some() && channel_axis < tensor.dims.len() && !is_stack;
        fits.then_some((name, channel_axis))
    }

    /// Names of the node's data inputs.
    fn data_inputs(&self, node: &'a Node) -> impl Iterator<Item = &'a str> + use<'a> {
        let rule = node.op.def().quant_rule();
        let count = node.inputs.len();
        (0..count).filter(move |&i| rule.role(i) == Role::Data).filter_map(|i| node.input(i))
    }

    fn place_weight(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        let Some((weight, axis)) = self.weight(i) else { return };
        let input = node.inputs[0].clone();
        let bias = node.input(2).filter(|b| self.graph.constant(b).is_some()).map(String::from);
        if let (Some(bias), false) = (&bias, self.target.float_bias) {
            self.sites.insert(bias.clone(), Site::Bias { input: input.clone(), weight: weight.into() });
        }
        self.sites.insert(weight.into(), Site::Weight { axis, input, bias, edge: self.is_edge(i) });
    }

    /// The Relu or Clip that the target computes by the output grid of node `i`, and its bounds.
    fn absorbed(&self, i: usize) -> Option<(usize, (f32, f32))> {
        let node = &self.graph.nodes[i];
        let output = node.output();
        let &[r] = self.readers(output) else { return None };
        let activation = &self.graph.nodes[r];
        let fits = self.target.absorbs(node.op.name(), activation.op.name())
            && !self.keep_float.contains(&activation.name)
            && activation.input(0) == Some(output)
            && !self.graph.is_output(output);
        let bounds = clamp_bounds(self.graph, activation).filter(|_| fits)?;
        // Every grid holds zero, so it cannot stay inside bounds that do not.
        (bounds.0 <= 0.0 && bounds.1 >= 0.0).then_some((r, bounds))
    }

    /// Whether the node moves elements about without changing them.
    fn moves(&self, node: usize) -> bool {
        let op = &self.graph.nodes[node];
        let pads_zero = !matches!(op.op, Op::Pad(_))
            || op.input(2).is_none_or(|v| self.graph.constant(v).and_then(|t| t.scalar_f32()) == Some(0.0));
        self.listed(&self.target.same_grid, node)
            && !is_layer_input_slot(op)
            && op.op.def().quant_rule().output == OutRule::SameAsInput
            && self.graph.constant(&op.inputs[0]).is_none()
            && pads_zero
    }

    /// Whether the layer is a first or a last one.
    fn is_edge(&self, i: usize) -> bool {
        !self.before_layer[i] || !self.behind_layer[i]
    }

    /// Marks the activations that layers multiply.
    fn mark_layer_inputs(&mut self) {
        let layers: Vec<usize> = (0..self.graph.nodes.len()).filter(|&i| self.is_layer(i)).collect();
        for i in layers {
            let (owner, of_edge) = (self.owner(&self.graph.nodes[i].inputs[0]), self.is_edge(i));
            if let Some(Site::Activation { feeds_layer, edge, .. }) = self.sites.get_mut(&owner) {
                *feeds_layer = true;
                *edge |= of_edge;
            }
        }
    }

    fn owner(&self, name: &str) -> String {
        owner(&self.sites, name).to_string()
    }

    fn finish(mut self) -> Placement {
        self.mark_layer_inputs();
        self.mark_readers();
        for i in 0..self.graph.nodes.len() {
            let has_grid = |name: &String| self.sites.contains_key(name);
            let node = &self.graph.nodes[i];
            let shares = matches!(self.sites.get(node.output()), Some(Site::SameAs(_)));
            // A runtime may have no kernel that moves codes, and gives a reason then.
            let shares = shares && !self.target.float_reasons.contains_key(node.op.name());
            if shares && !self.integer.contains_key(&i) && node.inputs.first().is_some_and(has_grid) {
                self.integer.insert(i, "moves codes".into());
            }
        }
        let runtime = |i: usize| {
            let node = &self.graph.nodes[i];
            let reason = self.integer.get(&i);
            Runtime {
                node: node.name.clone(),
                op: node.op.name().into(),
                integer: reason.is_some(),
                reason: reason.cloned().unwrap_or_else(|| self.why_float(i)),
            }
        };
        let nodes = (0..self.graph.nodes.len()).map(runtime).collect();
        Placement { nodes, sites: self.sites }
    }
}

/// Whether the output of this instance of an operator is never quantized.
fn writes_floats(node: &Node) -> bool {
    node.op.def().quant_rule().output == OutRule::Float
}

/// The interval that an absorbed Relu or Clip with constant bounds clamps to.
fn clamp_bounds(graph: &Graph, node: &Node) -> Option<(f32, f32)> {
    let facts: Vec<Option<Fact>> =
        node.inputs.iter().map(|name| graph.constant(name).cloned().map(Fact::constant)).collect();
    let known =
        node.inputs.iter().skip(1).zip(facts.iter().skip(1)).all(|(name, fact)| name.is_empty() || fact.is_some());
    let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    match node.op.def().activation(&facts) {
        Some(fewbits_graph::op::Activation::Clamp { min, max }) if known => Some((min, max)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
