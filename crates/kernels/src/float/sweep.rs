//! Which positions a convolution computes and what they read.
//!
//! What enters: sizes of an image and of a window that slides over it. What leaves: the place of every position's input, and
//! bands of it with the zeros around the image put in, so that inner loops test no border. It knows no weights.

use crate::ConvGeometry;

/// Positions of a sliding window over some images.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sweep {
    /// Images, their rows and columns.
    pub images: usize,
    pub input: [usize; 2],
    pub channels: usize,
    /// Input row and column under the first tap of the first position; beside the image there are zeros.
    pub origin: [isize; 2],
    /// Input rows and columns between positions.
    pub stride: [usize; 2],
    /// Input rows and columns that a position reaches.
    pub extent: [usize; 2],
    /// Rows and columns of positions in an image.
    pub output: [usize; 2],
    /// Whether position `i` of all reads exactly pixel `i` of all.
    pub pixelwise: bool,
}

impl Sweep {
    /// The positions of a convolution of `n` images of `h` × `w`.
    pub fn new(g: &ConvGeometry, [n, h, w]: [usize; 3]) -> Self {
        Sweep {
            images: n,
            input: [h, w],
            channels: g.in_channels,
            origin: [-(g.pads[0] as isize), -(g.pads[1] as isize)],
            stride: g.stride,
            extent: g.extent(),
            output: g.output_size(h, w).unwrap_or([0, 0]),
            pixelwise: g.is_pointwise(),
        }
    }

    /// Whether a position reads beside the image.
    pub fn needs_zeros(&self) -> bool {
        (0..2).any(|i| {
            let reach = self.reach(i, self.output[i]) as isize;
            self.origin[i] < 0 || self.origin[i] + reach > self.input[i] as isize
        })
    }

    /// Input rows (axis 0) or columns that `count` neighbouring positions reach.
    fn reach(&self, axis: usize, count: usize) -> usize {
        (count.max(1) - 1) * self.stride[axis] + self.extent[axis]
    }

    /// Numbers of a band of input for `rows` rows of positions, zeros included.
    pub fn band_len(&self, rows: usize) -> usize {
        self.reach(0, rows) * self.band_row()
    }

    /// Numbers of a row of a band.
    fn band_row(&self) -> usize {
        self.reach(1, self.output[1]) * self.channels
    }

    /// The input of `rows` rows of positions of an image from row `start` on, and the numbers from one row of input to the
    /// next: in the image itself, or copied to `scratch` where zeros are needed.
    pub fn band<'a>(
        &self,
        x: &'a [f32],
        image: usize,
        start: usize,
        rows: usize,
        scratch: &'a mut [f32],
    ) -> (&'a [f32], usize) {
        let [h, w] = self.input;
        let row = w * self.channels;
        let x = &x[image * h * row..][..h * row];
        let top = self.origin[0] + (start * self.stride[0]) as isize;
        if !self.needs_zeros() {
            return (&x[top as usize * row + self.origin[1] as usize * self.channels..], row);
        }
        let len = self.band_len(rows);
        let left = self.origin[1].min(0).unsigned_abs().min(self.reach(1, self.output[1]));
        let first = self.origin[1].max(0).unsigned_abs().min(w);
        let copied = (w - first).min(self.reach(1, self.output[1]) - left) * self.channels;
        let left = left * self.channels;
        for (i, to) in scratch[..len].chunks_exact_mut(self.band_row()).enumerate() {
            match usize::try_from(top + i as isize) {
                Ok(from) if from < h => {
                    to[..left].fill(0.0);
                    to[left..][..copied].copy_from_slice(&x[from * row + first * self.channels..][..copied]);
                    to[left + copied..].fill(0.0);
                }
                _ => to.fill(0.0),
            }
        }
        (&scratch[..len], self.band_row())
    }
}

/// The contiguous runs of numbers that a position reads: a run for each row and each of `columns` columns of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs {
    pub rows: usize,
    pub columns: usize,
    /// Numbers from one run to the next.
    pub row_step: usize,
    pub column_step: usize,
    /// Numbers in a run.
    pub len: usize,
}

impl Runs {
    /// The runs of a convolution, with `row` numbers between rows of input. Neighbouring taps of one group are one run.
    pub fn new(g: &ConvGeometry, row: usize) -> Self {
        let joined = g.groups == 1 && g.dilation[1] == 1;
        let taps = if joined { g.kernel[1] } else { 1 };
        Runs {
            rows: g.kernel[0],
            columns: g.kernel[1] / taps,
            row_step: g.dilation[0] * row,
            column_step: g.dilation[1] * g.in_channels,
            len: taps * g.group_in(),
        }
    }

    /// Numbers in all runs.
    pub fn total(&self) -> usize {
        self.rows * self.columns * self.len
    }
}
