//! Integer convolution and matrix product with requantization.
//!
//! What enters: NHWC `u8` images, weights packed once, and per-channel constants. What leaves: NHWC `u8` on the output grid, or f32.
//!
//! `acc = Σ (x - x_zero) * w + bias` in i32, borders reading `x_zero`; then
//! `y = clamp(round_ties_even(f32(acc) * multiplier[c]) + y_zero, qmin, qmax)`. Equal on every element to ONNX Runtime's
//! QLinearConv / QGemm / QLinearMatMul, for any instruction set and any number of threads (integers have no order).

use super::Isa;
use super::dense::{self, LANES, Output, STEP, Tile};
use super::depthwise::{self, ROWS, Row};
use crate::Threads;
use crate::geometry::ConvGeometry;
use schedule::{Area, Schedule, Source, merged_taps};

mod schedule;

/// Weights of one convolution, laid out for the kernels of one instruction set.
pub struct PackedQConv {
    geometry: ConvGeometry,
    isa: Isa,
    weights: Vec<i8>,
    /// `Σ w` of each output channel.
    weight_sums: Vec<i32>,
}

/// Constants of the arithmetic after the sums, in the order of the packed weights.
pub struct Requantize {
    x_zero: u8,
    /// `bias - x_zero * Σ w`.
    offsets: Vec<i32>,
    multipliers: Vec<f32>,
    y_zero: i16,
    qmin: u8,
    qmax: u8,
}

impl PackedQConv {
    /// Packs weights `[out_channels, in_channels / groups, kernel height, kernel width]` for this machine.
    pub fn new(geometry: &ConvGeometry, weights: &[i8]) -> Self {
        Self::with_isa(geometry, weights, Isa::best())
    }

    /// Packs a matrix `[inputs, outputs]` (ONNX MatMul, Gemm with transB = 0), to be run as a 1×1 convolution.
    pub fn from_matrix(inputs: usize, outputs: usize, weights: &[i8]) -> Self {
        let transposed: Vec<i8> =
            (0..outputs).flat_map(|o| (0..inputs).map(move |i| weights[i * outputs + o])).collect();
        Self::new(&ConvGeometry::pointwise(inputs, outputs), &transposed)
    }

    /// As [`PackedQConv::new`], for the kernels of `isa`.
    ///
    /// # Panics
    /// If the geometry is not valid, its weights have another length, or the machine lacks `isa`.
    pub fn with_isa(geometry: &ConvGeometry, weights: &[i8], isa: Isa) -> Self {
        assert!(geometry.is_valid() && weights.len() == geometry.weight_len(), "weights must fit {geometry:?}");
        assert!(Isa::available().contains(&isa), "{isa:?} must be available");
        let per_channel = weights.len() / geometry.out_channels;
        let weight_sums = weights.chunks(per_channel).map(|w| w.iter().map(|&w| i32::from(w)).sum()).collect();
        let mut packed = PackedQConv { geometry: *geometry, isa, weights: Vec::new(), weight_sums };
        packed.weights =
            if geometry.is_depthwise() { packed.pack_depthwise(weights) } else { packed.pack_dense(weights) };
        packed
    }

    /// The geometry that the weights were packed for.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// Prepares the constants of one use: `bias` in i32 without zero-point correction and `multipliers`, one per output channel.
    /// The output grid is `qmin..=qmax` within `0..=255`, with zero point `y_zero`.
    pub fn requantize(
        &self,
        x_zero: u8,
        bias: &[i32],
        multipliers: &[f32],
        y_zero: i32,
        [qmin, qmax]: [i32; 2],
    ) -> Requantize {
        let places = self.channel_places();
        let offset = |c: usize| bias[c].wrapping_sub(i32::from(x_zero).wrapping_mul(self.weight_sums[c]));
        Requantize {
            x_zero,
            offsets: places.iter().map(|c| c.map_or(0, offset)).collect(),
            multipliers: places.iter().map(|c| c.map_or(0.0, |c| multipliers[c])).collect(),
            y_zero: y_zero as i16,
            qmin: qmin as u8,
            qmax: qmax as u8,
        }
    }

    /// As [`PackedQConv::requantize`] for [`PackedQConv::run_to_f32`]: `y = f32(acc) * multipliers[c]`.
    pub fn rescale(&self, x_zero: u8, bias: &[i32], multipliers: &[f32]) -> Requantize {
        self.requantize(x_zero, bias, multipliers, 0, [0, 255])
    }

    /// Bytes of scratch memory that [`PackedQConv::run`] needs for `n` images of `h` × `w`.
    pub fn scratch_len(&self, shape: [usize; 3]) -> usize {
        Schedule::new(self, shape).map_or(0, |s| s.tasks() * s.band_len)
    }

    /// Convolves `n` images of `h` × `w` into `y`, which has `n * oh * ow * out_channels` elements.
    ///
    /// # Panics
    /// If a slice is shorter than its shape asks for, or the kernel does not fit the image.
    pub fn run(
        &self,
        threads: &Threads,
        shape: [usize; 3],
        x: &[u8],
        requantize: &Requantize,
        y: &mut [u8],
        scratch: &mut [u8],
    ) {
        let &Requantize { y_zero: zero, qmin, qmax, .. } = requantize;
        let len = y.len();
        let output = Output::U8 { y: y.as_mut_ptr(), zero, qmin, qmax };
        self.execute(threads, shape, x, requantize, (output, len), scratch);
    }

    /// As [`PackedQConv::run`], with the sums multiplied and left in f32 (a QGemm or QLinearConv without output grid).
    pub fn run_to_f32(
        &self,
        threads: &Threads,
        shape: [usize; 3],
        x: &[u8],
        rescale: &Requantize,
        y: &mut [f32],
        scratch: &mut [u8],
    ) {
        let len = y.len();
        self.execute(threads, shape, x, rescale, (Output::F32 { y: y.as_mut_ptr() }, len), scratch);
    }

    fn execute(
        &self,
        threads: &Threads,
        shape: [usize; 3],
        x: &[u8],
        constants: &Requantize,
        (output, y_len): (Output, usize),
        scratch: &mut [u8],
    ) {
        let g = &self.geometry;
        let schedule = Schedule::new(self, shape).expect("the caller gives an image that the kernel fits");
        let [n, h, w] = shape;
        assert!(x.len() >= n * h * w * g.in_channels, "input is shorter than its shape");
        assert!(y_len >= schedule.positions() * g.out_channels, "output is shorter than its shape");
        assert!(scratch.len() >= schedule.tasks() * schedule.band_len, "scratch is shorter than scratch_len");
        let shared = Shared { output, scratch: scratch.as_mut_ptr() };
        threads.run(schedule.tasks(), |task| {
            // SAFETY: tasks write disjoint parts of the output and of the scratch memory, whose lengths were checked above.
            unsafe { self.run_task(&schedule, task, x, constants, &shared) }
        });
    }

    /// Computes one task: some rows and columns of one image, some output channels.
    ///
    /// # Safety
    /// The slices are as long as `schedule` says, and no other thread runs the same task.
    unsafe fn run_task(&self, s: &Schedule, task: usize, x: &[u8], constants: &Requantize, shared: &Shared) {
        let g = &self.geometry;
        let area = s.area(task);
        let channels = g.in_channels;
        let image = &x[area.image * s.input[0] * s.input[1] * channels..][..s.input[0] * s.input[1] * channels];
        if g.is_depthwise() {
            // SAFETY: promised by the caller.
            return unsafe { self.run_depthwise(s, &area, image, constants, shared.output) };
        }
        let first_row = (area.rows[0] * g.stride[0]) as isize - g.pads[0] as isize;
        let first_col = (area.cols[0] * g.stride[1]) as isize - g.pads[1] as isize;
        let base = if s.band_len == 0 {
            // Nothing is padded, so the first row and column are not negative.
            image[(first_row as usize * s.input[1] + first_col as usize) * channels..].as_ptr()
        } else {
            // SAFETY: each task has `band_len` bytes of its own.
            let band = unsafe { std::slice::from_raw_parts_mut(shared.scratch.add(task * s.band_len), s.band_len) };
            let rows = (area.rows[1] - area.rows[0] - 1) * g.stride[0] + g.extent()[0];
            let source = Source { image, size: s.input, channels, zero: constants.x_zero };
            source.copy_window([first_row, first_col], [rows, s.pitch / channels], band);
            band.as_ptr()
        };
        for row in area.rows[0]..area.rows[1] {
            // SAFETY: the row lies in the band (or the image), its positions in the output.
            unsafe {
                let x = base.add((row - area.rows[0]) * g.stride[0] * s.pitch);
                let first = (area.image * s.output[0] + row) * s.output[1] + area.cols[0];
                let output = shared.output.at(first * g.out_channels);
                for group in 0..g.groups {
                    self.run_dense_row(s, &area, group, x, constants, output);
                }
            }
        }
    }

    /// Computes the rows of one task, each channel with its own filter.
    ///
    /// # Safety
    /// As [`PackedQConv::run_task`]; `output` is the whole output.
    unsafe fn run_depthwise(&self, s: &Schedule, area: &Area, image: &[u8], constants: &Requantize, output: Output) {
        let g = &self.geometry;
        let mut rows = vec![None; g.kernel[0].next_multiple_of(ROWS)];
        for row in area.rows[0]..area.rows[1] {
            for (r, offset) in rows.iter_mut().take(g.kernel[0]).enumerate() {
                let y = (row * g.stride[0] + r * g.dilation[0]).wrapping_sub(g.pads[0]);
                *offset = (y < s.input[0]).then(|| y * s.pitch);
            }
            let first = (area.image * s.output[0] + row) * s.output[1] + area.cols[0];
            // SAFETY: the rows lie in the image, the positions in the output.
            unsafe {
                let row = Row {
                    geometry: g,
                    x: image.as_ptr(),
                    width: s.input[1],
                    x_zero: constants.x_zero,
                    rows: &rows,
                    part: s.line_positions,
                    w: self.weights.as_ptr(),
                    offsets: constants.offsets.as_ptr(),
                    multipliers: constants.multipliers.as_ptr(),
                    output: output.at(first * g.out_channels),
                    positions: area.cols[1] - area.cols[0],
                };
                depthwise::run_row(self.isa, &row);
            }
        }
    }

    /// Computes one row of one group.
    ///
    /// # Safety
    /// As [`PackedQConv::run_task`]; `x` and `output` stand at the row's first position.
    unsafe fn run_dense_row(
        &self,
        s: &Schedule,
        area: &Area,
        group: usize,
        x: *const u8,
        constants: &Requantize,
        output: Output,
    ) {
        let g = &self.geometry;
        let vectors = g.group_out().div_ceil(LANES);
        let w_pitch = s.segments.len() * s.steps * STEP * LANES;
        let cols = area.cols[1] - area.cols[0];
        let x_step = g.stride[1] * g.in_channels;
        let mut vector = area.vectors[0];
        while vector < area.vectors[1] {
            let count = s.tile_vectors.min(area.vectors[1] - vector);
            let tiles = cols.div_ceil(dense::max_positions(self.isa, count));
            for tile in 0..tiles {
                let (first, end) = (cols * tile / tiles, cols * (tile + 1) / tiles);
                let packed = (group * vectors + vector) * LANES;
                let channel = vector * LANES;
                // SAFETY: promised by the caller; packed slices are padded to whole vectors.
                unsafe {
                    let tile = Tile {
                        x: x.add(first * x_step + group * g.group_in()),
                        x_step,
                        segments: &s.segments,
                        steps: s.steps,
                        w: self.weights.as_ptr().add(packed / LANES * w_pitch),
                        w_pitch,
                        offsets: constants.offsets.as_ptr().add(packed),
                        multipliers: constants.multipliers.as_ptr().add(packed),
                        output: output.at(first * g.out_channels + group * g.group_out() + channel),
                        y_step: g.out_channels,
                        channels: g.group_out() - channel,
                    };
                    dense::run_tile(self.isa, count, end - first, &tile);
                }
            }
            vector += count;
        }
    }

    /// Which output channel stands at each place of the packed constants; `None` pads.
    fn channel_places(&self) -> Vec<Option<usize>> {
        let g = &self.geometry;
        if g.is_depthwise() {
            let block = depthwise::block_channels(self.isa, g);
            let place = |i: usize| i / block * block + depthwise::channel_at(i % block, block);
            let places = 0..g.out_channels.next_multiple_of(block);
            return places.map(|i| Some(place(i)).filter(|&c| c < g.out_channels)).collect();
        }
        let padded = g.group_out().next_multiple_of(LANES);
        let place = |i: usize| Some(i % padded).filter(|&c| c < g.group_out()).map(|c| i / padded * g.group_out() + c);
        (0..g.groups * padded).map(place).collect()
    }

    /// `[block][kernel column][kernel rows / 4][channels in packed order][4 rows]`.
    fn pack_depthwise(&self, weights: &[i8]) -> Vec<i8> {
        let [kh, kw] = self.geometry.kernel;
        let block = depthwise::block_channels(self.isa, &self.geometry);
        let mut packed = Vec::new();
        for channels in self.channel_places().chunks(block) {
            for column in 0..kw {
                for first in (0..kh).step_by(ROWS) {
                    for channel in channels {
                        let weight = |row: usize| {
                            let inside = channel.filter(|_| row < kh);
                            inside.map_or(0, |c| weights[(c * kh + row) * kw + column])
                        };
                        packed.extend((first..first + ROWS).map(weight));
                    }
                }
            }
        }
        packed
    }

    /// `[vector of 16 output channels][segment][step][16 channels][4 bytes]`, segments padded with zeros to whole steps.
    fn pack_dense(&self, weights: &[i8]) -> Vec<i8> {
        let g = &self.geometry;
        let [kh, kw] = g.kernel;
        let (group_in, taps) = (g.group_in(), merged_taps(g));
        let mut packed = Vec::new();
        for channels in self.channel_places().chunks(LANES) {
            for segment in 0..kh * kw / taps {
                for first in (0..taps * group_in).step_by(STEP) {
                    for channel in channels {
                        // Byte k of a segment is input channel `k % group_in` of tap `k / group_in`.
                        let weight = |k: usize| {
                            let tap = segment * taps + k / group_in;
                            let inside = channel.filter(|_| k < taps * group_in);
                            inside.map_or(0, |o| weights[(o * group_in + k % group_in) * kh * kw + tap])
                        };
                        packed.extend((first..first + STEP).map(weight));
                    }
                }
            }
        }
        packed
    }
}

/// Pointers that tasks share.
struct Shared {
    output: Output,
    scratch: *mut u8,
}

// SAFETY: tasks write disjoint parts.
unsafe impl Sync for Shared {}

#[cfg(test)]
mod tests;
