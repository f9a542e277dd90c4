//! Pooling of quantized NHWC images.
//!
//! What enters: `u8` images with their grids and a window. What leaves: `u8` images. Equal on every element to ONNX Runtime's
//! MaxPool on u8, QLinearAveragePool and QLinearGlobalAveragePool.

use super::quantize::{GridParams, round_clamped};
use crate::Threads;

/// A pooling window: kernel, stride, dilation (height, width) and pads (top, left, bottom, right).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Height and width.
    pub kernel: [usize; 2],
    /// Step between output positions.
    pub stride: [usize; 2],
    /// Step between taps.
    pub dilation: [usize; 2],
    /// Rows and columns around the image that belong to no pixel. Bottom and right only matter for counting.
    pub pads: [usize; 4],
}

/// Shape of a pooling: `n` images of `h` × `w` with `channels` become `n` images of `oh` × `ow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Number of images.
    pub n: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output, as ONNX computes them (floor or ceil mode).
    pub output: [usize; 2],
    /// Number of channels.
    pub channels: usize,
}

impl PoolShape {
    /// Calls `position(output pixel, taps)` for each output pixel of output row `row` (over all images), `taps` being the input
    /// pixels under the window that lie inside the image.
    fn for_row(&self, window: &Window, row: usize, mut position: impl FnMut(usize, &[usize])) {
        let (image, row_of_image) = (row / self.output[0], row % self.output[0]);
        // The pixel of the image under tap `k` of the window at `at`, along one axis.
        let pixel = |axis: usize, at: usize, k: usize| {
            let i = (at * window.stride[axis] + k * window.dilation[axis]).wrapping_sub(window.pads[axis]);
            (i < self.input[axis]).then_some(i)
        };
        let mut taps = Vec::with_capacity(window.kernel[0] * window.kernel[1]);
        for col in 0..self.output[1] {
            taps.clear();
            for r in (0..window.kernel[0]).filter_map(|k| pixel(0, row_of_image, k)) {
                let first = (image * self.input[0] + r) * self.input[1];
                taps.extend((0..window.kernel[1]).filter_map(|k| pixel(1, col, k)).map(|c| first + c));
            }
            position(row * self.output[1] + col, &taps);
        }
    }
}

/// Splits `y` into rows of `len` elements and runs `task(row, its elements)` on each.
fn for_rows<T: Send>(threads: &Threads, y: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync + Send) {
    struct Rows<T>(*mut T);
    // SAFETY: each task touches one row only.
    unsafe impl<T: Send> Sync for Rows<T> {}
    let (count, rows) = (y.len() / len.max(1), Rows(y.as_mut_ptr()));
    let rows = &rows;
    threads.run(count, |row| {
        // SAFETY: rows are disjoint and `count` of them fit.
        task(row, unsafe { std::slice::from_raw_parts_mut(rows.0.add(row * len), len) });
    });
}

/// The largest byte under each window (0 where no pixel lies under it).
pub fn max_pool(threads: &Threads, shape: &PoolShape, window: &Window, x: &[u8], y: &mut [u8]) {
    let channels = shape.channels;
    for_rows(threads, y, shape.output[1] * channels, |row, out| {
        let first = row * shape.output[1];
        shape.for_row(window, row, |pixel, taps| {
            let out = &mut out[(pixel - first) * channels..][..channels];
            out.fill(0);
            for &tap in taps {
                for (out, &x) in out.iter_mut().zip(&x[tap * channels..][..channels]) {
                    *out = (*out).max(x);
                }
            }
        });
    });
}

/// The mean under each window: inputs are dequantized, summed in f32 row by row, divided by the number of pixels (of the whole
/// kernel with `count_include_pad`), and quantized as `clamp(round_ties_even(mean / scale + zero))`, the zero point inside.
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn average_pool(
    threads: &Threads,
    shape: &PoolShape,
    window: &Window,
    count_include_pad: bool,
    x: &[u8],
    x_grid: &GridParams,
    y: &mut [u8],
    y_grid: &GridParams,
) {
    let whole = window.pads == [0; 4] && window.kernel == shape.input;
    if whole && shape.output == [1, 1] {
        return global_average_pool(shape.n, shape.input[0] * shape.input[1], x, x_grid, y, y_grid);
    }
    let channels = shape.channels;
    let real: [f32; 256] = std::array::from_fn(|q| x_grid.scale * (q as i32 - x_grid.zero) as f32);
    for_rows(threads, y, shape.output[1] * channels, |row, out| {
        let first = row * shape.output[1];
        let mut sums = vec![0.0f32; channels];
        shape.for_row(window, row, |pixel, taps| {
            sums.fill(0.0);
            for &tap in taps {
                for (sum, &x) in sums.iter_mut().zip(&x[tap * channels..][..channels]) {
                    *sum += real[usize::from(x)];
                }
            }
            let count = if count_include_pad { window.kernel[0] * window.kernel[1] } else { taps.len() };
            for (out, sum) in out[(pixel - first) * channels..].iter_mut().zip(&sums) {
                let v = sum / count as f32 / y_grid.scale + y_grid.zero as f32;
                *out = round_clamped(v, [y_grid.qmin as f32, y_grid.qmax as f32]) as u8;
            }
        });
    });
}

/// The mean of each image's channel: `clamp(round_ties_even(f32(Σ (x - zero)) * scale) + zero)` with
/// `scale = x_scale / (y_scale * f32(pixels))`.
pub fn global_average_pool(n: usize, pixels: usize, x: &[u8], x_grid: &GridParams, y: &mut [u8], y_grid: &GridParams) {
    let channels = y.len() / n.max(1);
    let scale = x_grid.scale / (y_grid.scale * pixels as f32);
    let bounds = [(y_grid.qmin - y_grid.zero) as f32, (y_grid.qmax - y_grid.zero) as f32];
    let mut sums = vec![0i32; channels];
    for (x, y) in x.chunks_exact(pixels * channels).zip(y.chunks_exact_mut(channels)) {
        sums.fill(-x_grid.zero * pixels as i32);
        for pixel in x.chunks_exact(channels) {
            for (sum, &x) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(x);
            }
        }
        for (y, &sum) in y.iter_mut().zip(&sums) {
            *y = (round_clamped(sum as f32 * scale, bounds) + y_grid.zero) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_at_the_border_count_only_pixels() {
        // 3 x 3 image of one channel, kernel 2 x 2, stride 2, one row and column of pads all around.
        let shape = PoolShape { n: 1, input: [3, 3], output: [2, 2], channels: 1 };
        let window = Window { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], pads: [1; 4] };
        let x = [8, 2, 4, 6, 1, 3, 9, 7, 5];
        let (grid, threads) = (GridParams::u8(0.5, 0), Threads::new(1));
        let mut y = [0; 4];
        max_pool(&threads, &shape, &window, &x, &mut y);
        assert_eq!(y, [8, 4, 9, 7]);
        average_pool(&threads, &shape, &window, false, &x, &grid, &mut y, &grid);
        assert_eq!(y, [8, 3, 8, 4]); // 7.5 rounds to even
        average_pool(&threads, &shape, &window, true, &x, &grid, &mut y, &grid);
        assert_eq!(y, [2, 2, 4, 4]); // 1.5 and 3.75 round up
    }

    #[test]
    fn dilated_windows_skip_pixels() {
        let shape = PoolShape { n: 1, input: [1, 5], output: [1, 3], channels: 2 };
        let window = Window { kernel: [1, 2], stride: [1, 1], dilation: [1, 2], pads: [0; 4] };
        let mut y = [0; 6];
        max_pool(&Threads::new(2), &shape, &window, &[1, 50, 2, 40, 3, 30, 4, 20, 5, 10], &mut y);
        assert_eq!(y, [3, 50, 4, 40, 5, 30]);
    }

    #[test]
    fn the_mean_of_a_channel_subtracts_the_zero_point() {
        let mut y = [0; 4];
        let x = [10, 20, 30, 40, 12, 20, 30, 41];
        global_average_pool(2, 2, &x, &GridParams::u8(0.2, 10), &mut y, &GridParams::u8(0.1, 5));
        // mean - 10, doubled, plus 5: sums 20, 40 and 22, 41 (the last 20.5 * 2 + 5 = 46).
        assert_eq!(y, [25, 45, 27, 46]);
    }
}
