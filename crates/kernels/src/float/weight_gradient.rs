//! The gradient of a convolution with respect to its weights.
//!
//! What enters: the input and the gradient of the output, NHWC. What leaves: what they add to a sum in a form of its own,
//! which is brought into the weights' order once all images have been added. It runs on the caller's thread alone: a batch is
//! shared out by images. Equal to [`super::reference::conv2d_weight_gradient`] but for the order of sums.

#![expect(clippy::needless_range_loop, reason = "loops over constant counts, which the compiler unrolls")]

use super::depthwise_backward::DepthwiseBackward;
use super::sweep::{Runs, Sweep};
use crate::ConvGeometry;
use crate::simd::{Isa, Kernel, Simd};

/// Numbers of input and gradient in a band, which should stay in the caches while all tiles of sums go by.
const BAND_LEN: usize = 16 * 1024;
/// Fewest positions that are worth reading and writing all sums for.
const BAND_POSITIONS: usize = 96;

/// Output channels that are unpacked together.
const UNPACKED: usize = 16;

/// The weight gradient of a convolution.
///
/// The form is `[group][tap][input channel][output channel]`, the last axis filled up to whole vectors; for a depthwise
/// convolution `[tap][channel]`.
#[derive(Debug)]
pub struct WeightGradient {
    geometry: ConvGeometry,
    isa: Isa,
    /// Output channels of a group, filled up to whole vectors.
    width: usize,
    /// Vectors of output channels in a tile, but for the last.
    vectors: usize,
    depthwise: Option<DepthwiseBackward>,
}

impl WeightGradient {
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
    /// As [`WeightGradient::new`].
    pub fn for_isa(isa: Isa, geometry: &ConvGeometry) -> Self {
        assert!(geometry.is_valid(), "a convolution has a valid geometry");
        let vectors = geometry.group_out().div_ceil(isa.lanes());
        let wide = if isa.registers() >= 32 && vectors.is_multiple_of(3) { 3 } else { 2 };
        WeightGradient {
            geometry: *geometry,
            isa,
            width: vectors * isa.lanes(),
            vectors: if isa.registers() >= 16 { wide.min(vectors) } else { 1 },
            depthwise: geometry.is_depthwise().then(|| DepthwiseBackward::for_isa(isa, geometry)),
        }
    }

    /// Numbers of the form.
    pub fn form_len(&self) -> usize {
        let g = &self.geometry;
        let width = if self.depthwise.is_some() { 1 } else { self.width };
        g.in_channels * g.kernel[0] * g.kernel[1] * width
    }

    /// Brings the form into the order OIHW.
    ///
    /// # Panics
    /// If a slice does not have its length.
    pub fn unpack(&self, form: &[f32], weights: &mut [f32]) {
        assert_eq!(weights.len(), self.geometry.weight_len(), "weights have the geometry's length");
        let (inputs, taps) = (self.geometry.group_in(), self.geometry.kernel[0] * self.geometry.kernel[1]);
        self.unpack_with(form, |o, c, tap, sum| weights[(o * inputs + c) * taps + tap] = sum);
    }

    /// Calls `put(output channel, input channel within its group, tap, sum)` for every weight.
    ///
    /// # Panics
    /// If the form does not have its length.
    pub fn unpack_with(&self, form: &[f32], mut put: impl FnMut(usize, usize, usize, f32)) {
        assert_eq!(form.len(), self.form_len(), "the form has its length");
        let (inputs, outputs) = (self.geometry.group_in(), self.geometry.group_out());
        let taps = self.geometry.kernel[0] * self.geometry.kernel[1];
        if self.depthwise.is_some() {
            let channels = self.geometry.out_channels;
            return form.iter().enumerate().for_each(|(i, &sum)| put(i % channels, 0, i / channels, sum));
        }
        // Few output channels at a time: the places that they are put to are far apart, and should stay in the cache.
        for first in (0..outputs).step_by(UNPACKED) {
            for (i, row) in form.chunks_exact(self.width).enumerate() {
                let (group, tap, c) = (i / inputs / taps, i / inputs % taps, i % inputs);
                for (o, &sum) in row[..outputs].iter().enumerate().skip(first).take(UNPACKED) {
                    put(group * outputs + o, c, tap, sum);
                }
            }
        }
    }

    /// How many rows of positions a band has (positions, where the work is one long row).
    fn band(&self, sweep: &Sweep) -> usize {
        let g = &self.geometry;
        let row = sweep.output[1].max(1);
        let (inputs, outputs) = (g.in_channels * g.stride[0] * g.stride[1], g.out_channels);
        // Every band reads and writes the whole form: it should not be much longer than the band.
        let len = BAND_LEN.max(self.form_len() / 2);
        let positions = (len / (inputs + outputs)).max(BAND_POSITIONS);
        if sweep.pixelwise { positions } else { positions.div_ceil(row).min(sweep.output[0]) }
    }

    /// How many numbers of scratch [`WeightGradient::run`] needs for images of shape `[n, h, w]`.
    pub fn scratch_len(&self, shape: [usize; 3]) -> usize {
        let sweep = Sweep::new(&self.geometry, shape);
        if self.depthwise.is_none() && sweep.needs_zeros() { sweep.band_len(self.band(&sweep)) } else { 0 }
    }

    /// Adds `Σ x[window of p, c] · dy[p, o]` over all positions `p` of `n` images of `h` × `w`.
    ///
    /// Shapes: `x: [n, h, w, in_channels]`, `dy: [n, output height, output width, out_channels]`.
    ///
    /// # Panics
    /// If a slice does not have its length, or `scratch` is too short.
    pub fn run(&self, shape: [usize; 3], x: &[f32], dy: &[f32], form: &mut [f32], scratch: &mut [f32]) {
        let [n, h, w] = shape;
        let g = &self.geometry;
        let [oh, ow] = g.output_size(h, w).expect("the kernel fits into the padded image");
        assert_eq!(x.len(), n * h * w * g.in_channels, "the input has the given shape");
        assert_eq!(dy.len(), n * oh * ow * g.out_channels, "the output's gradient has the output's shape");
        assert_eq!(form.len(), self.form_len(), "the form has its length");
        if let Some(depthwise) = &self.depthwise {
            return depthwise.weight_gradient(shape, x, dy, form);
        }
        let sweep = Sweep::new(g, shape);
        let step = self.band(&sweep);
        let [images, length] = if sweep.pixelwise { [1, n * oh * ow] } else { [n, oh] };
        for image in 0..images {
            for start in (0..length).step_by(step) {
                let count = step.min(length - start);
                let (x, row, first, [height, width]) = if sweep.pixelwise {
                    (&x[start * g.in_channels..], 0, start, [1, count])
                } else {
                    let (x, row) = sweep.band(x, image, start, count, scratch);
                    (x, row, (image * oh + start) * ow, [count, ow])
                };
                self.isa.dispatch(Band {
                    plan: self,
                    runs: Runs::new(g, row),
                    positions: Positions {
                        height,
                        width,
                        x_row: row * g.stride[0],
                        x_pitch: g.stride[1] * g.in_channels,
                        dy_pitch: g.out_channels,
                    },
                    x,
                    dy: &dy[first * g.out_channels..][..height * width * g.out_channels],
                    form,
                });
            }
        }
    }
}

/// The positions of a band, the same for all tiles.
#[derive(Clone, Copy)]
struct Positions {
    height: usize,
    width: usize,
    /// Input numbers between rows of positions and between positions.
    x_row: usize,
    x_pitch: usize,
    /// Gradient numbers between positions, without gaps between rows.
    dy_pitch: usize,
}

/// Some rows of positions of one image, for all sums.
struct Band<'a> {
    plan: &'a WeightGradient,
    runs: Runs,
    positions: Positions,
    x: &'a [f32],
    dy: &'a [f32],
    form: &'a mut [f32],
}

/// Most rows of a tile, whose sums, a row of gradients and an input are in registers.
const fn longest(registers: usize, vectors: usize) -> usize {
    match (registers, vectors) {
        (32.., 3) => 9,
        (32.., 2) => 14,
        (32.., _) => 16,
        (16.., 2) => 6,
        (16.., _) => 12,
        _ => 6,
    }
}

impl Kernel for Band<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Band { plan, runs, positions, x, dy, form } = self;
        let g = &plan.geometry;
        let outputs = g.group_out();
        let parts = runs.len.div_ceil(longest(S::REGISTERS, plan.vectors));
        let rows = runs.rows * runs.columns;
        for group in 0..g.groups {
            for first in (0..outputs).step_by(plan.vectors * S::LANES) {
                for run in 0..rows {
                    let offset = run / runs.columns * runs.row_step + run % runs.columns * runs.column_step;
                    for part in 0..parts {
                        // As equal parts as can be.
                        let [k, end] = [part, part + 1].map(|part| runs.len * part / parts);
                        // SAFETY: the run of every position lies within `x`, its gradients within `dy`, and the tile
                        // within the form, by the lengths that `run` checked.
                        unsafe {
                            let at = At {
                                x: x.as_ptr().add(group * g.group_in() + offset + k),
                                dy: dy.as_ptr().add(group * outputs + first),
                                channels: (outputs - first).min(plan.vectors * S::LANES),
                                form: form.as_mut_ptr().add(((group * rows + run) * runs.len + k) * plan.width + first),
                                width: plan.width,
                            };
                            tile_of(s, end - k, positions, at);
                        }
                    }
                }
            }
        }
    }
}

/// Where a tile's input, gradients and sums start.
#[derive(Clone, Copy)]
struct At {
    x: *const f32,
    dy: *const f32,
    /// Real output channels: the rest of the last vector is padding.
    channels: usize,
    form: *mut f32,
    /// Numbers between rows of the form.
    width: usize,
}

/// Adds to the sums of `K` neighbouring inputs by `V` vectors of output channels.
struct Tile<const V: usize, const K: usize>(Positions, At);

impl<const V: usize, const K: usize> Kernel for Tile<V, K> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tile(positions, at) = self;
        // SAFETY: made only by `tile_of`, whose caller promised this.
        unsafe {
            let tail = at.channels - (V - 1) * S::LANES;
            let sums = match tail == S::LANES {
                true => products::<S, V, K, true>(s, positions, at, tail),
                false => products::<S, V, K, false>(s, positions, at, tail),
            };
            for k in 0..K {
                for v in 0..V {
                    let to = at.form.add(k * at.width + v * S::LANES);
                    s.store(to, s.add(s.load(to), sums[k][v]));
                }
            }
        }
    }
}

/// The sums of a tile over all positions.
///
/// # Safety
/// All positions are readable: `K` inputs and `tail` gradients more than `V - 1` vectors, `WHOLE` if that is `V` vectors.
#[inline(always)]
unsafe fn products<S: Simd, const V: usize, const K: usize, const WHOLE: bool>(
    s: S,
    positions: Positions,
    at: At,
    tail: usize,
) -> [[S::F32; V]; K] {
    let zero = s.splat(0.0);
    let mut sums = [[zero; V]; K];
    let mut dy = at.dy;
    for row in 0..positions.height {
        let mut x = at.x.wrapping_add(row * positions.x_row);
        for _ in 0..positions.width {
            // SAFETY: the caller's promise.
            unsafe {
                let mut gradient = [zero; V];
                for v in 0..V {
                    let from = dy.add(v * S::LANES);
                    gradient[v] = if WHOLE || v + 1 < V { s.load(from) } else { s.load_head(from, tail) };
                }
                for k in 0..K {
                    let value = s.splat(*x.add(k));
                    for v in 0..V {
                        sums[k][v] = s.fma(value, gradient[v], sums[k][v]);
                    }
                }
            }
            x = x.wrapping_add(positions.x_pitch);
            dy = dy.wrapping_add(positions.dy_pitch);
        }
    }
    sums
}

/// [`Tile`] for numbers of inputs and vectors known only at run time.
///
/// # Safety
/// All positions are readable for `rows` inputs and the channels, the form is writable; `rows` is at most [`longest`].
#[inline(always)]
unsafe fn tile_of<S: Simd>(s: S, rows: usize, positions: Positions, at: At) {
    macro_rules! by_rows {
        ($v:literal, $($k:literal)*) => {
            match rows {
                $($k if $k <= longest(S::REGISTERS, $v) => s.call(Tile::<$v, $k>(positions, at)),)*
                _ => debug_assert!(false, "a tile has 1 to {} rows", longest(S::REGISTERS, $v)),
            }
        };
    }
    match at.channels.div_ceil(S::LANES) {
        3 if S::REGISTERS >= 32 => by_rows!(3, 1 2 3 4 5 6 7 8 9),
        2 if S::REGISTERS >= 16 => by_rows!(2, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        1 => by_rows!(1, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16),
        n => debug_assert!(false, "a tile has 1 to 3 vectors, not {n}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::{self, cases};
    use super::*;

    #[test]
    fn equals_the_reference_but_for_the_order_of_sums() {
        for (g, shape) in cases::convolutions() {
            let [n, h, w] = shape;
            let [oh, ow] = g.output_size(h, w).expect("cases fit");
            let x = cases::numbers(n * h * w * g.in_channels, 1);
            let dy = cases::numbers(n * oh * ow * g.out_channels, 2);
            let expected = reference::conv2d_weight_gradient(&g, shape, &x, &dy);
            for isa in Isa::available() {
                let gradient = WeightGradient::for_isa(isa, &g);
                let mut form = vec![0.0; gradient.form_len()];
                let mut scratch = vec![f32::NAN; gradient.scratch_len(shape)];
                for _ in 0..2 {
                    gradient.run(shape, &x, &dy, &mut form, &mut scratch);
                }
                let mut weights = vec![f32::NAN; g.weight_len()];
                gradient.unpack(&form, &mut weights);
                // Sums of n products below 1 stay around √n, and n roundings add up likewise.
                let terms = (2 * n * oh * ow) as f32;
                let tolerance = f64::from(terms * f32::EPSILON);
                for (i, (&sum, &exact)) in weights.iter().zip(&expected).enumerate() {
                    let error = (f64::from(sum) - 2.0 * exact).abs();
                    assert!(error <= tolerance, "{g:?} {shape:?} {isa:?}: weight {i} is {sum}, not {}", 2.0 * exact);
                }
            }
        }
    }
}
