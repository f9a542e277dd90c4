//! Pooling of float NHWC images.
//!
//! What enters: images and a window laid over them. What leaves: images, each channel pooled for itself. The result does not
//! depend on the number of threads.

use crate::simd::{Isa, Kernel, Simd};
use crate::{Threads, chunks};

/// A pooling window and the images that it slides over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Height and width of the images.
    pub input: [usize; 2],
    /// Height and width of the result.
    pub output: [usize; 2],
    /// Number of channels.
    pub channels: usize,
    /// Taps.
    pub kernel: [usize; 2],
    /// Steps between positions.
    pub stride: [usize; 2],
    /// Steps between taps.
    pub dilation: [usize; 2],
    /// Rows and columns added at the top, left, bottom and right, which hold nothing.
    pub pads: [usize; 4],
}

impl Pool {
    /// The largest number under the window; `-inf` where it covers nothing. NaN loses against numbers.
    ///
    /// # Panics
    /// If a slice does not have the length of its shape.
    pub fn max(&self, threads: &Threads, x: &[f32], y: &mut [f32]) {
        self.each(threads, x, y, f32::NEG_INFINITY, |a, b| if b > a { b } else { a }, |_| 1.0);
    }

    /// As [`Pool::max`], with the place of each largest number in the image stack in the order N, C, H, W (or N, C, W, H with
    /// `column_major`); the first of equals. Not made for speed.
    pub fn max_with_indices(&self, column_major: bool, x: &[f32], y: &mut [f32], indices: &mut [i64]) {
        let ([h, w], [oh, ow], channels) = (self.input, self.output, self.channels);
        for (i, (y, index)) in y.iter_mut().zip(indices).enumerate() {
            let (pixel, channel) = (i / channels, i % channels);
            let image = pixel / (oh * ow);
            (*y, *index) = (f32::NEG_INFINITY, -1);
            for row in self.image_taps(0, pixel / ow % oh) {
                for column in self.image_taps(1, pixel % ow) {
                    let value = x[((image * h + row) * w + column) * channels + channel];
                    if value > *y {
                        let place = if column_major { column * h + row } else { row * w + column };
                        (*y, *index) = (value, ((image * channels + channel) * h * w + place) as i64);
                    }
                }
            }
        }
    }

    /// The mean of the numbers under the window; with `count_include_pad` the padding counts as zeros. Taps behind the padding
    /// (ceil mode) never count.
    ///
    /// # Panics
    /// If a slice does not have the length of its shape.
    pub fn average(&self, threads: &Threads, count_include_pad: bool, x: &[f32], y: &mut [f32]) {
        let count = |position: [usize; 2]| {
            let taps = |axis: usize| match count_include_pad {
                true => self.taps(axis, position[axis], 0, self.input[axis] + self.pads[axis] + self.pads[axis + 2]).count(),
                false => self.image_taps(axis, position[axis]).count(),
            };
            (taps(0) * taps(1)) as f32
        };
        self.each(threads, x, y, 0.0, |a, b| a + b, count);
    }

    /// For every output: starts from `start`, joins the numbers under the window row by row, divides by `count(position)`.
    fn each(
        &self,
        threads: &Threads,
        x: &[f32],
        y: &mut [f32],
        start: f32,
        join: impl Fn(f32, f32) -> f32 + Copy + Sync + Send,
        count: impl Fn([usize; 2]) -> f32 + Sync + Send,
    ) {
        let ([h, w], [oh, ow], channels) = (self.input, self.output, self.channels);
        let isa = Isa::best();
        let cost = self.kernel[0] * self.kernel[1];
        chunks::for_each_chunk(threads, y, channels, cost, |first, y| {
            for (pixel, y) in (first / channels..).zip(y.chunks_exact_mut(channels)) {
                let position = [pixel / ow % oh, pixel % ow];
                let image = &x[pixel / (ow * oh) * h * w * channels..][..h * w * channels];
                y.fill(start);
                for row in self.image_taps(0, position[0]) {
                    for column in self.image_taps(1, position[1]) {
                        let x = &image[(row * w + column) * channels..][..channels];
                        isa.dispatch(Join { x, y, join });
                    }
                }
                let count = count(position);
                if count != 1.0 {
                    y.iter_mut().for_each(|y| *y /= count);
                }
            }
        });
    }

    /// Rows or columns of the image under the window at `position`.
    fn image_taps(&self, axis: usize, position: usize) -> impl Iterator<Item = usize> {
        let start = self.pads[axis];
        self.taps(axis, position, start, start + self.input[axis]).map(move |tap| tap - start)
    }

    /// Rows or columns of the padded image under the window, from `start` up to `end`.
    fn taps(&self, axis: usize, position: usize, start: usize, end: usize) -> impl Iterator<Item = usize> {
        let (first, dilation) = (position * self.stride[axis], self.dilation[axis]);
        (0..self.kernel[axis]).map(move |k| first + k * dilation).filter(move |tap| (start..end).contains(tap))
    }
}

struct Join<'a, F> {
    x: &'a [f32],
    y: &'a mut [f32],
    join: F,
}

impl<F: Fn(f32, f32) -> f32 + Copy> Kernel for Join<'_, F> {
    type Output = ();
    /// A plain loop, compiled for each instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Join { x, y, join } = self;
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = join(*y, x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kernel: usize, stride: usize, dilation: usize, pads: [usize; 2], output: usize) -> Pool {
        Pool {
            input: [1, 8],
            output: [1, output],
            channels: 1,
            kernel: [1, kernel],
            stride: [1, stride],
            dilation: [1, dilation],
            pads: [0, pads[0], 0, pads[1]],
        }
    }

    /// Expected values are those of ONNX Runtime 1.31.1 for 1…8.
    #[test]
    fn windows_count_what_onnx_runtime_counts() {
        let threads = Threads::new(2);
        let x: Vec<f32> = (1..=8).map(|i| i as f32).collect();
        let average = |pool: Pool, include| {
            let mut y = vec![0.0; pool.output[1]];
            pool.average(&threads, include, &x, &mut y);
            y
        };
        let ceil = line(3, 2, 1, [0, 0], 4);
        assert_eq!(average(ceil, true), [2.0, 4.0, 6.0, 7.5]);
        assert_eq!(average(line(4, 3, 1, [1, 1], 3), true), [1.5, 4.5, 5.25]);
        assert_eq!(average(line(4, 3, 1, [1, 1], 3), false), [2.0, 4.5, 7.0]);
        let dilated = line(3, 2, 2, [2, 2], 5);
        assert_eq!(average(dilated, true), [4.0 / 3.0, 3.0, 5.0, 4.0, 3.5]);
        assert_eq!(average(dilated, false), [2.0, 3.0, 5.0, 6.0, 7.0]);
        let mut y = vec![0.0; 4];
        ceil.max(&threads, &x, &mut y);
        assert_eq!(y, [3.0, 5.0, 7.0, 8.0]);
    }

    #[test]
    fn channels_and_images_are_apart() {
        let pool = Pool {
            input: [3, 3],
            output: [2, 2],
            channels: 5,
            kernel: [2, 2],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [0; 4],
        };
        let x: Vec<f32> = (0..2 * 9 * 5).map(|i| i as f32).collect();
        let mut y = vec![0.0; 2 * 4 * 5];
        pool.max(&Threads::new(1), &x, &mut y);
        let expected = (0..40).map(|i| (45 * (i / 20) + 15 * (i / 10 % 2 + 1) + 5 * (i / 5 % 2 + 1) + i % 5) as f32);
        assert!(y.iter().copied().eq(expected));
        let (mut values, mut indices) = (y.clone(), vec![0; y.len()]);
        pool.max_with_indices(false, &x, &mut values, &mut indices);
        assert_eq!(values, y);
        // Image 1, channel 3, bottom right window: the last of the 9 pixels.
        assert_eq!(indices[39 - 1], (5 + 3) * 9 + 8);
        pool.max_with_indices(true, &x, &mut values, &mut indices);
        assert_eq!(indices[5], 2 * 3 + 1);
    }
}
