//! Dense and grouped convolution by register tiles, straight from the NHWC image.
//!
//! What enters: an image (or a row of positions, for 1×1), packed weights. What leaves: finished outputs. Inner loops test no
//! border: where there is padding, a band of padded rows is copied to the task's scratch first.

use std::ops::Range;

use super::Shared;
use super::activation::{Activation, Clamp};
use super::conv::Epilogue;
use super::sweep::{Runs, Sweep};
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

/// A dense or grouped convolution, cut into blocks of output channels. The packed weights lie elsewhere.
#[derive(Debug)]
pub(super) struct Direct {
    geometry: ConvGeometry,
    isa: Isa,
    /// Vectors of output channels in a block, but for the last.
    vectors: usize,
    blocks: Vec<PackedBlock>,
    /// Numbers of packed weights.
    packed_len: usize,
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

/// Where outputs lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Places {
    /// The first output.
    pub first: usize,
    /// Numbers from one image to the next, one row of positions to the next, one position to the next.
    pub image: usize,
    pub row: usize,
    pub column: usize,
}

impl Places {
    /// One after another.
    pub fn dense(sweep: &Sweep, channels: usize) -> Self {
        let row = sweep.output[1] * channels;
        Places { first: 0, image: sweep.output[0] * row, row, column: channels }
    }
}

impl Direct {
    /// Cuts the convolution into blocks. Its pads do not matter: each run has a [`Sweep`].
    pub fn new(geometry: &ConvGeometry, isa: Isa) -> Self {
        let g = *geometry;
        let (lanes, sum_len) = (isa.lanes(), g.kernel[0] * g.kernel[1] * g.group_in());
        let vectors = tile::vectors(isa, g.group_out().div_ceil(lanes), sum_len);
        let (mut blocks, mut packed_len) = (Vec::new(), 0);
        for group in 0..g.groups {
            for start in (0..g.group_out()).step_by(vectors * lanes) {
                let channels = (g.group_out() - start).min(vectors * lanes);
                let first = group * g.group_out() + start;
                blocks.push(PackedBlock { first, channels, input: group * g.group_in(), weights: packed_len });
                packed_len += sum_len * channels.next_multiple_of(lanes);
            }
        }
        Direct { geometry: g, isa, vectors, blocks, packed_len }
    }

    /// Numbers of packed weights.
    pub fn packed_len(&self) -> usize {
        self.packed_len
    }

    /// Packs `weight(output channel, input channel within its group, tap)`.
    pub fn pack(&self, weight: impl Fn(usize, usize, usize) -> f32, packed: &mut [f32]) {
        let (taps, inputs) = (self.geometry.kernel[0] * self.geometry.kernel[1], self.geometry.group_in());
        for block in &self.blocks {
            let width = block.channels.next_multiple_of(self.isa.lanes());
            let rows = packed[block.weights..][..taps * inputs * width].chunks_exact_mut(width);
            for (i, row) in rows.enumerate() {
                let (real, padding) = row.split_at_mut(block.channels);
                real.iter_mut().zip(block.first..).for_each(|(to, o)| *to = weight(o, i % inputs, i / inputs));
                padding.fill(0.0);
            }
        }
    }

    /// Whether the work is one long row of positions.
    fn is_flat(&self, sweep: &Sweep, places: &Places) -> bool {
        sweep.pixelwise && *places == Places::dense(sweep, self.geometry.out_channels)
    }

    /// Floats of scratch per worker.
    pub fn scratch_len(&self, sweep: &Sweep, places: &Places) -> usize {
        if sweep.needs_zeros() { sweep.band_len(self.plan(sweep, places).band) } else { 0 }
    }

    /// Cuts the work. The cut depends on the shapes only.
    fn plan(&self, sweep: &Sweep, places: &Places) -> Plan {
        let [height, width] = sweep.output;
        let macs = (height * width) as u64 * self.geometry.weight_len() as u64;
        let flat = self.is_flat(sweep, places);
        let (images, rows, row) =
            if flat { (1, 1, sweep.images * height * width) } else { (sweep.images, height, width) };
        let want = (macs / TASK_MACS).clamp(1, IMAGE_TASKS as u64) as usize
            * if images == 1 { sweep.images.max(1) } else { 1 };
        // Many weights for few positions: each task takes part of the weights. Else each takes part of the positions.
        let heavy = self.packed_len > rows * row * self.geometry.in_channels;
        let (bands, parts) = if heavy {
            let parts = want.min(self.blocks.len());
            (if parts >= ENOUGH_PARTS { 1 } else { want.div_ceil(parts) }, parts)
        } else {
            let bands = want.min(if flat { row / TILE_POSITIONS } else { rows }.max(1));
            (bands, want.div_ceil(bands).min(self.blocks.len()))
        };
        let length = if flat { row } else { rows };
        let mut band = length.div_ceil(bands).max(1);
        if flat {
            band = band.next_multiple_of(TILE_POSITIONS);
        }
        while sweep.needs_zeros() && band > 1 && sweep.band_len(band) > BAND_LEN {
            band = band.div_ceil(2);
        }
        Plan { flat, images, length, band, bands: length.div_ceil(band), part: self.blocks.len().div_ceil(parts) }
    }

    /// Computes all positions of `sweep`, which reads `x`, with weights that [`Direct::pack`] packed. With `add`, sums are
    /// added to what `y` holds (and the epilogue has no residual).
    #[expect(clippy::too_many_arguments, reason = "a convolution, spelled out")]
    pub fn run(
        &self,
        threads: &Threads,
        sweep: &Sweep,
        packed: &[f32],
        x: &[f32],
        epilogue: &Epilogue,
        places: &Places,
        add: bool,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let plan = self.plan(sweep, places);
        let parts = self.blocks.len().div_ceil(plan.part);
        let scratch_len = self.scratch_len(sweep, places);
        assert!(scratch.len() >= threads.count() * scratch_len, "scratch is long enough");
        assert_eq!(packed.len(), self.packed_len, "weights are packed for this convolution");
        let (y, scratch) = (Shared(y.as_mut_ptr()), Shared(scratch.as_mut_ptr()));
        let residual = match epilogue.residual {
            Some(residual) => Shared(residual.as_ptr().cast_mut()),
            None if add => y,
            None => Shared(std::ptr::null_mut()),
        };
        threads.run_with_worker(plan.images * plan.bands * parts, |worker, task| {
            let (cut, part) = (task / parts, task % parts);
            let (image, start) = (cut / plan.bands, cut % plan.bands * plan.band);
            let blocks = part * plan.part..self.blocks.len().min((part + 1) * plan.part);
            // SAFETY: the length of scratch was checked; each worker has its own part of it.
            let scratch =
                unsafe { std::slice::from_raw_parts_mut(scratch.get().add(worker * scratch_len), scratch_len) };
            let count = plan.band.min(plan.length - start);
            let (x, row, first) = if plan.flat {
                (&x[start * self.geometry.in_channels..], 0, start * places.column)
            } else {
                let (x, row) = sweep.band(x, image, start, count, scratch);
                (x, row, places.first + image * places.image + start * places.row)
            };
            let [height, width] = if plan.flat { [1, count] } else { [count, sweep.output[1]] };
            let bounds = epilogue.activation.bounds();
            let window = Window {
                runs: Runs::new(&self.geometry, row),
                x_pitch: sweep.stride[1] * self.geometry.in_channels,
                y_pitch: places.column,
            };
            // SAFETY: the band's outputs lie within `y` and its inputs within `x`, by the output size's formula, and every
            // task has its own band or its own blocks.
            unsafe {
                let output = y.get().add(first);
                let band = Band {
                    conv: self,
                    packed,
                    window,
                    blocks: blocks.clone(),
                    height,
                    width,
                    x: x.as_ptr(),
                    x_row: row * sweep.stride[0],
                    y: output,
                    y_row: places.row,
                    residual: if residual.get().is_null() { std::ptr::null() } else { residual.get().add(first) },
                    bias: epilogue.bias,
                    clamp: bounds.map_or(Clamp::NONE, |[min, max]| Clamp { min, max }),
                };
                self.isa.dispatch(band);
                if bounds.is_none() {
                    let channels = self.blocks[blocks.start].first..self.blocks[blocks.end - 1].last();
                    activate(self.isa, epilogue.activation, output, height * width, places.column, channels);
                }
            }
        });
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

/// How the work is cut into tasks.
#[derive(Clone, Copy)]
struct Plan {
    /// All positions of all images are one row.
    flat: bool,
    images: usize,
    /// Rows of positions in an image, or, if flat, positions.
    length: usize,
    /// As many of them as are in a band.
    band: usize,
    bands: usize,
    /// Blocks of output channels in a task.
    part: usize,
}

/// One task: some rows of one image, some blocks of output channels.
struct Band<'a> {
    conv: &'a Direct,
    packed: &'a [f32],
    window: Window,
    blocks: Range<usize>,
    height: usize,
    width: usize,
    x: *const f32,
    /// Input and output numbers between rows of positions.
    x_row: usize,
    y_row: usize,
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
        let block_len = self.window.runs.total() * self.conv.vectors * S::LANES;
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
        let share = self.window.runs.total() * tile::CACHE_LINE;
        self.packed.as_ptr().wrapping_add(weights + tile * share)
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
                let out = places.map(|(row, col)| row * self.y_row + col * self.window.y_pitch + block.first);
                let at = Segments {
                    x,
                    y: out.map(|o| self.y.add(o)),
                    residual: out.map(|o| if self.residual.is_null() { self.residual } else { self.residual.add(o) }),
                };
                let block = Block {
                    weights: self.packed[block.weights..].as_ptr(),
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
