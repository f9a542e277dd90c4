//! The inner kernel of depthwise convolutions: one row of positions, a block of channels at a time.
//!
//! What enters: pointers to input bytes (channels contiguous), packed weights and one output row. What leaves: the written row.
//!
//! Kernel rows are taken four at a time: the bytes of one column are interleaved so that each 32-bit lane holds four rows of one
//! channel, which is what an 8-bit dot product wants, and an interleaved column then serves every tap that reaches it.
//! Interleaving in 128-bit lanes puts channels `16l + 4j .. 16l + 4j + 4` of a block into lane l of vector j; weights, offsets and
//! multipliers are packed in that order, and packing the results undoes it.

use super::Isa;
use super::dense::{Output, store_scalar};
use crate::geometry::ConvGeometry;

/// Kernel rows that one dot product takes.
pub(super) const ROWS: usize = 4;
/// Interleaved columns (times groups of four rows) that the fast kernels keep.
const LINE: usize = 64;

/// Channels of one block.
pub(super) fn block_channels(isa: Isa, g: &ConvGeometry) -> usize {
    match vectors(isa, g) {
        Vectors::Zmm => 64,
        Vectors::Ymm | Vectors::YmmVnni => 32,
        Vectors::None => 16,
    }
}

/// Which registers a convolution uses.
enum Vectors {
    Zmm,
    YmmVnni,
    Ymm,
    None,
}

fn vectors(isa: Isa, g: &ConvGeometry) -> Vectors {
    let fits = g.extent()[1] * g.kernel[0].div_ceil(ROWS) <= LINE;
    match isa {
        Isa::Avx512Vnni if fits && g.in_channels <= 32 => Vectors::YmmVnni,
        Isa::Avx512Vnni if fits => Vectors::Zmm,
        Isa::Avx2 if fits => Vectors::Ymm,
        _ => Vectors::None,
    }
}

/// Which channel of a block stands at place `i` of a packed block: vector `j = i / (block / 4)`, lane `l`, then four in a row.
pub(super) fn channel_at(i: usize, block: usize) -> usize {
    let (vector, rest) = (i / (block / 4), i % (block / 4));
    16 * (rest / 4) + 4 * vector + rest % 4
}

/// One row of output positions.
pub(super) struct Row<'a> {
    pub geometry: &'a ConvGeometry,
    /// First channel of the image's first pixel.
    pub x: *const u8,
    /// Pixels in a row of the image.
    pub width: usize,
    /// What pixels outside the image hold.
    pub x_zero: u8,
    /// Byte offset of the image row under each kernel row, `None` outside the image; a multiple of four, surplus rows have zero
    /// weights.
    pub rows: &'a [Option<usize>],
    /// Positions that [`LINE`] interleaved columns suffice for.
    pub part: usize,
    /// Packed weights `[block][kernel column][rows / 4][block channels][4]`.
    pub w: *const i8,
    /// What the sums start from, in packed order.
    pub offsets: *const i32,
    /// What the sums are multiplied by, in packed order.
    pub multipliers: *const f32,
    /// First output element.
    pub output: Output,
    /// Number of positions.
    pub positions: usize,
}

impl Row<'_> {
    /// The byte offset of a column of the padded image, if it lies inside the image.
    #[inline(always)]
    fn column(&self, column: usize) -> Option<usize> {
        let column = column.wrapping_sub(self.geometry.pads[1]);
        (column < self.width).then(|| column * self.geometry.in_channels)
    }
}

/// How many positions a line of interleaved columns suffices for.
pub(super) fn line_positions(g: &ConvGeometry) -> usize {
    (LINE / g.kernel[0].div_ceil(ROWS)).saturating_sub(g.extent()[1]) / g.stride[1] + 1
}

/// Computes one row.
///
/// # Safety
/// `isa` is available, the rows lie within the input and the positions within the output.
pub(super) unsafe fn run_row(isa: Isa, row: &Row) {
    let channels = row.geometry.in_channels;
    let block = block_channels(isa, row.geometry);
    for first in (0..channels).step_by(block) {
        let count = block.min(channels - first);
        // SAFETY: promised by the caller; the packed slices are padded to whole blocks.
        unsafe {
            let part = Row {
                x: row.x.add(first),
                w: row.w.add(first * row.geometry.kernel[1] * row.rows.len()),
                offsets: row.offsets.add(first),
                multipliers: row.multipliers.add(first),
                output: row.output.at(first),
                ..*row
            };
            match vectors(isa, row.geometry) {
                #[cfg(target_arch = "x86_64")]
                Vectors::Zmm => x86::zmm(&part, count),
                #[cfg(target_arch = "x86_64")]
                Vectors::YmmVnni => x86::ymm_vnni(&part, count),
                #[cfg(target_arch = "x86_64")]
                Vectors::Ymm => x86::ymm(&part, count),
                _ => portable(&part, count),
            }
        }
    }
}

/// One block of 16 channels in plain Rust.
unsafe fn portable(row: &Row, count: usize) {
    let g = row.geometry;
    for p in 0..row.positions {
        // SAFETY: `run_row` promises that the row lies within its buffers.
        unsafe {
            let mut acc = row.offsets.cast::<[i32; 16]>().read_unaligned();
            for s in 0..g.kernel[1] {
                let column = row.column(p * g.stride[1] + s * g.dilation[1]);
                for (r, &offset) in row.rows.iter().enumerate() {
                    let w = row.w.add((s * row.rows.len() + r / ROWS * ROWS) * 16 + r % ROWS);
                    let x = offset.zip(column).map(|(offset, column)| row.x.add(offset + column));
                    for (c, acc) in acc[..count].iter_mut().enumerate() {
                        let x = x.map_or(row.x_zero, |x| *x.add(c));
                        *acc = acc.wrapping_add(i32::from(x) * i32::from(*w.add(c * ROWS)));
                    }
                }
            }
            store_scalar(&acc[..count], row.multipliers, row.output.at(p * g.in_channels));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;
