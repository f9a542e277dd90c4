//! Depthwise convolution: one filter per channel, vectors over channels.
//!
//! What enters: an NHWC image and weights laid out `[tap][channel]`. What leaves: finished outputs. Padding is never stored: rows outside the
//! image are left out, and only tiles at the left and right edge test their columns.

use std::ops::Range;

use super::Shared;
use super::activation::{Clamp, Function};
use super::conv::Epilogue;
use super::direct::activate;
use crate::simd::{Isa, Kernel, Simd};
use crate::{ConvGeometry, Threads};

/// Multiply-accumulates that are worth a task of their own.
const TASK_MACS: u64 = 250_000;
/// Most tasks that one image is cut into.
const IMAGE_TASKS: u64 = 16;
/// Numbers of input rows that should stay in the first-level cache from one output row to the next.
const CACHED_LEN: usize = 6 * 1024;

/// A depthwise convolution. Its weights, `[tap][channel]`, lie elsewhere.
#[derive(Debug)]
pub(super) struct Depthwise {
    geometry: ConvGeometry,
    isa: Isa,
}

impl Depthwise {
    /// With fewer channels than lanes, narrower vectors serve.
    pub fn new(geometry: &ConvGeometry, isa: Isa) -> Self {
        let channels = geometry.out_channels;
        let isa = if channels < isa.lanes() { Isa::at_most(channels) } else { isa };
        Depthwise { geometry: *geometry, isa }
    }

    pub fn run(
        &self,
        threads: &Threads,
        [n, h, w]: [usize; 3],
        weights: &[f32],
        x: &[f32],
        epilogue: &Epilogue,
        y: &mut [f32],
    ) {
        let g = &self.geometry;
        let Some([oh, ow]) = g.output_size(h, w) else { return };
        let want = (g.macs(1, h, w) / TASK_MACS).clamp(1, IMAGE_TASKS) as usize;
        let band = oh.div_ceil(want);
        let bands = oh.div_ceil(band);
        let bounds = epilogue.activation.bounds();
        let clamp = bounds.map_or(Clamp::NONE, |[min, max]| Clamp { min, max });
        let y = Shared(y.as_mut_ptr());
        threads.run(n * bands, |task| {
            let (image, row) = (task / bands, task % bands * band);
            let rows = band.min(oh - row);
            let first = (image * oh + row) * ow * g.out_channels;
            // SAFETY: `PackedConv::run` checked the lengths; each task has its own rows of `y`, which start at `first`.
            unsafe {
                let output = y.get().add(first);
                self.isa.dispatch(Band {
                    conv: self,
                    weights: weights.as_ptr(),
                    size: [h, w],
                    x: x[image * h * w * g.in_channels..].as_ptr(),
                    row,
                    rows,
                    width: ow,
                    y: output,
                    residual: epilogue.residual.map_or(std::ptr::null(), |r| r[first..].as_ptr()),
                    bias: epilogue.bias.map_or(std::ptr::null(), |b| b.as_ptr()),
                    clamp,
                });
                if bounds.is_none() {
                    activate(self.isa, epilogue.activation, output, rows * ow, g.out_channels, 0..g.out_channels);
                }
            }
        });
    }
}

/// One task: some output rows of one image.
struct Band<'a> {
    conv: &'a Depthwise,
    weights: *const f32,
    size: [usize; 2],
    /// The image.
    x: *const f32,
    /// First output row, and how many.
    row: usize,
    rows: usize,
    width: usize,
    /// Outputs and residual (or null) of the first row.
    y: *mut f32,
    residual: *const f32,
    bias: *const f32,
    clamp: Clamp,
}

/// Positions in a tile, widest first. A row's last tile overlaps the one before rather than being narrower.
const TILES: [usize; 5] = [14, 8, 7, 4, 1];

/// The widest tile whose sums stay in `registers`.
const fn widest(registers: usize) -> usize {
    match registers {
        32.. => 14,
        16.. => 8,
        _ => 1,
    }
}

impl Kernel for Band<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let g = &self.conv.geometry;
        macro_rules! by_positions {
            ($k:literal, $stride:literal, $($p:literal)*) => {
                match self.tile_width(widest(S::REGISTERS)) {
                    $($p if $p <= widest(S::REGISTERS) => self.tiles::<S, Square<$k, $stride>, $p>(s, Square),)*
                    _ => debug_assert!(false, "no such tile"),
                }
            };
        }
        match (g.kernel, g.stride, g.dilation) {
            ([3, 3], [1, 1], [1, 1]) => by_positions!(3, 1, 14 8 7 4 1),
            ([3, 3], [2, 2], [1, 1]) => by_positions!(3, 2, 14 8 7 4 1),
            ([5, 5], [1, 1], [1, 1]) => by_positions!(5, 1, 14 8 7 4 1),
            ([5, 5], [2, 2], [1, 1]) => by_positions!(5, 2, 14 8 7 4 1),
            _ if self.width >= 4 && S::REGISTERS >= 16 => self.tiles::<S, AnyShape, 4>(s, AnyShape),
            _ => self.tiles::<S, AnyShape, 1>(s, AnyShape),
        }
    }
}

impl Band<'_> {
    /// The tile that covers a row with the least work.
    fn tile_width(&self, widest: usize) -> usize {
        let fits = TILES.into_iter().filter(|&p| p <= widest && p <= self.width);
        fits.min_by_key(|&p| self.width.div_ceil(p) * (p + 1)).unwrap_or(1)
    }

    /// Covers the band with tiles of `P` positions. Channels go by in groups, so that the rows that a tile shares with the
    /// next output row are still in the first-level cache.
    #[inline(always)]
    fn tiles<S: Simd, T: Taps, const P: usize>(&self, s: S, taps: T) {
        let g = &self.conv.geometry;
        let channels = g.out_channels;
        let reach = (P - 1) * g.stride[1] + g.extent()[1];
        let group = (CACHED_LEN / (reach * g.extent()[0])).next_multiple_of(S::LANES).max(S::LANES);
        for col in (0..self.width).step_by(P) {
            let col = col.min(self.width - P);
            let left = (col * g.stride[1]) as isize - g.pads[1] as isize;
            let edge = left < 0 || left as usize + reach > self.size[1];
            for start in (0..channels).step_by(group) {
                let end = (start + group).min(channels);
                let tiles = Tiles::<T, P> { band: self, taps, col, left, channels: start..end };
                if edge { s.call(Edge(tiles)) } else { s.call(tiles) }
            }
        }
    }

    /// One vector of channels of `P` positions.
    ///
    /// # Safety
    /// The positions lie within the band, `c + LANES` within the channels; unless `EDGE`, all columns lie within the image.
    #[inline(always)]
    unsafe fn tile<S: Simd, T: Taps, const P: usize, const EDGE: bool>(
        &self,
        s: S,
        taps: T,
        row: usize,
        col: usize,
        left: isize,
        c: usize,
    ) {
        let g = &self.conv.geometry;
        let [h, w] = self.size;
        let pitch = g.in_channels;
        // SAFETY: rows are tested here and columns by `EDGE`; the rest is the caller's promise.
        unsafe {
            let bias = if self.bias.is_null() { s.splat(0.0) } else { s.load(self.bias.add(c)) };
            let mut sums = [bias; P];
            let out = (row * self.width + col) * pitch + c;
            for p in 0..P {
                s.prefetch_write(self.y.add(out + p * pitch));
            }
            let top = ((self.row + row) * g.stride[0]) as isize - g.pads[0] as isize;
            for r in 0..taps.height(g) {
                let iy = top + (r * g.dilation[0]) as isize;
                if iy < 0 || iy as usize >= h {
                    continue;
                }
                let x = self.x.wrapping_offset((iy * w as isize + left) * pitch as isize).wrapping_add(c);
                let weights = self.weights.add(r * g.kernel[1] * pitch + c);
                let valid = |i: usize| !EDGE || ((left + i as isize) as usize) < w;
                taps.row(s, g, x, weights, &mut sums, valid);
            }
            for (p, &sum) in sums.iter().enumerate() {
                let mut sum = sum;
                if !self.residual.is_null() {
                    sum = s.add(sum, s.load(self.residual.add(out + p * pitch)));
                }
                s.store(self.y.add(out + p * pitch), self.clamp.at(s, sum));
            }
        }
    }
}

/// The tiles of one group of channels in one column of tiles.
struct Tiles<'a, T, const P: usize> {
    band: &'a Band<'a>,
    taps: T,
    /// First output column, and the first input column it reads.
    col: usize,
    left: isize,
    channels: Range<usize>,
}

/// Tiles that reach over the left or right edge of the image.
struct Edge<T>(T);

impl<T: Taps, const P: usize> Tiles<'_, T, P> {
    #[inline(always)]
    fn each<S: Simd, const EDGE: bool>(self, s: S) {
        for row in 0..self.band.rows {
            for c in self.channels.clone().step_by(S::LANES) {
                // The last vector overlaps the one before.
                let c = c.min(self.band.conv.geometry.out_channels - S::LANES);
                // SAFETY: the tile's outputs lie within the band, and `c + LANES` within the channels.
                unsafe { self.band.tile::<S, T, P, EDGE>(s, self.taps, row, self.col, self.left, c) }
            }
        }
    }
}

impl<T: Taps, const P: usize> Kernel for Tiles<'_, T, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.each::<S, false>(s)
    }
}

impl<T: Taps, const P: usize> Kernel for Edge<Tiles<'_, T, P>> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.each::<S, true>(s)
    }
}

/// What is read beside the image: a product with it adds nothing.
static ZEROS: [f32; 16] = [0.0; 16];

/// How one row of a kernel is added to the sums.
trait Taps: Copy {
    /// Rows of the kernel.
    fn height(self, g: &ConvGeometry) -> usize;

    /// Adds one kernel row, from left to right, for `P` positions. Mark implementations `#[inline(always)]`.
    ///
    /// # Safety
    /// `x` is readable at every column that is `valid`, `weights` at every tap.
    unsafe fn row<S: Simd, const P: usize>(
        self,
        s: S,
        g: &ConvGeometry,
        x: *const f32,
        weights: *const f32,
        sums: &mut [S::F32; P],
        valid: impl Fn(usize) -> bool,
    );
}

/// A `K` × `K` kernel without dilation. All loops have constant counts and no branches, so that sums and columns stay in registers.
#[derive(Clone, Copy)]
struct Square<const K: usize, const STRIDE: usize>;

impl<const K: usize, const STRIDE: usize> Taps for Square<K, STRIDE> {
    #[inline(always)]
    fn height(self, _: &ConvGeometry) -> usize {
        K
    }

    #[inline(always)]
    unsafe fn row<S: Simd, const P: usize>(
        self,
        s: S,
        g: &ConvGeometry,
        x: *const f32,
        weights: *const f32,
        sums: &mut [S::F32; P],
        valid: impl Fn(usize) -> bool,
    ) {
        let pitch = g.in_channels;
        let mut w = [s.splat(0.0); K];
        for (k, w) in w.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *w = unsafe { s.load(weights.add(k * pitch)) };
        }
        for (k, &w) in w.iter().enumerate() {
            for (p, sum) in sums.iter_mut().enumerate() {
                let column = p * STRIDE + k;
                let from = if valid(column) { x.wrapping_add(column * pitch) } else { ZEROS.as_ptr() };
                // SAFETY: the caller's promise; `ZEROS` holds a vector of any instruction set.
                *sum = s.fma(unsafe { s.load(from) }, w, *sum);
            }
        }
    }
}

/// Any kernel, stride and dilation.
#[derive(Clone, Copy)]
struct AnyShape;

impl Taps for AnyShape {
    #[inline(always)]
    fn height(self, g: &ConvGeometry) -> usize {
        g.kernel[0]
    }

    #[inline(always)]
    unsafe fn row<S: Simd, const P: usize>(
        self,
        s: S,
        g: &ConvGeometry,
        x: *const f32,
        weights: *const f32,
        sums: &mut [S::F32; P],
        valid: impl Fn(usize) -> bool,
    ) {
        let pitch = g.in_channels;
        for k in 0..g.kernel[1] {
            // SAFETY: the caller's promise.
            let w = unsafe { s.load(weights.add(k * pitch)) };
            for (p, sum) in sums.iter_mut().enumerate() {
                let column = p * g.stride[1] + k * g.dilation[1];
                if valid(column) {
                    // SAFETY: the caller's promise.
                    *sum = s.fma(unsafe { s.load(x.wrapping_add(column * pitch)) }, w, *sum);
                }
            }
        }
    }
}
