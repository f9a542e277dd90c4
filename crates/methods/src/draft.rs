//! The quantized network in the making: what each method gets, changes and hands on.

use fewbits_graph::{Graph, Grids, Node, Op, QuantParams, Tensor, TensorQuant, exec::rounded_constant, op::Fact};
use fewbits_quant::{
    Stats,
    placement::{Placement, Site},
};
use std::{collections::BTreeMap, sync::Arc};

/// What methods look at and never change.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The float network that the quantized one should behave like.
    pub float: &'a Graph,
    /// Where grids are.
    pub placement: &'a Placement,
    /// Types and shapes of all tensors for one run.
    pub facts: &'a BTreeMap<String, Fact>,
    /// What calibration saw.
    pub stats: &'a Stats,
}

/// The network as it is quantized so far. Node for node it is [`Ground::float`]; constants differ.
///
/// A weight that a method has rounded holds `scale · code` exactly: rounding it once more to its grid gives the same codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// The network with the constants that are quantized.
    pub graph: Graph,
    /// Its grids.
    pub grids: Grids,
}

impl Draft {
    /// Replaces a constant.
    pub fn set_constant(&mut self, name: &str, tensor: Tensor) {
        self.graph.constants.insert(name.into(), Arc::new(tensor));
    }

    /// Replaces the grid of a tensor that has one of its own.
    pub fn set_params(&mut self, name: &str, params: QuantParams) {
        self.grids.0.insert(name.into(), TensorQuant::Quantized(params));
    }

    /// Gives the activation `name` another scale, but none with which its grid reaches beyond a Clip that it stands for: runtimes absorb
    /// the Clip only within its bounds.
    pub fn set_scale(&mut self, ground: &Ground<'_>, name: &str, scale: f32) {
        let Some(mut params) = self.grids.params(name).cloned() else { return };
        params.scale[0] = scale;
        if let Some(Site::Activation { bounds: Some((low, high)), .. }) = ground.placement.sites.get(name) {
            let (lowest, highest) = params.range(0);
            let shares = [low / lowest, high / highest].into_iter().filter(|share| *share > 0.0 && *share < 1.0);
            params.scale[0] *= shares.fold(1.0, f32::min);
            // What rounding leaves.
            for _ in 0..8 {
                let (lowest, highest) = params.range(0);
                if lowest >= *low && highest <= *high {
                    break;
                }
                params.scale[0] = params.scale[0].next_down();
            }
        }
        self.set_params(name, params);
    }

    /// A constant as its grid rounds it.
    pub fn rounded(&self, name: &str) -> Option<Arc<Tensor>> {
        Some(rounded_constant(name, self.graph.constants.get(name)?, &self.grids))
    }

    /// The constants that differ from `float`'s.
    pub fn patches(&self, float: &Graph) -> BTreeMap<String, Arc<Tensor>> {
        let differs = |(name, tensor): &(&String, &Arc<Tensor>)| {
            float.constant(name).is_none_or(|old| !Arc::ptr_eq(old, tensor) && old != *tensor)
        };
        self.graph.constants.iter().filter(differs).map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
    }
}

/// A layer whose constant weight has a grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Position of the node.
    pub node: usize,
    /// What it multiplies.
    pub input: String,
    /// Its weight.
    pub weight: String,
    /// Its constant bias.
    pub bias: Option<String>,
    /// What it writes, before any activation.
    pub output: String,
    /// Axis of the output channels in the weight.
    pub axis: usize,
    /// Of the first or last layers.
    pub edge: bool,
}

/// The layers of `graph` that `placement` quantizes, in graph order.
pub fn layers(graph: &Graph, placement: &Placement) -> Vec<Layer> {
    let layer = |(i, node): (usize, &Node)| {
        if !matches!(node.op, Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_) | Op::ConvTranspose(_)) {
            return None;
        }
        let weight = node.input(1)?;
        let Some(&Site::Weight { axis, ref input, ref bias, edge }) = placement.sites.get(weight) else { return None };
        let (input, bias) = (input.clone(), bias.clone());
        Some(Layer { node: i, input, weight: weight.into(), bias, output: node.output().into(), axis, edge })
    };
    graph.nodes.iter().enumerate().filter_map(layer).collect()
}
