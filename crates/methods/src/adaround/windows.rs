//! What a layer learns from: windows of its output, with the part of the input that they are computed from.
//!
//! What enters: the walk before a block, and a layer of the block. What leaves: for every sample some windows at random places, inputs on
//! both sides and float outputs. Neighbouring positions of a large output say much the same, so that a few windows of each sample
//! teach as much as all of it, in a fraction of time and memory.

use crate::{
    Draft, Layer, MethodError, Walk,
    reconstruction::{Examples, pick},
    walk::{Run, Side, Store},
};
use fewbits_graph::{
    Graph, Op, Tensor,
    exec::Mode,
    ops::window::{AutoPad, Frame, Window},
};
use std::sync::Arc;

/// Most positions of a window, along each axis.
const SIDE: usize = 8;
/// Most windows of a sample.
const PER_SAMPLE: usize = 4;

/// Names under which the three tensors of an example are kept.
const KEPT: [&str; 3] = ["target", "quantized", "float"];

/// Windows of a layer; without a place to look at, whole inputs and outputs.
pub struct Windows {
    frame: Option<Frame>,
    per_sample: usize,
    seed: u64,
    store: Store,
}

impl Windows {
    /// The windows of `layer`, and the computation of one from its input. `part` is that of the whole `output` from the layer's input.
    ///
    /// # Errors
    /// Errors of the walk and of the network.
    pub fn of(
        walk: &Walk<'_>,
        draft: &Draft,
        layer: &Layer,
        (part, output): (Graph, &str),
        seed: u64,
    ) -> Result<(Self, Graph), MethodError> {
        let (frame, part) = match frame(walk, layer, &part) {
            Some(frame) => (Some(frame), unpadded(part)),
            None => (None, part),
        };
        let positions = |f: Frame| (f.output[0] * f.output[1]).div_ceil(SIDE * SIDE).clamp(1, PER_SAMPLE);
        let per_sample = frame.map_or(1, positions);
        let mut store = walk.store(walk.samples() * per_sample);
        KEPT.iter().for_each(|name| store.open(name));
        let windows = Windows { frame, per_sample, seed, store };
        windows.fill(walk, draft, layer, output)?;
        Ok((windows, part))
    }

    fn fill(&self, walk: &Walk<'_>, draft: &Draft, layer: &Layer, output: &str) -> Result<(), MethodError> {
        let Some(block) = walk.block() else { return Ok(()) };
        let given = block.inputs.iter().position(|name| *name == layer.input);
        let float = walk.ground().float;
        let target = block.part(float, &[output])?;
        let inputs = [block.part(&draft.graph, &[&layer.input])?, block.part(float, &[&layer.input])?];
        let mut runs = vec![Run { side: Side::Float, part: &target, mode: Mode::Float }];
        if given.is_none() {
            runs.push(Run { side: Side::Quantized, part: &inputs[0], mode: Mode::FakeQuant(&draft.grids) });
            runs.push(Run { side: Side::Float, part: &inputs[1], mode: Mode::Float });
        }
        let keep = |(): &mut (), sample: usize, outputs: Vec<Vec<Tensor>>| -> Result<(), MethodError> {
            let mut tensors: Vec<Arc<Tensor>> = outputs.into_iter().flatten().map(Arc::new).collect();
            if let Some(i) = given {
                tensors.push(walk.inputs(Side::Quantized, sample)?.swap_remove(i));
                tensors.push(walk.inputs(Side::Float, sample)?.swap_remove(i));
            }
            for example in sample * self.per_sample..(sample + 1) * self.per_sample {
                for (name, tensor) in KEPT.iter().zip(&tensors) {
                    self.store.put(name, example, self.cut(tensor, example, *name == KEPT[0]))?;
                }
            }
            Ok(())
        };
        walk.each(&runs, 0..walk.samples(), walk.threads().count(), || (), keep)?;
        Ok(())
    }

    /// What `example` has of `tensor`, the layer's output or input.
    fn cut(&self, tensor: &Tensor, example: usize, is_output: bool) -> Tensor {
        let Some(frame) = self.frame else { return tensor.clone() };
        let axis = |axis: usize| {
            let size = frame.output[axis].min(SIDE);
            let from = pick(self.seed, example, axis, frame.output[axis] - size + 1);
            let extent = frame.dilation[axis] * (frame.kernel[axis] - 1) + 1;
            if is_output {
                (from as isize, size)
            } else {
                (
                    (from * frame.stride[axis]) as isize - frame.pads[axis] as isize,
                    (size - 1) * frame.stride[axis] + extent,
                )
            }
        };
        crop(tensor, [axis(0), axis(1)])
    }
}

/// The layer's frame, if the layer is an image convolution, alone or with an activation behind it.
fn frame(walk: &Walk<'_>, layer: &Layer, part: &Graph) -> Option<Frame> {
    let node = &walk.ground().float.nodes[layer.node];
    let Op::Conv(conv) = &node.op else { return None };
    let (input, weight) = (walk.ground().facts.get(&layer.input)?, part.constant(&layer.weight)?);
    let direct = node.input(0) == Some(&layer.input) && part.nodes.len() <= 2 && input.dims.len() == 4;
    direct.then(|| conv.window.frame(&input.dims[2..], &weight.dims[2..], false).ok()).flatten()
}

/// `part` for inputs that have their padding already.
fn unpadded(mut part: Graph) -> Graph {
    for node in &mut part.nodes {
        if let Op::Conv(conv) = &mut node.op {
            conv.window = Window { pads: vec![], auto_pad: AutoPad::NotSet, ..conv.window.clone() };
        }
    }
    part
}

/// `size` rows and columns of `tensor` (`[N, C, H, W]`) from `from` on; 0 where there are none.
fn crop(tensor: &Tensor, [rows, columns]: [(isize, usize); 2]) -> Tensor {
    let (&[images, channels, height, width], Some(values)) = (&tensor.dims[..], tensor.as_f32()) else {
        return tensor.clone();
    };
    let mut cut = vec![0.0; images * channels * rows.1 * columns.1];
    // What of the columns is within the tensor.
    let first = columns.0.clamp(0, width as isize);
    let last = (columns.0 + columns.1 as isize).clamp(first, width as isize);
    let (within, skipped) = (first as usize..last as usize, (first - columns.0) as usize);
    let planes = values.chunks_exact(height * width).zip(cut.chunks_exact_mut(rows.1 * columns.1));
    for (plane, cut) in planes {
        for (y, row) in (rows.0..).zip(cut.chunks_exact_mut(columns.1)) {
            if (0..height as isize).contains(&y) {
                row[skipped..][..within.len()].copy_from_slice(&plane[y as usize * width..][within.clone()]);
            }
        }
    }
    Tensor::f32(&[images, channels, rows.1, columns.1], cut)
}

impl Examples for Windows {
    fn per_sample(&self) -> usize {
        self.per_sample
    }

    fn inputs(&self, side: Side, example: usize) -> Result<Vec<Arc<Tensor>>, MethodError> {
        Ok(vec![self.store.get(KEPT[1 + usize::from(side == Side::Float)], example)?])
    }

    fn targets(&self, example: usize) -> Result<Vec<Arc<Tensor>>, MethodError> {
        Ok(vec![self.store.get(KEPT[0], example)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_beyond_the_border_is_zero() {
        let image = Tensor::f32(&[1, 1, 2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(crop(&image, [(0, 2), (1, 2)]).as_f32().unwrap(), [2.0, 3.0, 5.0, 6.0]);
        let around = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 6.0];
        assert_eq!(crop(&image, [(-1, 3), (-1, 4)]).as_f32().unwrap(), around);
        assert_eq!(crop(&image, [(1, 2), (2, 2)]).as_f32().unwrap(), [6.0, 0.0, 0.0, 0.0]);
    }
}
