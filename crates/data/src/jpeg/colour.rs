//! From coefficients to RGB: samples of each component, chroma brought to full size, colour conversion.

use super::{Component, Frame, idct};
use crate::Image;

/// Samples of one component, row by row.
struct Plane {
    /// Samples of a row in memory.
    stride: usize,
    samples: Vec<u8>,
}

impl Plane {
    fn row(&self, row: usize) -> &[u8] {
        &self.samples[row * self.stride..][..self.stride]
    }
}

/// Turns a complete frame into an image. Components other than one or three do not occur.
pub(super) fn assemble(frame: Frame, is_rgb: bool) -> Image {
    let (width, height) = (frame.width, frame.height);
    let planes: Vec<Plane> =
        frame.components.iter().map(|c| upsample(c, frame.max_h / c.h, frame.max_v / c.v, height)).collect();
    let mut rgb = vec![0; width * height * 3];
    for (row, line) in rgb.chunks_exact_mut(width * 3).enumerate() {
        let pixels = line.as_chunks_mut::<3>().0.iter_mut();
        match planes.as_slice() {
            [grey] => pixels.zip(grey.row(row)).for_each(|(pixel, &y)| *pixel = [y; 3]),
            [a, b, c, ..] => {
                for (pixel, ((&a, &b), &c)) in pixels.zip(a.row(row).iter().zip(b.row(row)).zip(c.row(row))) {
                    *pixel = if is_rgb { [a, b, c] } else { to_rgb([a, b, c]) };
                }
            }
            _ => {}
        }
    }
    Image { width, height, rgb }
}

/// JFIF luma and chroma to RGB: `R = Y + 1.402·Cr`, `G = Y − 0.34414·Cb − 0.71414·Cr`, `B = Y + 1.772·Cb`, with 16 fraction bits.
fn to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let clamp = |v: i32| v.clamp(0, 255) as u8;
    [
        clamp(y + ((91881 * cr + HALF) >> 16)),
        clamp(y + ((-22554 * cb - 46802 * cr + HALF) >> 16)),
        clamp(y + ((116130 * cb + HALF) >> 16)),
    ]
}

/// The samples of a component at the component's own size.
fn samples(component: &Component) -> Plane {
    let stride = component.blocks_wide * 8;
    let mut samples = vec![0; stride * component.blocks_high * 8];
    // A frame is only assembled when every component has its table.
    let quant = component.quant.unwrap_or([1; 64]);
    for (index, block) in component.coefficients.iter().enumerate() {
        let (top, left) = (index / component.blocks_wide * 8, index % component.blocks_wide * 8);
        for (row, line) in idct::inverse(block, &quant).as_chunks::<8>().0.iter().enumerate() {
            samples[(top + row) * stride + left..][..8].copy_from_slice(line);
        }
    }
    Plane { stride, samples }
}

/// The samples of a component at the image's size, `wider` and `higher` times its own.
///
/// Factors of two use libjpeg's triangle filter: a new sample is 3/4 the nearer and 1/4 the farther old one, in each
/// direction, with rounding that alternates between neighbours. Narrow (at most two columns) components and other factors repeat samples.
fn upsample(component: &Component, wider: usize, higher: usize, height: usize) -> Plane {
    let plane = samples(component);
    if wider == 1 && higher == 1 {
        return plane;
    }
    let width = component.width;
    let stride = width * wider;
    let smooth_wide = wider == 2 && width > 2;
    let mut samples = Vec::with_capacity(stride * height);
    for row in 0..height {
        let near = &plane.row(row / higher)[..width];
        // The next row on the side of the new sample; the outermost rows stand for their missing neighbours.
        let below = row % 2 == 1;
        let other = if below { (row / 2 + 1).min(component.height - 1) } else { (row / 2).saturating_sub(1) };
        match (wider, higher) {
            (2, 1) if smooth_wide => {
                let at = |i: usize| u32::from(near[i]);
                let (mut last, mut this) = (at(0), at(0));
                samples.push(near[0]);
                for i in 0..width - 1 {
                    let next = at(i + 1);
                    if i > 0 {
                        samples.push(((3 * this + last + 1) >> 2) as u8);
                    }
                    samples.push(((3 * this + next + 2) >> 2) as u8);
                    (last, this) = (this, next);
                }
                samples.push(((3 * this + last + 1) >> 2) as u8);
                samples.push(near[width - 1]);
            }
            (1, 2) => {
                let far = &plane.row(other)[..width];
                let bias = if below { 2 } else { 1 };
                let mixed = near.iter().zip(far).map(|(&n, &f)| ((3 * u32::from(n) + u32::from(f) + bias) >> 2) as u8);
                samples.extend(mixed);
            }
            (2, 2) if smooth_wide => {
                let far = &plane.row(other)[..width];
                let at = |i: usize| 3 * u32::from(near[i]) + u32::from(far[i]);
                let (mut last, mut this) = (at(0), at(0));
                for i in 0..width {
                    let next = if i + 1 < width { at(i + 1) } else { this };
                    samples.push(((3 * this + last + 8) >> 4) as u8);
                    samples.push(((3 * this + next + 7) >> 4) as u8);
                    (last, this) = (this, next);
                }
            }
            _ => samples.extend(near.iter().flat_map(|&v| std::iter::repeat_n(v, wider))),
        }
    }
    Plane { stride, samples }
}
