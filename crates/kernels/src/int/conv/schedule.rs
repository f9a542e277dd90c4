//! How a convolution is cut into tasks, and the bands of padded input that they read.
//!
//! What enters: a geometry, the shape of the images and the tile sizes of the instruction set. What leaves: ranges and offsets. It
//! knows no weights and, but for [`Source`], no data.

use super::PackedQConv;
use crate::geometry::ConvGeometry;
use crate::int::dense::{self, LANES, STEP};
use crate::int::{Isa, depthwise};

/// Multiply-accumulates worth a task of their own.
const TASK_MACS: u64 = 512 * 1024;
/// Output positions that a task should have, so that it reads its weights often enough.
const TASK_POSITIONS: usize = 48;

/// How many taps of a kernel row lie side by side in memory, so that one run of bytes covers them.
pub(super) fn merged_taps(g: &ConvGeometry) -> usize {
    if g.groups == 1 && g.dilation[1] == 1 { g.kernel[1] } else { 1 }
}

/// How one call is cut into tasks. Depends on the shapes only, not on the number of threads.
pub(super) struct Schedule {
    /// Rows and columns of the input and of the output; a matrix product is one long row.
    pub(super) input: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) images: usize,
    /// Rows, columns and channel vectors of a task.
    pub(super) task: [usize; 3],
    /// Tasks along rows, columns and channel vectors.
    pub(super) counts: [usize; 3],
    pub(super) vectors: usize,
    pub(super) tile_vectors: usize,
    /// Byte offsets of the runs of input bytes, and the steps of each.
    pub(super) segments: Vec<usize>,
    pub(super) steps: usize,
    /// Positions of a depthwise row that are computed together.
    pub(super) line_positions: usize,
    /// Bytes between input rows as the kernel sees them, and of a task's copied band (0: it reads the image itself).
    pub(super) pitch: usize,
    pub(super) band_len: usize,
}

/// The part of the output that one task computes, as half-open ranges.
pub(super) struct Area {
    pub(super) image: usize,
    pub(super) rows: [usize; 2],
    pub(super) cols: [usize; 2],
    pub(super) vectors: [usize; 2],
}

impl Schedule {
    pub(super) fn new(packed: &PackedQConv, [n, h, w]: [usize; 3]) -> Option<Schedule> {
        let g = &packed.geometry;
        let [oh, ow] = g.output_size(h, w)?;
        let (images, input, output) =
            if g.is_pointwise() { (1, [1, n * h * w], [1, n * h * w]) } else { (n, [h, w], [oh, ow]) };
        let vectors = if g.groups == 1 { g.out_channels.div_ceil(LANES) } else { g.group_out().div_ceil(LANES) };
        let wanted = (g.macs(n, h, w) / TASK_MACS).max(1) as usize;
        // First along positions (columns of a matrix product, rows of an image), then along output channels.
        let row_positions = if g.is_pointwise() { 1 } else { ow };
        let units = images * output[0] * output[1] / row_positions;
        let per_task = (units / wanted).max(TASK_POSITIONS / row_positions).max(1);
        let task_rows = if g.is_pointwise() { 1 } else { per_task.min(oh) };
        let task_cols = if g.is_pointwise() { per_task.next_multiple_of(24).min(output[1].max(1)) } else { ow };
        let counts = [output[0].div_ceil(task_rows), output[1].div_ceil(task_cols)];
        let splits = if g.groups == 1 {
            (wanted / (images * counts[0] * counts[1]).max(1)).clamp(1, vectors.div_ceil(4))
        } else {
            1
        };
        let task_vectors = vectors.div_ceil(splits);

        let taps = merged_taps(g);
        let segment_len = taps * g.group_in();
        let copies = !g.is_depthwise() && (g.pads != [0; 4] || !segment_len.is_multiple_of(STEP));
        let band_cols = (task_cols.max(1) - 1) * g.stride[1] + g.extent()[1];
        let band_rows = (task_rows - 1) * g.stride[0] + g.extent()[0];
        let pitch = if copies { band_cols } else { input[1] } * g.in_channels;
        let offset = |row: usize, col: usize| row * g.dilation[0] * pitch + col * g.dilation[1] * g.in_channels;
        let columns = (0..g.kernel[1]).step_by(taps);
        let taps = (0..g.kernel[0]).flat_map(|r| columns.clone().map(move |s| (r, s)));
        Some(Schedule {
            input,
            output,
            images,
            task: [task_rows, task_cols, task_vectors],
            counts: [counts[0], counts[1], vectors.div_ceil(task_vectors)],
            vectors,
            tile_vectors: tile_vectors(packed.isa, task_vectors, task_cols),
            segments: taps.map(|(r, s)| offset(r, s)).collect(),
            line_positions: depthwise::line_positions(g),
            steps: segment_len.div_ceil(STEP),
            pitch,
            band_len: if copies { band_rows * pitch + STEP } else { 0 },
        })
    }

    pub(super) fn tasks(&self) -> usize {
        self.images * self.counts.iter().product::<usize>()
    }

    pub(super) fn positions(&self) -> usize {
        self.images * self.output[0] * self.output[1]
    }

    pub(super) fn area(&self, task: usize) -> Area {
        let [rows, cols, vectors] = self.counts;
        let range = |i: usize, len: usize, end: usize| [i * len, ((i + 1) * len).min(end)];
        Area {
            image: task / (rows * cols * vectors),
            rows: range(task / (cols * vectors) % rows, self.task[0], self.output[0]),
            cols: range(task / vectors % cols, self.task[1], self.output[1]),
            vectors: range(task % vectors, self.task[2], self.vectors),
        }
    }
}

/// The tile width with the fewest estimated cycles: dot products issue two a cycle, and so do loads.
fn tile_vectors(isa: Isa, vectors: usize, cols: usize) -> usize {
    let cycles = |count: usize| {
        let tiles = cols.div_ceil(dense::max_positions(isa, count));
        let positions = cols.div_ceil(tiles);
        let tile = |count: usize| (count * positions).max(count + positions) + 2;
        tiles
            * (vectors / count * tile(count)
                + match vectors % count {
                    0 => 0,
                    rest => tile(rest),
                })
    };
    let widest = dense::max_vectors(isa).min(vectors);
    (1..=widest).rev().min_by_key(|&count| cycles(count)).unwrap_or(1)
}

/// One NHWC image and what lies around it.
pub(super) struct Source<'a> {
    pub(super) image: &'a [u8],
    pub(super) size: [usize; 2],
    pub(super) channels: usize,
    pub(super) zero: u8,
}

impl Source<'_> {
    /// Copies the window of `rows` × `cols` positions that begins at `first` (which may lie outside) to the start of `band`.
    pub(super) fn copy_window(&self, first: [isize; 2], [rows, cols]: [usize; 2], band: &mut [u8]) {
        let [h, w] = self.size;
        let pitch = cols * self.channels;
        // Columns of the window that lie inside the image.
        let start = (-first[1]).clamp(0, cols as isize) as usize;
        let end = (w as isize - first[1]).clamp(start as isize, cols as isize) as usize;
        for (r, line) in band.chunks_exact_mut(pitch).take(rows).enumerate() {
            let row = first[0] + r as isize;
            if row < 0 || row >= h as isize || start == end {
                line.fill(self.zero);
                continue;
            }
            let from = (row as usize * w + (first[1] + start as isize) as usize) * self.channels;
            let (start, end) = (start * self.channels, end * self.channels);
            line[..start].fill(self.zero);
            line[start..end].copy_from_slice(&self.image[from..from + end - start]);
            line[end..].fill(self.zero);
        }
        // Whole steps may read past the last row; what they read meets zero weights.
        let used = rows * pitch;
        band[used..used + STEP].fill(self.zero);
    }
}
