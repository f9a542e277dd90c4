//! The gradient of a convolution with respect to its input.
//!
//! What enters: the gradient of the output, NHWC, and weights packed beforehand. What leaves: the gradient of the input, or
//! what it adds to it. An input pixel whose row is `p` modulo the stride (pads counted) is reached by every stride-th tap
//! only, so the pixels fall into phases, each of which is a convolution of the output's gradient with some of the taps, in
//! reverse order, and stride 1. Every number is `Σ dy·w` by fused multiply-adds in the order last to first kernel row, last
//! to first kernel column, output channel: equal to [`super::reference::conv2d_input_gradient`], but for depthwise
//! convolutions, whose taps go by in another order.

use std::ops::Range;

use super::conv::Epilogue;
use super::depthwise_backward::DepthwiseBackward;
use super::direct::{Direct, Places};
use super::sweep::Sweep;
use crate::simd::Isa;
use crate::{ConvGeometry, Threads};

/// The input gradient of a convolution, made ready but for the weights.
#[derive(Debug)]
pub struct InputGradient {
    geometry: ConvGeometry,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Direct {
        phases: Vec<Phase>,
        /// Whether some pixels are reached by no tap.
        gaps: bool,
    },
    Depthwise(DepthwiseBackward),
}

/// The pixels that the same taps reach.
#[derive(Debug)]
struct Phase {
    conv: Direct,
    axes: [Axis; 2],
    /// Its part of the packed weights.
    packed: Range<usize>,
}

/// A phase along one axis.
#[derive(Debug, Clone)]
struct Axis {
    /// Taps of the kernel, last first.
    taps: Vec<usize>,
    /// Output positions between the pixels of neighbouring taps.
    dilation: usize,
    /// First pixel.
    first: usize,
    /// Output position under the first tap at the first pixel.
    origin: isize,
}

/// The phases along an axis that some tap reaches.
fn axes(g: &ConvGeometry, axis: usize) -> Vec<Axis> {
    let (stride, dilation, pad) = (g.stride[axis], g.dilation[axis], g.pads[axis]);
    let phase = |phase: usize| {
        let taps: Vec<usize> = (0..g.kernel[axis]).rev().filter(|tap| tap * dilation % stride == phase).collect();
        let shifts: Vec<usize> = taps.iter().map(|tap| tap * dilation / stride).collect();
        let first = (phase + stride - pad % stride) % stride;
        let position = (first + pad) / stride;
        let dilation = if let [a, b, ..] = shifts[..] { a - b } else { 1 };
        Some(Axis { origin: position as isize - *shifts.first()? as isize, taps, dilation, first })
    };
    (0..stride).filter_map(phase).collect()
}

/// The phases of a convolution that is not depthwise.
fn phases(g: &ConvGeometry, isa: Isa) -> Vec<Phase> {
    let (rows, columns) = (axes(g, 0), axes(g, 1));
    let (mut phases, mut packed_len) = (Vec::new(), 0);
    for (row, column) in rows.iter().flat_map(|row| columns.iter().map(move |column| (row, column))) {
        let geometry = ConvGeometry {
            in_channels: g.out_channels,
            out_channels: g.in_channels,
            kernel: [row.taps.len(), column.taps.len()],
            stride: [1, 1],
            dilation: [row.dilation, column.dilation],
            pads: [0; 4],
            groups: g.groups,
        };
        let conv = Direct::new(&geometry, isa);
        let packed = packed_len..packed_len + conv.packed_len();
        packed_len = packed.end;
        phases.push(Phase { conv, axes: [row.clone(), column.clone()], packed });
    }
    phases
}

impl InputGradient {
    /// For this processor.
    ///
    /// # Panics
    /// If the geometry is not valid.
    pub fn new(geometry: &ConvGeometry) -> Self {
        Self::for_isa(Isa::best(), geometry)
    }

    /// For an instruction set.
    ///
    /// # Panics
    /// As [`InputGradient::new`].
    pub fn for_isa(isa: Isa, geometry: &ConvGeometry) -> Self {
        assert!(geometry.is_valid(), "a convolution has a valid geometry");
        let form = match geometry.is_depthwise() {
            true => Form::Depthwise(DepthwiseBackward::for_isa(isa, geometry)),
            false => {
                let phases = phases(geometry, isa);
                Form::Direct { gaps: phases.len() < geometry.stride[0] * geometry.stride[1], phases }
            }
        };
        InputGradient { geometry: *geometry, form }
    }

    /// How many numbers the packed weights are.
    pub fn packed_len(&self) -> usize {
        match &self.form {
            Form::Direct { phases, .. } => phases.last().map_or(0, |phase| phase.packed.end),
            Form::Depthwise(depthwise) => depthwise.packed_len(),
        }
    }

    /// Packs OIHW weights.
    ///
    /// # Panics
    /// If a slice does not have its length.
    pub fn pack(&self, weights: &[f32], packed: &mut [f32]) {
        assert_eq!(weights.len(), self.geometry.weight_len(), "weights have the geometry's length");
        let (inputs, taps) = (self.geometry.group_in(), self.geometry.kernel[0] * self.geometry.kernel[1]);
        self.pack_with(|o, c, tap| weights[(o * inputs + c) * taps + tap], packed);
    }

    /// Packs `weight(output channel, input channel within its group, tap)`.
    ///
    /// # Panics
    /// If `packed` does not have its length.
    pub fn pack_with(&self, weight: impl Fn(usize, usize, usize) -> f32, packed: &mut [f32]) {
        assert_eq!(packed.len(), self.packed_len(), "packed weights have their length");
        let g = &self.geometry;
        let (inputs, outputs) = (g.group_in(), g.group_out());
        let Form::Direct { phases, .. } = &self.form else {
            let channels = g.out_channels;
            return packed.iter_mut().enumerate().for_each(|(i, to)| *to = weight(i % channels, 0, i / channels));
        };
        for Phase { conv, axes: [rows, columns], packed: range } in phases {
            let width = columns.taps.len();
            let turned = |c: usize, o: usize, tap: usize| {
                let tap = rows.taps[tap / width] * g.kernel[1] + columns.taps[tap % width];
                weight(c / inputs * outputs + o, c % inputs, tap)
            };
            conv.pack(turned, &mut packed[range.clone()]);
        }
    }

    /// How many numbers of scratch [`InputGradient::run`] needs for images of shape `[n, h, w]` on `threads` threads.
    pub fn scratch_len(&self, threads: usize, shape: [usize; 3]) -> usize {
        let Form::Direct { phases, .. } = &self.form else { return 0 };
        let lens = phases.iter().map(|phase| {
            let (sweep, places) = phase.sweep(&self.geometry, shape);
            phase.conv.scratch_len(&sweep, &places)
        });
        threads * lens.max().unwrap_or(0)
    }

    /// The gradient for `n` images of `h` × `w`. With `add` it is added to what `dx` holds.
    ///
    /// Shapes: `dy: [n, output height, output width, out_channels]`, `dx: [n, h, w, in_channels]`.
    ///
    /// # Panics
    /// If a slice does not have its length, or `scratch` is too short.
    #[expect(clippy::too_many_arguments, reason = "a convolution, spelled out")]
    pub fn run(
        &self,
        threads: &Threads,
        shape: [usize; 3],
        packed: &[f32],
        dy: &[f32],
        add: bool,
        dx: &mut [f32],
        scratch: &mut [f32],
    ) {
        let [n, h, w] = shape;
        let g = &self.geometry;
        let [oh, ow] = g.output_size(h, w).expect("the kernel fits into the padded image");
        assert_eq!(packed.len(), self.packed_len(), "packed weights have their length");
        assert_eq!(dy.len(), n * oh * ow * g.out_channels, "the output's gradient has the output's shape");
        assert_eq!(dx.len(), n * h * w * g.in_channels, "the input's gradient has the input's shape");
        let (phases, gaps) = match &self.form {
            Form::Direct { phases, gaps } => (phases, *gaps),
            Form::Depthwise(depthwise) => return depthwise.input_gradient(shape, packed, dy, add, dx),
        };
        if gaps && !add {
            dx.fill(0.0);
        }
        for phase in phases {
            let (sweep, places) = phase.sweep(g, shape);
            if sweep.images * sweep.output[0] * sweep.output[1] > 0 {
                let packed = &packed[phase.packed.clone()];
                phase.conv.run(threads, &sweep, packed, dy, &Epilogue::NONE, &places, add, dx, scratch);
            }
        }
    }
}

impl Phase {
    /// The pixels of this phase: what they read and where they lie.
    fn sweep(&self, g: &ConvGeometry, shape: [usize; 3]) -> (Sweep, Places) {
        let [n, h, w] = shape;
        let [row, column] = &self.axes;
        let count = |size: usize, axis: usize| size.saturating_sub(self.axes[axis].first).div_ceil(g.stride[axis]);
        let extent = |axis: &Axis| (axis.taps.len() - 1) * axis.dilation + 1;
        let sweep = Sweep {
            images: n,
            input: g.output_size(h, w).unwrap_or([0, 0]),
            channels: g.out_channels,
            origin: [row.origin, column.origin],
            stride: [1, 1],
            extent: [extent(row), extent(column)],
            output: [count(h, 0), count(w, 1)],
            pixelwise: g.is_pointwise(),
        };
        let places = Places {
            first: (row.first * w + column.first) * g.in_channels,
            image: h * w * g.in_channels,
            row: g.stride[0] * w * g.in_channels,
            column: g.stride[1] * g.in_channels,
        };
        (sweep, places)
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::{self, cases};
    use super::*;

    #[test]
    fn equals_the_reference() {
        for (g, shape) in cases::convolutions() {
            let [n, h, w] = shape;
            let [oh, ow] = g.output_size(h, w).expect("cases fit");
            let weights = cases::numbers(g.weight_len(), 1);
            let dy = cases::numbers(n * oh * ow * g.out_channels, 2);
            let before = cases::numbers(n * h * w * g.in_channels, 3);
            let gradient = reference::conv2d_input_gradient(&g, &weights, shape, &dy);
            let sum: Vec<f32> = gradient.iter().zip(&before).map(|(a, b)| a + b).collect();
            for isa in Isa::available() {
                let conv = InputGradient::for_isa(isa, &g);
                let mut packed = vec![f32::NAN; conv.packed_len()];
                conv.pack(&weights, &mut packed);
                for (count, add, expected) in [(1, false, &gradient), (3, false, &gradient), (1, true, &sum)] {
                    let mut scratch = vec![f32::NAN; conv.scratch_len(count, shape)];
                    let mut dx = if add { before.clone() } else { vec![f32::NAN; before.len()] };
                    conv.run(&Threads::new(count), shape, &packed, &dy, add, &mut dx, &mut scratch);
                    // Depthwise sums are in another order.
                    let tolerance = if g.is_depthwise() { 1e-5 } else { 0.0 };
                    let wrong = dx.iter().zip(expected).position(|(a, b)| (a - b).abs() > tolerance || a.is_nan());
                    assert_eq!(wrong, None, "{g:?} {shape:?} {isa:?} {count} threads, add {add}");
                }
            }
        }
    }
}
