//! Gradients of a depthwise convolution, vectors over channels.
//!
//! What enters: NHWC images, gradients of the output, weights laid out `[tap][channel]`; the part of a batch that one thread
//! works on. What leaves: the gradient of the images, written or added; the gradient of the weights, added in the form
//! `[tap][channel]`. Padding is never stored: taps beside the image are left out.
//!
//! Sums are by fused multiply-adds in an order that depends on the shapes alone: the same bits on every instruction set.

mod input;
mod weight;

use crate::{ConvGeometry, simd::Isa};
use input::InputGradient;
use weight::WeightGradient;

/// The backward pass of a depthwise convolution.
#[derive(Debug)]
pub struct DepthwiseBackward {
    geometry: ConvGeometry,
    isa: Isa,
}

impl DepthwiseBackward {
    /// For this processor.
    ///
    /// # Panics
    /// If the geometry is not that of a depthwise convolution.
    pub fn new(geometry: &ConvGeometry) -> Self {
        Self::for_isa(Isa::best(), geometry)
    }

    /// For an instruction set.
    ///
    /// # Panics
    /// As [`DepthwiseBackward::new`].
    pub fn for_isa(isa: Isa, geometry: &ConvGeometry) -> Self {
        assert!(geometry.is_valid() && geometry.is_depthwise(), "every channel has one filter");
        DepthwiseBackward { geometry: *geometry, isa }
    }

    /// Length of the form `[tap][channel]`, in which weights are read and their gradient is added up.
    pub fn packed_len(&self) -> usize {
        self.geometry.weight_len()
    }

    /// Brings OIHW weights into the form, which is that of the forward pass too.
    ///
    /// # Panics
    /// If a slice does not have its length.
    pub fn pack(&self, weights: &[f32], packed: &mut [f32]) {
        assert_eq!([weights.len(), packed.len()], [self.packed_len(); 2], "as many numbers as weights");
        let channels = self.geometry.out_channels;
        let taps = packed.len() / channels;
        packed.iter_mut().enumerate().for_each(|(i, to)| *to = weights[i % channels * taps + i / channels]);
    }

    /// Brings a gradient from the form to OIHW.
    ///
    /// # Panics
    /// If a slice does not have its length.
    pub fn unpack(&self, packed: &[f32], gradient: &mut [f32]) {
        assert_eq!([gradient.len(), packed.len()], [self.packed_len(); 2], "as many numbers as weights");
        let channels = self.geometry.out_channels;
        let taps = packed.len() / channels;
        gradient.iter_mut().enumerate().for_each(|(i, to)| *to = packed[i % taps * channels + i / taps]);
    }

    /// Writes the gradient of `n` images of `h` × `w`, or adds it if `add`:
    /// `dx[i, y, x, c] = Σ dy[i, oy, ox, c] * w[tap, c]` over the outputs and taps that read the pixel.
    ///
    /// Shapes: `packed: [taps, channels]`, `dy: [n, output height, output width, channels]`, `dx: [n, h, w, channels]`.
    ///
    /// # Panics
    /// If the kernel does not fit or a slice does not have its length.
    pub fn input_gradient(&self, shape: [usize; 3], packed: &[f32], dy: &[f32], add: bool, dx: &mut [f32]) {
        let [h, w] = [shape[1], shape[2]];
        let output = self.check(shape, dx.len(), dy.len(), packed.len());
        let channels = self.geometry.out_channels;
        let images = dx.chunks_exact_mut((h * w * channels).max(1));
        for (dx, dy) in images.zip(dy.chunks_exact(output[0] * output[1] * channels)) {
            let geometry = &self.geometry;
            self.isa.dispatch(InputGradient { geometry, size: [h, w], output, weights: packed, dy, add, dx });
        }
    }

    /// Adds the gradient of the weights: `dw[tap, c] += Σ dy[i, oy, ox, c] * x[i, the pixel that the tap reads, c]`.
    ///
    /// Shapes: as [`DepthwiseBackward::input_gradient`].
    ///
    /// # Panics
    /// If the kernel does not fit or a slice does not have its length.
    pub fn weight_gradient(&self, shape: [usize; 3], x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let [h, w] = [shape[1], shape[2]];
        let output = self.check(shape, x.len(), dy.len(), dw.len());
        let channels = self.geometry.out_channels;
        let images = x.chunks_exact((h * w * channels).max(1));
        for (x, dy) in images.zip(dy.chunks_exact(output[0] * output[1] * channels)) {
            self.isa.dispatch(WeightGradient { geometry: &self.geometry, size: [h, w], output, x, dy, dw });
        }
    }

    /// Height and width of the output, if all lengths are right.
    fn check(&self, [n, h, w]: [usize; 3], inputs: usize, outputs: usize, weights: usize) -> [usize; 2] {
        let [oh, ow] = self.geometry.output_size(h, w).expect("the kernel fits into the padded image");
        assert_eq!(inputs, n * h * w * self.geometry.in_channels, "images have the given shape");
        assert_eq!(outputs, n * oh * ow * self.geometry.out_channels, "gradients of the output have its shape");
        assert_eq!(weights, self.packed_len(), "as many numbers as weights");
        [oh, ow]
    }
}

/// Which of `count` positions, the first at `from` and `step` apart, lie within `0..size`: bit by bit.
#[inline(always)]
fn mask(count: usize, from: isize, step: usize, size: usize) -> u32 {
    let mut mask = 0;
    for i in 0..count {
        let inside = ((from + (i * step) as isize) as usize) < size;
        mask |= u32::from(inside) << i;
    }
    mask
}

#[cfg(test)]
mod tests;
