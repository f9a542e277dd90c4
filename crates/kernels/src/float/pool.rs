//! Pooling over windows of an NHWC image.
//!
//! What enters: an image, a window, and the output size that the caller computed (ceil or floor). What leaves: one number per
//! channel and window. A window adds its numbers row by row from left to right.

use super::Shared;
use super::global_average::global_average;
use crate::Threads;
use crate::simd::{Isa, Kernel, Simd};

/// What is taken from a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The largest number inside the image.
    Max,
    /// The sum divided by the number of elements inside the image.
    Average,
    /// The sum divided by the number of elements inside the padded image.
    AverageWithPads,
}

/// A window and its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolGeometry {
    /// Window height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step between windows.
    pub stride: [usize; 2],
    /// Vertical and horizontal step between elements of a window.
    pub dilation: [usize; 2],
    /// Rows and columns added at the top, left, bottom and right.
    pub pads: [usize; 4],
}

impl PoolGeometry {
    /// Indices inside `0..size` that the window at `out` covers along axis `i`, as `(first, count)`, and how many of its
    /// elements lie inside the padded axis.
    pub(super) fn span(&self, i: usize, out: usize, size: usize) -> ([usize; 2], usize) {
        let (d, k, before) = (self.dilation[i], self.kernel[i], self.pads[i]);
        let start = out * self.stride[i];
        let skipped = before.saturating_sub(start).div_ceil(d).min(k);
        let inside = |end: usize| end.saturating_sub(start).div_ceil(d).min(k);
        let first = (start + skipped * d).saturating_sub(before);
        ([first, inside(before + size).saturating_sub(skipped)], inside(before + size + self.pads[i + 2]))
    }
}

/// Pools `x: [n, h, w, c]` to `y: [n, out[0], out[1], c]`. A window without any element gives -infinity for `Max` and 0 for
/// averages.
///
/// # Panics
/// If a slice does not have its length.
pub fn pool(
    threads: &Threads,
    pooling: Pooling,
    geometry: &PoolGeometry,
    [n, h, w, c]: [usize; 4],
    x: &[f32],
    out: [usize; 2],
    y: &mut [f32],
) {
    let [oh, ow] = out;
    assert_eq!(x.len(), n * h * w * c, "the input has the given shape");
    assert_eq!(y.len(), n * oh * ow * c, "the output has the given shape");
    if y.is_empty() {
        return;
    }
    let isa = Isa::best();
    let y = Shared(y.as_mut_ptr());
    threads.run(n * oh, |row| {
        let (image, oy) = (row / oh, row % oh);
        let ([top, rows], padded_rows) = geometry.span(0, oy, h);
        for ox in 0..ow {
            let ([left, columns], padded_columns) = geometry.span(1, ox, w);
            let count = match pooling {
                Pooling::AverageWithPads => padded_rows * padded_columns,
                Pooling::Max | Pooling::Average => rows * columns,
            };
            // SAFETY: each task has its own output row; the window's elements lie inside the image.
            unsafe {
                isa.dispatch(Window {
                    max: pooling == Pooling::Max,
                    divisor: count.max(1) as f32,
                    x: x.as_ptr().wrapping_add(((image * h + top) * w + left) * c),
                    rows,
                    columns,
                    steps: [geometry.dilation[0] * w * c, geometry.dilation[1] * c],
                    channels: c,
                    y: y.get().add((row * ow + ox) * c),
                });
            }
        }
    });
}

/// Mean (or, with `max`, the largest number) over all positions of each image: `x: [n, positions, c]`, `y: [n, c]`.
///
/// # Panics
/// If a slice does not have its length.
pub fn global(threads: &Threads, max: bool, [n, positions, c]: [usize; 3], x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), n * positions * c, "the input has the given shape");
    assert_eq!(y.len(), n * c, "the output has the given shape");
    if y.is_empty() {
        return;
    }
    if !max && positions > 0 {
        return global_average(threads, [n, positions, c], x, y);
    }
    let isa = Isa::best();
    /// Channels in a task: each reads a few cache lines of every position.
    const CHANNELS: usize = 128;
    let groups = c.div_ceil(CHANNELS);
    let y = Shared(y.as_mut_ptr());
    threads.run(n * groups, |task| {
        let (image, first) = (task / groups, task % groups * CHANNELS);
        // SAFETY: each task has its own channels of an image; all positions lie inside the input.
        unsafe {
            isa.dispatch(Window {
                max,
                divisor: positions.max(1) as f32,
                x: x.as_ptr().wrapping_add(image * positions * c + first),
                rows: 1,
                columns: positions,
                steps: [0, c],
                channels: CHANNELS.min(c - first),
                y: y.get().add(image * c + first),
            });
        }
    });
}

/// One window, all its channels.
struct Window {
    max: bool,
    divisor: f32,
    /// The first element inside the image.
    x: *const f32,
    rows: usize,
    columns: usize,
    /// Numbers between rows and between columns.
    steps: [usize; 2],
    channels: usize,
    y: *mut f32,
}

impl Kernel for Window {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.channels - self.channels % (4 * S::LANES);
        for c in (0..whole).step_by(4 * S::LANES) {
            self.vectors::<S, 4>(s, c, S::LANES);
        }
        for c in (whole..self.channels).step_by(S::LANES) {
            self.vectors::<S, 1>(s, c, S::LANES.min(self.channels - c));
        }
    }
}

impl Window {
    /// `V` vectors of channels from `c` on, each with `lanes` channels.
    #[inline(always)]
    fn vectors<S: Simd, const V: usize>(&self, s: S, c: usize, lanes: usize) {
        let mut sums = [s.splat(if self.max { f32::NEG_INFINITY } else { 0.0 }); V];
        // SAFETY: the window's maker vouches for all its rows, columns and channels.
        unsafe {
            for row in 0..self.rows {
                for column in 0..self.columns {
                    let x = self.x.add(row * self.steps[0] + column * self.steps[1] + c);
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let from = x.add(v * S::LANES);
                        let value = if lanes == S::LANES { s.load(from) } else { s.load_head(from, lanes) };
                        *sum = if self.max { s.max(value, *sum) } else { s.add(*sum, value) };
                    }
                }
            }
            for (v, sum) in sums.into_iter().enumerate() {
                let value = if self.max { sum } else { s.div(sum, s.splat(self.divisor)) };
                let to = self.y.add(c + v * S::LANES);
                if lanes == S::LANES { s.store(to, value) } else { s.store_head(to, lanes, value) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;

    #[test]
    fn pooling_equals_the_reference() {
        let threads = Threads::new(2);
        let geometries = [
            PoolGeometry { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], pads: [0; 4] },
            PoolGeometry { kernel: [3, 3], stride: [2, 2], dilation: [1, 1], pads: [1; 4] },
            PoolGeometry { kernel: [3, 2], stride: [1, 3], dilation: [2, 3], pads: [2, 0, 1, 3] },
            PoolGeometry { kernel: [5, 5], stride: [1, 1], dilation: [1, 1], pads: [2; 4] },
        ];
        for c in [1, 5, 16, 70] {
            let shape = [2, 7, 8, c];
            let x: Vec<f32> = (0..2 * 56 * c).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
            for g in &geometries {
                // One more than floor gives: the last window may hang over the end, as with ceil_mode.
                let out = [0, 1].map(|i| {
                    let extent = g.dilation[i] * (g.kernel[i] - 1) + 1;
                    (shape[i + 1] + g.pads[i] + g.pads[i + 2] - extent).div_ceil(g.stride[i]) + 1
                });
                for pooling in [Pooling::Max, Pooling::Average, Pooling::AverageWithPads] {
                    let mut y = vec![f32::NAN; 2 * out[0] * out[1] * c];
                    pool(&threads, pooling, g, shape, &x, out, &mut y);
                    assert_eq!(y, reference::pool(pooling, g, shape, &x, out), "{pooling:?} {g:?} {c}");
                }
            }
        }
    }

    #[test]
    fn global_pooling_is_one_window() {
        let threads = Threads::new(2);
        let (n, h, w, c) = (3, 4, 5, 300);
        let x: Vec<f32> = (0..n * h * w * c).map(|i| (i * 31 % 97) as f32).collect();
        let window = PoolGeometry { kernel: [h, w], stride: [1, 1], dilation: [1, 1], pads: [0; 4] };
        for (max, pooling) in [(true, Pooling::Max), (false, Pooling::Average)] {
            let mut y = vec![f32::NAN; n * c];
            global(&threads, max, [n, h * w, c], &x, &mut y);
            assert_eq!(y, reference::pool(pooling, &window, [n, h, w, c], &x, [1, 1]));
        }
    }
}
