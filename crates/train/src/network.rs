//! A network in its two forms: as it is trained, with BatchNormalizations and quantizers laid over it, and as it ships, folded,
//! with grids.
//!
//! What enters: a float graph, a target, bits. What leaves: quantizers by tensor name for the tape, and, for any values of the
//! leaves, the deployed graph with its grids. Placement decides where quantizers go, so what is trained is what ships.

mod biases;
mod deployed;
mod positive;
mod quantizers;
mod signs;

pub use quantizers::Quantizers;

use crate::{
    TrainError,
    quantizers::{Method, Settings},
    recipe::Fold,
};
use fewbits_graph::{
    Graph, Node, Op, passes,
    tape::{Config, Leaves, Statistics, quantizer_leaf},
};
use fewbits_quant::{
    calibrate::{Policy, REST_BITS},
    placement::{Placement, Site, place},
    target::Target,
};
use positive::make_scales_positive;
use std::collections::BTreeSet;

/// What is trained towards.
#[derive(Clone, Debug)]
pub struct Goal {
    /// The method of what layers multiply. First and last layers, and what no layer multiplies, are rounded by LSQ+, or by the method
    /// itself if it learns ranges as they are, with the widths of [`Goal::policy`].
    pub method: Method,
    /// The method's choices.
    pub settings: Settings,
    /// Widths, single ones by name in the deployed network, and whether each output channel of a weight has a scale of its own. Scales are
    /// learned: the range rule of weights is not asked.
    pub policy: Policy,
    /// Offsets also where a Relu cuts off everything below zero. Such a grid keeps ONNX Runtime from fusing the Relu.
    pub offsets_everywhere: bool,
}

/// A layer in both forms.
#[derive(Clone, Debug)]
struct Layer {
    /// Its weight in the trained and in the deployed graph.
    trained: String,
    deployed: String,
    axis: usize,
    channels: usize,
    edge: bool,
    /// The BatchNormalization that it takes in when it ships.
    norm: Option<Node>,
    /// Whether its weight is rounded as folded, which is what [`Fold::on_folded`] asks of convolutions.
    folds: bool,
    /// Its own bias in the trained graph.
    bias: Option<String>,
    /// The activation whose scale, times the weight's, is that of the deployed bias, if that is rounded.
    bias_input: Option<String>,
}

/// The two forms.
#[derive(Clone, Debug)]
pub struct Network {
    /// As it is trained, without slots.
    base: Graph,
    /// The same with slots at layer inputs.
    graph: Graph,
    /// The tensors that slots write.
    slots: BTreeSet<String>,
    placement: Placement,
    target: Target,
    fold: Fold,
    layers: Vec<Layer>,
}

impl Network {
    /// Prepares `graph`.
    ///
    /// # Errors
    /// [`TrainError::Graph`] if the graph is malformed.
    pub fn new(graph: &Graph, target: &Target, goal: Option<&Goal>, fold: Fold) -> Result<Self, TrainError> {
        let mut base = passes::trainable(graph, fold == Fold::Merged)?;
        make_scales_positive(&mut base);
        let mut network = Network {
            graph: base.clone(),
            base,
            slots: BTreeSet::new(),
            placement: Placement::default(),
            target: target.clone(),
            fold,
            layers: vec![],
        };
        let Some(goal) = goal else { return Ok(network) };
        // A layer input that would have as many bits as the tensor behind it needs no slot.
        let all = passes::drop_neutral_slots(&passes::prepare(&network.base)?.0);
        for (name, site) in &place(&all, target, &BTreeSet::new()).sites {
            if all.nodes.iter().any(|n| n.output() == name && passes::is_layer_input_slot(n))
                && goal.policy.activation_bits(name, site) < REST_BITS
            {
                network.slots.insert(name.clone());
            }
        }
        let slots = &network.slots;
        let graph = passes::with_layer_input_slots(&network.base)?;
        network.graph = passes::drop_layer_input_slots(&graph, |slot| !slots.contains(slot));
        network.graph.sort()?;
        let deployed = network.folded(&network.base)?;
        network.placement = place(&deployed, target, &BTreeSet::new());
        network.layers = network.find_layers(&deployed)?;
        Ok(network)
    }

    /// The graph that is trained.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    fn folded(&self, base: &Graph) -> Result<Graph, TrainError> {
        let graph = passes::drop_neutral_slots(&passes::prepare(base)?.0);
        Ok(passes::drop_layer_input_slots(&graph, |slot| !self.slots.contains(slot)))
    }

    fn find_layers(&self, deployed: &Graph) -> Result<Vec<Layer>, TrainError> {
        let mut layers = Vec::new();
        for (name, site) in &self.placement.sites {
            let &Site::Weight { axis, edge, .. } = site else { continue };
            let reader = |node: &&Node| node.input(1) == Some(name);
            let both = deployed.nodes.iter().find(reader).and_then(|shipped| {
                let trained = self.graph.nodes.iter().find(|n| n.name == shipped.name)?;
                Some((shipped, trained, self.graph.constant(trained.input(1)?)?))
            });
            let (shipped, node, weight) = both.ok_or_else(|| TrainError::Lost { tensor: name.clone() })?;
            // A normalization that ships as a convolution has one weight for each channel, which 8 bits hold exactly.
            if matches!(node.op, Op::BatchNormalization(_)) {
                continue;
            }
            // A normalization in front of a layer would be folded into a weight that is rounded already.
            let before = self.graph.nodes.iter().find(|n| Some(n.output()) == node.input(0));
            if let Some(norm) = before.filter(|n| matches!(n.op, Op::BatchNormalization(_)))
                && !deployed.nodes.iter().any(|n| n.output() == norm.output())
            {
                return Err(TrainError::NormBefore { norm: norm.name.clone(), layer: node.name.clone() });
            }
            let readers = self.graph.consumers();
            // A layer that took in the normalization behind it writes what that one wrote.
            let absorbed = |n: &&Node| matches!(n.op, Op::BatchNormalization(_)) && n.output() == shipped.output();
            let norm = match readers.get(node.output()).map_or(&[][..], Vec::as_slice) {
                [one] => Some(&self.graph.nodes[*one]).filter(absorbed).cloned(),
                _ => None,
            };
            let folds = self.fold.on_folded() && matches!(node.op, Op::Conv(_));
            let channels = weight.dims[axis];
            let bias_input = match shipped.input(2).and_then(|bias| self.placement.sites.get(bias)) {
                Some(Site::Bias { input, .. }) => Some(self.owner(input).to_string()),
                _ => None,
            };
            layers.push(Layer {
                trained: node.inputs[1].clone(),
                deployed: name.clone(),
                axis,
                channels,
                edge,
                norm,
                folds,
                bias: node.input(2).map(String::from),
                bias_input,
            });
        }
        Ok(layers)
    }

    /// The tensor whose grid `name` has.
    fn owner<'a>(&'a self, name: &'a str) -> &'a str {
        let mut name = name;
        // Placement makes no cycles.
        while let Some(Site::SameAs(other)) = self.placement.sites.get(name) {
            name = other;
        }
        name
    }

    /// What the tape is compiled with.
    pub fn config(&self, quantizers: &Quantizers, statistics: Statistics) -> Config {
        let fold = self.fold.on_folded();
        Config { quantizers: quantizers.all.clone(), statistics, fold, ..Config::default() }
    }

    /// Sets the numbers of weight quantizers from the weights.
    pub fn start_weights(&self, quantizers: &Quantizers, leaves: &mut Leaves) {
        for layer in &self.layers {
            let Some(quantizer) = quantizers.deployable.get(&layer.trained) else { continue };
            let Some(mut weight) = leaves.get(&layer.trained).map(<[f32]>::to_vec) else { continue };
            let dims = leaves.parameter(&layer.trained).map(|leaf| leaf.dims.clone()).unwrap_or_default();
            if layer.folds
                && let Some(factors) = self.factors(layer, leaves)
            {
                scale_rows(&mut weight, &factors);
            }
            let groups = quantizers.all[&layer.trained].groups;
            let learned = quantizer.learned();
            let Some(numbers) = leaves.get_mut(&quantizer_leaf(&layer.trained)) else { continue };
            for (g, numbers) in numbers.chunks_exact_mut(learned.max(1)).enumerate() {
                let group = group_of(&weight, &dims, layer.axis, groups, g);
                numbers.copy_from_slice(&quantizer.initial(&group)[..learned]);
            }
        }
    }

    /// `γ / √(σ² + ε)` of the BatchNormalization behind a layer.
    fn factors(&self, layer: &Layer, leaves: &Leaves) -> Option<Vec<f32>> {
        let norm = layer.norm.as_ref()?;
        let Op::BatchNormalization(op) = &norm.op else { return None };
        let gamma = leaves.get(norm.input(1)?)?;
        let variance = leaves.running.iter().find(|leaf| Some(&*leaf.name) == norm.input(4))?;
        let variance = &leaves.statistics[variance.range.clone()];
        Some(gamma.iter().zip(variance).map(|(g, v)| g / (v + op.epsilon).sqrt()).collect())
    }

    /// What the rows of the weight `trained` are multiplied with before they are rounded, where quantizers are on folded weights.
    pub fn folding(&self, trained: &str, leaves: &Leaves) -> Option<Vec<f32>> {
        self.factors(self.layers.iter().find(|layer| layer.folds && layer.trained == trained)?, leaves)
    }

    /// Keeps the scales of normalizations that ship in the layer before them from turning negative: that would mirror the
    /// codes of a weight that was rounded before the scale came in. NaN stays visible.
    pub fn project(&self, leaves: &mut Leaves) {
        for norm in self.layers.iter().filter_map(|layer| layer.norm.as_ref()) {
            let Some(gamma) = norm.input(1).and_then(|name| leaves.get_mut(name)) else { continue };
            gamma.iter_mut().filter(|g| **g < 0.0).for_each(|g| *g = 0.0);
        }
    }

    /// The float network with these leaves, as it is trained.
    pub fn float(&self, leaves: &Leaves) -> Graph {
        leaves.apply(&self.base)
    }
}

/// The elements of a weight that share one quantizer.
fn group_of(weight: &[f32], dims: &[usize], axis: usize, groups: usize, g: usize) -> Vec<f32> {
    if groups == 1 {
        return weight.to_vec();
    }
    let inner: usize = dims[axis + 1..].iter().product();
    weight.chunks_exact(inner.max(1)).skip(g).step_by(groups).flatten().copied().collect()
}

/// Multiplies each output channel (axis 0) by a factor.
pub(crate) fn scale_rows(weight: &mut [f32], factors: &[f32]) {
    let len = weight.len() / factors.len().max(1);
    for (row, factor) in weight.chunks_exact_mut(len.max(1)).zip(factors) {
        row.iter_mut().for_each(|w| *w *= factor);
    }
}
