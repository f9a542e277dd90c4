//! The gradient of the images: tiles of columns that the same taps read.

use super::mask;
use crate::{
    ConvGeometry,
    simd::{Kernel, Simd},
};

/// The taps of one axis that read an input position, and the outputs that they belong to: taps `first`, `first + step`, ...
/// belong to outputs `output`, `output - back`, ..., which may lie beside the image.
#[derive(Clone, Copy)]
struct Readers {
    first: usize,
    step: usize,
    output: isize,
    back: isize,
}

impl Readers {
    fn new(g: &ConvGeometry, axis: usize, position: usize) -> Self {
        let (stride, dilation) = (g.stride[axis] as isize, g.dilation[axis] as isize);
        let padded = (position + g.pads[axis]) as isize;
        // Taps repeat their distance to the outputs' grid after at most `stride`; none on the grid is a tap beyond the kernel.
        let on_grid = |tap: &usize| (padded - *tap as isize * dilation) % stride == 0;
        let step = (1..=g.stride[axis]).find(|s| (s * g.dilation[axis]).is_multiple_of(g.stride[axis])).unwrap_or(1);
        let first = (0..step).find(on_grid).unwrap_or(g.kernel[axis]);
        let output = (padded - first as isize * dilation) / stride;
        Readers { first, step, output, back: step as isize * dilation / stride }
    }

    /// `(tap, output)` for each tap of a kernel.
    #[inline(always)]
    fn each(self, kernel: usize) -> impl Iterator<Item = (usize, isize)> {
        let outputs = (0..).map(move |i: isize| self.output - i * self.back);
        (self.first..kernel).step_by(self.step).zip(outputs)
    }
}

/// Numbers of output rows that should stay in the first-level cache from one row to the next.
const CACHED_LEN: usize = 6 * 1024;
/// Most columns of taps that go into one tile at a time; more are added in turns.
const MOST_TAPS: usize = 16;

/// The gradient of one image.
pub(super) struct InputGradient<'a> {
    pub geometry: &'a ConvGeometry,
    pub size: [usize; 2],
    pub output: [usize; 2],
    pub weights: &'a [f32],
    pub dy: &'a [f32],
    pub add: bool,
    pub dx: &'a mut [f32],
}

impl Kernel for InputGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let stride = self.geometry.stride[1];
        for phase in 0..stride.min(self.size[1]) {
            // Columns that the same taps read, at neighbouring outputs.
            let columns = (self.size[1] - phase).div_ceil(stride);
            match (S::REGISTERS >= 32, columns) {
                (true, 8..) => self.columns::<S, 14>(s, phase, columns),
                (true, _) => self.columns::<S, 7>(s, phase, columns),
                (false, 5..) => self.columns::<S, 8>(s, phase, columns),
                (false, _) => self.columns::<S, 4>(s, phase, columns),
            }
        }
    }
}

/// A column of taps of the kernel in a tile.
#[derive(Clone, Copy, Default)]
struct TapColumn {
    tap: usize,
    /// The output column that it belongs to at the tile's first column.
    output: isize,
    /// At which of the tile's columns there is such an output: bit by bit.
    mask: u32,
}

impl InputGradient<'_> {
    /// Covers the columns of a phase with tiles of `P`.
    #[inline(always)]
    fn columns<S: Simd, const P: usize>(&mut self, s: S, phase: usize, columns: usize) {
        let g = self.geometry;
        let readers = Readers::new(g, 1, phase);
        for first in (0..columns).step_by(P) {
            let count = P.min(columns - first);
            let width = self.output[1];
            let mut rest = readers.each(g.kernel[1]).map(|(tap, output)| {
                let output = output + first as isize;
                TapColumn { tap, output, mask: mask(count, output, 1, width) }
            });
            let mut add = self.add;
            loop {
                let mut taps = [TapColumn::default(); MOST_TAPS];
                let used = taps.iter_mut().zip(&mut rest).map(|(to, tap)| *to = tap).count();
                let column = phase + first * g.stride[1];
                s.call(Tiles::<P> { image: self, column, count, taps: &taps[..used], add });
                if used < MOST_TAPS {
                    break;
                }
                add = true;
            }
        }
    }
}

/// Tiles of `P` columns of all rows and channels.
struct Tiles<'a, 'b, const P: usize> {
    image: &'a mut InputGradient<'b>,
    /// First column, and how many, a stride apart.
    column: usize,
    count: usize,
    taps: &'a [TapColumn],
    add: bool,
}

impl<const P: usize> Kernel for Tiles<'_, '_, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let g = self.image.geometry;
        let cached = CACHED_LEN / ((P + g.kernel[1]) * g.kernel[0]);
        let group = cached.next_multiple_of(S::LANES).max(S::LANES);
        for start in (0..g.out_channels).step_by(group) {
            let end = g.out_channels.min(start + group);
            let whole = end - (end - start) % S::LANES;
            for row in 0..self.image.size[0] {
                let readers = Readers::new(g, 0, row);
                // SAFETY: the row and the channels lie within the image.
                unsafe {
                    for c in (start..whole).step_by(S::LANES) {
                        self.tile(s, row, readers, c, S::LANES);
                    }
                    if whole < end {
                        self.tile(s, row, readers, whole, end - whole);
                    }
                }
            }
        }
    }
}

impl<const P: usize> Tiles<'_, '_, P> {
    /// One tile of `lanes` channels.
    ///
    /// # Safety
    /// `row` lies within the image; there are `lanes <= LANES` channels from `c`.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&mut self, s: S, row: usize, readers: Readers, c: usize, lanes: usize) {
        let g = self.image.geometry;
        let [height, width] = self.image.output;
        let pitch = g.out_channels;
        let full = (1 << P) - 1;
        let first = (row * self.image.size[1] + self.column) * pitch + c;
        for p in 0..P {
            s.prefetch_write(self.image.dx.as_mut_ptr().wrapping_add(first + p * g.stride[1] * pitch));
        }
        let mut sums = [s.splat(0.0); P];
        for (tap, oy) in readers.each(g.kernel[0]) {
            if oy < 0 || oy as usize >= height {
                continue;
            }
            let weights = self.image.weights.as_ptr().wrapping_add(tap * g.kernel[1] * pitch + c);
            let dy = self.image.dy.as_ptr().wrapping_add(oy as usize * width * pitch + c);
            for &TapColumn { tap, output, mask } in self.taps {
                let dy = dy.wrapping_offset(output * pitch as isize);
                // SAFETY: the tap lies within the kernel, outputs in the mask within the image, the channels by the caller's
                // promise.
                unsafe {
                    let weight = s.load_up_to(weights.add(tap * pitch), lanes);
                    if mask == full {
                        for (p, sum) in sums.iter_mut().enumerate() {
                            *sum = s.fma(s.load_up_to(dy.wrapping_add(p * pitch), lanes), weight, *sum);
                        }
                    } else {
                        for (p, sum) in sums.iter_mut().enumerate() {
                            if mask & 1 << p != 0 {
                                *sum = s.fma(s.load_up_to(dy.wrapping_add(p * pitch), lanes), weight, *sum);
                            }
                        }
                    }
                }
            }
        }
        for (p, &sum) in sums.iter().enumerate() {
            if p < self.count {
                // SAFETY: the column lies within the image, the channels by the caller's promise.
                unsafe {
                    let to = self.image.dx.as_mut_ptr().add(first + p * g.stride[1] * pitch);
                    s.store_up_to(to, lanes, if self.add { s.add(s.load_up_to(to, lanes), sum) } else { sum });
                }
            }
        }
    }
}
