//! A border of zeros that only convolutions read becomes their padding: runtimes pad in float, but convolve codes with the code of zero
//! around them.

use crate::{
    error::GraphError,
    graph::{Graph, Node},
    op::Op,
    ops::{Conv, window::AutoPad},
};
use fewbits_kernels::movement::PadMode;

pub(super) fn into_convolutions(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut moved = 0;
    for pad in 0..graph.nodes.len() {
        let Some(changed) = padded_readers(graph, pad) else { continue };
        let (input, output) = (graph.nodes[pad].inputs[0].clone(), graph.nodes[pad].output().to_string());
        for (reader, conv) in changed {
            graph.nodes[reader].op = conv.into();
        }
        graph.redirect(&output, &input);
        moved += 1;
    }
    Ok(moved)
}

/// The readers of the node `pad` with its border as their own padding; `None` unless it is a border of zeros around images that only
/// convolutions read.
fn padded_readers(graph: &Graph, pad: usize) -> Option<Vec<(usize, Conv)>> {
    let node = &graph.nodes[pad];
    let Op::Pad(op) = &node.op else { return None };
    let zero = node.input(2).is_none_or(|v| graph.constant(v).and_then(|t| t.scalar_f32()) == Some(0.0));
    let output = node.output();
    if op.mode != PadMode::Constant || !zero || graph.is_output(output) {
        return None;
    }
    let reads = |n: &Node| n.present_inputs().any(|input| input == output);
    let readers: Vec<usize> = (0..graph.nodes.len()).filter(|&i| reads(&graph.nodes[i])).collect();
    let changed: Option<Vec<_>> =
        readers.into_iter().map(|i| Some((i, padded(graph, node, &graph.nodes[i])?))).collect();
    changed.filter(|changed| !changed.is_empty())
}

/// The convolution of `reader` with the border of `pad` added to its padding.
fn padded(graph: &Graph, pad: &Node, reader: &Node) -> Option<Conv> {
    let Op::Conv(conv) = &reader.op else { return None };
    let rank = graph.constant(reader.input(1)?)?.dims.len();
    let data_only = reader.inputs[0] == pad.output() && reader.inputs[1..].iter().all(|name| name != pad.output());
    let border = spatial_border(graph, pad, rank)?;
    let mut conv = conv.clone();
    let own = match conv.window.auto_pad {
        AutoPad::NotSet if !conv.window.pads.is_empty() => conv.window.pads.clone(),
        AutoPad::NotSet | AutoPad::Valid => vec![0; border.len()],
        AutoPad::SameUpper | AutoPad::SameLower => return None,
    };
    if own.len() != border.len() || !data_only {
        return None;
    }
    conv.window.auto_pad = AutoPad::NotSet;
    conv.window.pads = own.iter().zip(&border).map(|(own, border)| own + border).collect();
    Some(conv)
}

/// What the node `pad` adds to the spatial axes of a tensor of `rank` axes, all starts before all ends; `None` if it cuts something off
/// or changes another axis.
fn spatial_border(graph: &Graph, pad: &Node, rank: usize) -> Option<Vec<usize>> {
    let pads = graph.constant(pad.input(1)?)?.to_i64()?;
    let axes = match pad.input(3) {
        Some(axes) => graph.constant(axes)?.to_i64()?,
        None => (0..rank as i64).collect(),
    };
    if pads.len() != 2 * axes.len() || rank < 3 {
        return None;
    }
    let spatial = rank - 2;
    let mut border = vec![0; 2 * spatial];
    for (i, axis) in axes.iter().enumerate() {
        let axis = usize::try_from(if *axis < 0 { axis + rank as i64 } else { *axis }).ok()?;
        for (end, amount) in [pads[i], pads[axes.len() + i]].into_iter().enumerate() {
            let amount = usize::try_from(amount).ok().filter(|&n| n <= i32::MAX as usize)?;
            match axis.checked_sub(2) {
                Some(axis) if axis < spatial => border[end * spatial + axis] += amount,
                _ if amount > 0 => return None,
                _ => {}
            }
        }
    }
    Some(border)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Maker;
    use super::*;
    use crate::{
        ops::{MaxPool, Pad, window::Window},
        tensor::Tensor,
    };

    /// A border of `pads` around `x`, which a convolution and, if asked for, a pool read.
    fn network(pads: &[i64], value: f32, pooled: bool) -> Graph {
        let mut maker = Maker::default();
        maker.constant("pads", Tensor::i64(&[pads.len()], pads.to_vec()));
        maker.constant("value", Tensor::f32(&[], vec![value]));
        maker.node(Pad { mode: PadMode::Constant }, &["x", "pads", "value"], "p");
        maker.conv("p", "c", [4, 3, 3, 3]);
        if pooled {
            let pool = MaxPool { window: Window::square(2, 1, 0), ceil_mode: false, column_major: false };
            maker.node(pool, &["p"], "m");
            maker.conv("m", "d", [4, 3, 2, 2]);
            maker.node(crate::ops::Add, &["c", "d"], "y");
        }
        maker.graph(if pooled { "y" } else { "c" })
    }

    fn borders(graph: &Graph) -> usize {
        graph.nodes.iter().filter(|n| matches!(n.op, Op::Pad(_))).count()
    }

    #[test]
    fn only_zeros_around_images_that_convolutions_read_become_padding() {
        let graph = network(&[0, 0, 1, 2, 0, 0, 0, 3], 0.0, false);
        let Op::Conv(conv) = &graph.nodes[0].op else { panic!("{:?}", graph.nodes) };
        assert_eq!(conv.window.pads, [1, 2, 0, 3]);
        assert_eq!(borders(&graph), 0);
        for (pads, value, pooled) in [
            ([0, 0, 1, 1, 0, 0, 1, 1], 0.5, false),
            ([1, 0, 1, 1, 0, 0, 1, 1], 0.0, false),
            ([0, 0, 1, -1, 0, 0, 1, 1], 0.0, false),
            ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, true),
        ] {
            assert_eq!(borders(&network(&pads, value, pooled)), 1, "{pads:?} {value} {pooled}");
        }
    }
}
