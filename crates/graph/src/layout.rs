//! Memory orders of images, and how they spread from node to node.

use crate::{graph::Node, op::Role};

/// Order of the elements in memory. Dimensions are always stated in the logical (ONNX) order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// Row-major in the logical order (NCHW for images).
    #[default]
    Plain,
    /// The channel axis 1 moved to the end: `[N, C, H, W]` is stored as N, H, W, C. Rank 3 or more.
    ChannelsLast,
}

impl Layout {
    /// Where the logical `axis` of a tensor of rank `rank` stands in memory.
    pub fn physical_axis(self, axis: usize, rank: usize) -> usize {
        match (self, axis) {
            (Layout::Plain, a) | (Layout::ChannelsLast, a @ 0) => a,
            (Layout::ChannelsLast, 1) => rank - 1,
            (Layout::ChannelsLast, a) => a - 1,
        }
    }

    /// Dimensions in the order of memory.
    pub fn physical_dims(self, dims: &[usize]) -> Vec<usize> {
        let mut physical = vec![0; dims.len()];
        for (axis, &d) in dims.iter().enumerate() {
            physical[self.physical_axis(axis, dims.len())] = d;
        }
        physical
    }
}

/// What an operator's file says about memory order; the executor inserts the conversions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutRule {
    /// Inputs and outputs row-major in the logical order.
    Plain,
    /// The first input and every output channels-last; the other inputs are constants or plain.
    ChannelsLast,
    /// Works in either order: all tensors of the output's rank share one order, which the executor chooses.
    /// Lower-rank inputs are seen as broadcast from the right; the executor gives them leading ones up to that rank.
    Any,
}

/// The memory order of the node's main input and its outputs. `rank` of a tensor, and whether it exists with the channels `last`.
pub(crate) fn of_node(node: &Node, rank: impl Fn(&str) -> usize, last: impl Fn(&str) -> bool) -> Layout {
    let last = match node.op.def().layout() {
        LayoutRule::ChannelsLast => rank(&node.inputs[0]) >= 3,
        LayoutRule::Any => {
            let common = rank(node.output());
            common >= 3 && node.present_inputs().any(|name| rank(name) == common && last(name))
        }
        LayoutRule::Plain => false,
    };
    if last { Layout::ChannelsLast } else { Layout::Plain }
}

/// The memory order that input `i`, of rank `rank`, takes when the node works in `layout`.
pub(crate) fn of_input(node: &Node, i: usize, rank: usize, layout: Layout) -> Layout {
    let follows = match node.op.def().layout() {
        LayoutRule::Plain => false,
        LayoutRule::ChannelsLast => i == 0,
        LayoutRule::Any => rank >= 3 || node.op.def().quant_rule().role(i) == Role::Data,
    };
    if follows { layout } else { Layout::Plain }
}
