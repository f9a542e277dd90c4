//! Dense and grouped convolution by register tiles, straight from the NHWC image.
//!
//! What enters: an image (or a row of positions, for 1×1), packed weights. What leaves: finished outputs. Inner loops test no
//! border: where there is padding, a band of padded rows is copied to the task's scratch first.

use std::ops::Range;

use super::Shared;
use super::activation::{Activation, Clamp};
use super::conv::Epilogue;
use super::tile::{self, Block, Segments, Window};
use crate::simd::{Isa, Kernel, Simd};
use crate::{ConvGeometry, Threads};

/// Multiply-accumulates that are worth a task of their own.
const TASK_MACS: u64 = 400_000;
/// Most tasks that one image is cut into: enough to balance 16 threads.
const IMAGE_TASKS: usize = 32;
/// A band of a product over positions is a multiple of these, so that few tiles are cut short.
const TILE_POSITIONS: usize = 42;
/// With so many parts of the weights, tasks are not cut further: every band would read its part once more.
const ENOUGH_PARTS: usize = 8;
/// Weights that stay in the second-level cache while the positions of a band go by.
const CACHED_WEIGHTS: usize = 64 * 1024;
/// With no more tiles in a band than this, blocks of weights go by one at a time.
const FEW_TILES: usize = 8;
/// Numbers of padded input in a band.
const BAND_LEN: usize = 96 * 1024;

/// Packed weights of a dense or grouped convolution.
#[derive(Debug)]
pub(super) struct Direct {
    geometry: ConvGeometry,
    isa: Isa,
    /// Vectors of output channels in a block, but for the last.
    vectors: usize,
    blocks: Vec<PackedBlock>,
    weights: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
struct PackedBlock {
    /// First output channel and number of them.
    first: usize,
    channels: usize,
    /// First input channel.
    input: usize,
    /// Where its weights start.
    weights: usize,
}

impl Direct {
    /// Packs OIHW weights.
    pub fn new(geometry: &ConvGeometry, isa: Isa, weight: impl Fn(usize, usize, usize) -> f32) -> Self {
        let g = *geometry;
        let (lanes, taps, group_in) = (isa.lanes(), g.kernel[0] * g.kernel[1], g.group_in());
        let vectors = tile::vectors(isa, g.group_out().div_ceil(lanes), taps * group_in);
        let (mut blocks, mut weights) = (Vec::new(), Vec::new());
        for group in 0..g.groups {
            for start in (0..g.group_out()).step_by(vectors * lanes) {
                let channels = (g.group_out() - start).min(vectors * lanes);
                let first = group * g.group_out() + start;
                blocks.push(PackedBlock { first, channels, input: group * group_in, weights: weights.len() });
                let width = channels.next_multiple_of(lanes);
                for tap in 0..taps {
                    for c in 0..group_in {
                        let filled = weights.len();
                        weights.extend((first..first + channels).map(|o| weight(o, c, tap)));
                        weights.resize(filled + width, 0.0);
                    }
                }
            }
        }
        Direct { geometry: g, isa, vectors, blocks, weights }
    }

    /// The rows that the work is cut into: `(images, rows per image, positions per row)`. A product over positions has rows
    /// of its own choice.
    fn rows(&self, [n, h, w]: [usize; 3]) -> Rows {
        let g = &self.geometry;
        let [oh, ow] = g.output_size(h, w).unwrap_or([0, 0]);
        if g.is_pointwise() {
            return Rows { images: 1, height: 1, width: n * h * w, cuts: n * h * w / (TILE_POSITIONS) };
        }
        Rows { images: n, height: oh, width: ow, cuts: oh }
    }

    /// Floats of scratch per worker.
    pub fn scratch_len(&self, shape: [usize; 3]) -> usize {
        let plan = self.plan(shape);
        if self.copies() { self.band_input(shape, plan.band).0 } else { 0 }
    }

    fn copies(&self) -> bool {
        self.geometry.pads != [0; 4]
    }

    /// Numbers and rows of input of a band of `rows` output rows, padding included.
    fn band_input(&self, [_, _, w]: [usize; 3], rows: usize) -> (usize, usize) {
        let g = &self.geometry;
        let height = (rows.max(1) - 1) * g.stride[0] + g.extent()[0];
        (height * (w + g.pads[1] + g.pads[3]) * g.in_channels, height)
    }

    /// Cuts the work. The cut depends on the shapes only.
    fn plan(&self, shape: [usize; 3]) -> Plan {
        let rows = self.rows(shape);
        let macs = (rows.images * rows.height * rows.width) as u64 * self.geometry.weight_len() as u64;
        let image_macs = macs / shape[0].max(1) as u64;
        let want = (image_macs / TASK_MACS).clamp(1, IMAGE_TASKS as u64) as usize
            * if rows.images == 1 { shape[0].max(1) } else { 1 };
        // Many weights for few positions: each task takes part of the weights. Else each takes part of the positions.
        let heavy = self.weights.len() > rows.height * rows.width * self.geometry.in_channels;
        let (bands, parts) = if heavy {
            let parts = want.min(self.blocks.len());
            (if parts >= ENOUGH_PARTS { 1 } else { want.div_ceil(parts) }, parts)
        } else {
            let bands = want.min(rows.cuts.max(1));
            (bands, want.div_ceil(bands).min(self.blocks.len()))
        };
        let length = if rows.height == 1 && self.geometry.is_pointwise() { rows.width } else { rows.height };
        let mut band = length.div_ceil(bands).max(1);
        if self.geometry.is_pointwise() {
            band = band.next_multiple_of(TILE_POSITIONS);
        }
        while self.copies() && band > 1 && self.band_input(shape, band).0 > BAND_LEN {
            band = band.div_ceil(2);
        }
        Plan { rows, band, bands: length.div_ceil(band), part: self.blocks.len().div_ceil(parts) }
    }

    pub fn run(
        &self,
        threads: &Threads,
        shape: [usize; 3],
        x: &[f32],
        epilogue: &Epilogue,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let plan = self.plan(shape);
        let parts = self.blocks.len().div_ceil(plan.part);
        let scratch_len = self.scratch_len(shape);
        let (y, scratch) = (Shared(y.as_mut_ptr()), Shared(scratch.as_mut_ptr()));
        threads.run_with_worker(plan.rows.images * plan.bands * parts, |worker, task| {
            let (cut, part) = (task / parts, task % parts);
            let (image, band) = (cut / plan.bands, cut % plan.bands);
            let start = band * plan.band;
            // SAFETY: `run` checked the length of scratch; each worker has its own part of it.
            let scratch = unsafe { scratch.get().add(worker * scratch_len) };
            let blocks = part * plan.part..self.blocks.len().min((part + 1) * plan.part);
            self.band(shape, plan, image, start, blocks, x, epilogue, y, scratch);
        });
    }

    #[expect(clippy::too_many_arguments, reason = "one task, spelled out")]
    fn band(
        &self,
        shape: [usize; 3],
        plan: Plan,
        image: usize,
        start: usize,
        blocks: Range<usize>,
        x: &[f32],
        epilogue: &Epilogue,
        y: Shared,
        scratch: *mut f32,
    ) {
        let g = &self.geometry;
        let [_, h, w] = shape;
        let (height, width, first) = if g.is_pointwise() {
            (1, plan.band.min(plan.rows.width - start), start)
        } else {
            let height = plan.band.min(plan.rows.height - start);
            (height, plan.rows.width, (image * plan.rows.height + start) * plan.rows.width)
        };
        let (input, row) = if g.is_pointwise() {
            (x[first * g.in_channels..].as_ptr(), 0)
        } else if self.copies() {
            let (len, _) = self.band_input(shape, height);
            // SAFETY: `scratch_len` numbers belong to this worker, and no band is longer than the plan's.
            let padded = unsafe { std::slice::from_raw_parts_mut(scratch, len) };
            self.pad(&x[image * h * w * g.in_channels..][..h * w * g.in_channels], [h, w], start, padded);
            (padded.as_ptr(), (w + g.pads[1] + g.pads[3]) * g.in_channels)
        } else {
            (x[(image * h + start * g.stride[0]) * w * g.in_channels..].as_ptr(), w * g.in_channels)
        };
        let joined = g.groups == 1 && g.dilation[1] == 1;
        let mut runs = Vec::with_capacity(g.kernel[0] * g.kernel[1]);
        for r in 0..g.kernel[0] {
            for s in 0..if joined { 1 } else { g.kernel[1] } {
                runs.push(r * g.dilation[0] * row + s * g.dilation[1] * g.in_channels);
            }
        }
        let window = Window {
            runs: &runs,
            run_len: if joined { g.kernel[1] * g.in_channels } else { g.group_in() },
            x_pitch: g.stride[1] * g.in_channels,
            y_pitch: g.out_channels,
        };
        let bounds = epilogue.activation.bounds();
        let clamp = bounds.map_or(Clamp::NONE, |[min, max]| Clamp { min, max });
        // SAFETY: the band's outputs lie within `y` and its inputs within `x` or `padded`, by the output size's formula, and
        // every task has its own band or its own blocks.
        unsafe {
            let output = y.get().add(first * g.out_channels);
            let band = Band {
                conv: self,
                window,
                blocks: blocks.clone(),
                height,
                width,
                x: input,
                x_row: row * g.stride[0],
                y: output,
                residual: epilogue.residual.map_or(std::ptr::null(), |r| r[first * g.out_channels..].as_ptr()),
                bias: epilogue.bias,
                clamp,
            };
            self.isa.dispatch(band);
            if bounds.is_none() {
                let channels = self.blocks[blocks.start].first..self.blocks[blocks.end - 1].last();
                activate(self.isa, epilogue.activation, output, height * width, g.out_channels, channels);
            }
        }
    }

    /// Copies the rows that a band reads, with their padding.
    fn pad(&self, x: &[f32], [h, w]: [usize; 2], start: usize, padded: &mut [f32]) {
        let g = &self.geometry;
        let [top, left, _, right] = g.pads;
        let c = g.in_channels;
        for (i, to) in padded.chunks_exact_mut((w + left + right) * c).enumerate() {
            match (start * g.stride[0] + i).checked_sub(top) {
                Some(from) if from < h => {
                    to[..left * c].fill(0.0);
                    to[left * c..][..w * c].copy_from_slice(&x[from * w * c..][..w * c]);
                    to[(left + w) * c..].fill(0.0);
                }
                _ => to.fill(0.0),
            }
        }
    }
}

impl PackedBlock {
    fn last(&self) -> usize {
        self.first + self.channels
    }
}

/// Applies a function to some channels of finished positions, which are still in the cache.
///
/// # Safety
/// The outputs are writable by nobody else.
pub(super) unsafe fn activate(
    isa: Isa,
    function: Activation,
    y: *mut f32,
    positions: usize,
    pitch: usize,
    channels: Range<usize>,
) {
    let (rows, len) = if channels.len() == pitch { (1, positions * pitch) } else { (positions, channels.len()) };
    for row in 0..rows {
        // SAFETY: the caller's promise.
        let part = unsafe { std::slice::from_raw_parts_mut(y.add(row * pitch + channels.start), len) };
        function.apply(isa, part);
    }
}

#[derive(Clone, Copy)]
struct Rows {
    images: usize,
    height: usize,
    width: usize,
    /// Into how many bands an image can usefully be cut.
    cuts: usize,
}

/// How the work is cut into tasks.
#[derive(Clone, Copy)]
struct Plan {
    rows: Rows,
    /// Rows (or, for a product over positions, positions) in a band.
    band: usize,
    bands: usize,
    /// Blocks of output channels in a task.
    part: usize,
}

/// One task: some rows of one image, some blocks of output channels.
struct Band<'a> {
    conv: &'a Direct,
    window: Window<'a>,
    blocks: Range<usize>,
    height: usize,
    width: usize,
    x: *const f32,
    /// Input numbers between output rows.
    x_row: usize,
    y: *mut f32,
    residual: *const f32,
    bias: Option<&'a [f32]>,
    clamp: Clamp,
}

impl Kernel for Band<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // A row is `long` segments of `q` positions, then `short` ones of one less.
        let longest = tile::segment(S::REGISTERS, self.conv.vectors);
        let count = self.width.div_ceil(longest);
        let q = self.width.div_ceil(count);
        let short = count * q - self.width;
        let long = count - short;
        let block_len = self.window.runs.len() * self.window.run_len * self.conv.vectors * S::LANES;
        let tiles = self.height * count.div_ceil(2);
        let together = if tiles <= FEW_TILES { 1 } else { (CACHED_WEIGHTS / block_len).max(1) };
        for start in self.blocks.clone().step_by(together) {
            let blocks = start..(start + together).min(self.blocks.end);
            self.segments(s, blocks.clone(), q, 0, long);
            self.segments(s, blocks, q - 1, long * q, short);
        }
    }
}

impl Band<'_> {
    /// Computes `per_row` segments of `q` positions in each row, from column `first` on, two at a time.
    #[inline(always)]
    fn segments<S: Simd>(&self, s: S, blocks: Range<usize>, q: usize, first: usize, per_row: usize) {
        let total = if q > 0 { self.height * per_row } else { 0 };
        let place = |i: usize| (i / per_row, first + i % per_row * q);
        for i in (0..total).step_by(2) {
            let ahead = self.ahead(&blocks, i / 2, place(i + 2));
            // SAFETY: the places are within the band, which its maker vouches for.
            unsafe {
                if i + 1 < total {
                    self.position(s, blocks.clone(), q, [place(i), place(i + 1)], ahead);
                } else {
                    self.position(s, blocks.clone(), q, [place(i)], ahead);
                }
            }
        }
    }

    /// What to ask for during a tile: the input of the next tile, or, where weights go by one block at a time, a share of
    /// the next block.
    #[inline(always)]
    fn ahead(&self, blocks: &Range<usize>, tile: usize, next: (usize, usize)) -> *const f32 {
        if blocks.len() > 1 || self.blocks.len() == 1 || tile > 1 {
            return self.input(next);
        }
        let weights = self.conv.blocks.get(blocks.end).map_or(0, |b| b.weights);
        let share = self.window.runs.len() * self.window.run_len * tile::CACHE_LINE;
        self.conv.weights.as_ptr().wrapping_add(weights + tile * share)
    }

    /// The input of the first group at a place of the band.
    #[inline(always)]
    fn input(&self, (row, col): (usize, usize)) -> *const f32 {
        self.x.wrapping_add(row * self.x_row + col * self.window.x_pitch)
    }

    /// # Safety
    /// The segments lie within the band.
    #[inline(always)]
    unsafe fn position<S: Simd, const M: usize>(
        &self,
        s: S,
        blocks: Range<usize>,
        q: usize,
        places: [(usize, usize); M],
        ahead: *const f32,
    ) {
        for b in blocks {
            let block = &self.conv.blocks[b];
            // SAFETY: the caller's promise; a block's bias and outputs start at its first channel.
            unsafe {
                let x = places.map(|place| self.input(place).add(block.input));
                let out = places.map(|(row, col)| (row * self.width + col) * self.window.y_pitch + block.first);
                let at = Segments {
                    x,
                    y: out.map(|o| self.y.add(o)),
                    residual: out.map(|o| if self.residual.is_null() { self.residual } else { self.residual.add(o) }),
                };
                let block = Block {
                    weights: self.conv.weights[block.weights..].as_ptr(),
                    bias: self.bias.map_or(std::ptr::null(), |bias| bias[block.first..].as_ptr()),
                    channels: block.channels,
                    clamp: self.clamp,
                    ahead,
                };
                tile::tile_of(s, q, self.window, block, at);
            }
        }
    }
}
